#!/busybox sh
# The first process of a guest. The kernel's log goes to the first serial port. Results
# go to the second, and so do lines that begin with "@", which are for the host.
/busybox mkdir -p /bin /proc /sys /dev /tmp
/busybox --install -s /bin
export PATH=/bin HOME=/ TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs security /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

argument() { sed -n "s/.*\\<$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }
results=$(argument results)
stty -F "/dev/$results" raw
exec </dev/null >"/dev/$results" 2>&1
echo "@kernel $(uname -r)"

# What the kernel asks modprobe for when a program wants sock_diag, a pair of veth, a VRF or
# TLS. 5.10 has no TLS.
insmod /inet_diag.ko && insmod /tcp_diag.ko
insmod /veth.ko
insmod /vrf.ko
[ -e /tls.ko ] && insmod /tls.ko

run() { # run FOLDER/PROGRAM TESTS ARGS: with the folder as working directory, as go test does
	program=$1 tests=$2
	shift 2
	cd "/${program%/*}" && "/$program" -test.v=test2json "-test.run=$tests" "$@"
	echo "@exit $?"
}
finish() {
	echo "@end"
	poweroff -f
}
echo "@way auto"
run internal/confine/confine.test . -test.timeout=2m
# Where this guest must be locked down, the test fails unless it is.
export TCPTRACE_TEST_LOCKDOWN=$(argument lockdown)
run internal/probe/probe.test '^TestLockdown$' -test.timeout=1m
case $TCPTRACE_TEST_LOCKDOWN-$(uname -r) in
confidentiality-5.* | confidentiality-6.[01].*) finish ;; # nothing can be traced
esac
walk() { # walk WAY ARGS
	way=$1
	shift
	echo "@way $way"
	TCPTRACE_TEST_HOOKS=$way run internal/probe/probe.test '^TestWalk$' -test.timeout=6m "$@"
}
walk tracepoints
# What is older than a trace needs one of its own, which hooks in as it likes: once is enough.
walk trampolines '-test.skip=^TestWalk$/^seeding$'
echo "@way auto"
# All others, but for what needs the programs of util-linux, Go, or the source beside it.
skip='TestLockdown|TestWalk|TestTimeInTimeNamespace|TestNamespaceHiddenByAnotherUser'
skip="$skip|TestNamespaceBelowHungFileSystem|TestNamespacesOfOthersHaveALimit|TestManyMounts"
skip="$skip|TestTablesTakeEdges"
run internal/probe/probe.test . "-test.skip=^($skip)\$" -test.timeout=6m
# churn needs a C compiler for this architecture, and the oracle tracefs, which
# lockdown=confidentiality refuses.
if [ -x /bin/churn ] && [ "$TCPTRACE_TEST_LOCKDOWN" != confidentiality ]; then
	run internal/test/rig/rig.test '^TestOverloadIsCountedExactly$' -test.timeout=8m
	run internal/test/rig/rig.test '^TestTracerAgreesWithOracle$/^interrupting' -test.timeout=8m
fi
finish
