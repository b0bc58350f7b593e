#!/busybox sh
# The first process of a guest. The kernel's log goes to the first serial port, what
# is said here to the second: results, and lines that begin with "@" for the host.
/busybox mkdir -p /bin /proc /sys /dev /tmp
/busybox --install -s /bin
export PATH=/bin HOME=/ TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

results=$(sed -n 's/.*results=\([^ ]*\).*/\1/p' /proc/cmdline)
stty -F "/dev/$results" raw
exec </dev/null >"/dev/$results" 2>&1
echo "@kernel $(uname -r)"

# What the kernel asks modprobe for when a program wants sock_diag.
insmod /inet_diag.ko && insmod /tcp_diag.ko

run() { # run FOLDER/PROGRAM ARGS: with the folder as working directory, as go test does
	program=$1
	shift
	cd "/${program%/*}" && "/$program" -test.v=test2json "$@"
	echo "@exit $?"
}
for way in tracepoints trampolines; do
	echo "@way $way"
	TCPTRACE_TEST_HOOKS=$way run internal/probe/probe.test -test.timeout=6m -test.run=TestWalk
done
echo "@way auto"
run internal/probe/probe.test -test.timeout=2m -test.run='^(TestSeedIsComplete|TestUnseenChange)$'
if [ -x /bin/churn ]; then # needs a C compiler for this architecture
	run internal/test/rig/rig.test -test.timeout=4m -test.run=TestOverloadIsCountedExactly
	run internal/test/rig/rig.test -test.timeout=4m -test.run=TestTracerAgreesWithOracle/interrupting
fi
echo "@end"
poweroff -f
