/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who owns a socket. sk_lock.owned is set exactly while a process works on the
 * socket, so current is its owner then and a stranger at any other time (in
 * softirq it is whoever was interrupted).
 */
#ifndef __OWNER_H
#define __OWNER_H

#include "trace.h"

#define PF_EXITING 0x00000004
#define PF_IO_WORKER 0x00000010 /* 5.12+ */
#define PF_KTHREAD 0x00200000
#define ECONNABORTED 103

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

/* The name is the process's, not the thread's. */
static __always_inline void read_comm(char *comm, struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	bpf_core_read(comm, sizeof(leader->comm), &leader->comm);
}

/*
 * What a task_struct says of current, by number. Global functions, which the verifier works
 * through once and not on each way that leads there: whenever it sees a trusted pointer
 * followed, as 5.11+ gives it for current, it searches all types of the kernel by name.
 */
__noinline u32 current_flags(void)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf))
		return bpf_get_current_task_btf()->flags;
	return BPF_CORE_READ(current_task(), flags);
}

/* One half of the name of current's thread group leader: 5.11+. */
__noinline u64 half_of_comm(u32 half)
{
	const u64 *comm;

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf))
		return 0;
	comm = (const u64 *)bpf_get_current_task_btf()->group_leader->comm;
	return half ? comm[1] : comm[0];
}

static __always_inline void read_own_comm(char *comm)
{
	/* Plain loads, and not three probe reads. */
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)) {
		((u64 *)comm)[0] = half_of_comm(0);
		((u64 *)comm)[1] = half_of_comm(1);
	} else {
		read_comm(comm, current_task());
	}
}

/* A kernel thread is not an owner: it only finishes what a process began (delayed fput,
 * the MPTCP worker). */
static __always_inline bool in_kernel_thread(void)
{
	return current_flags() & PF_KTHREAD;
}

/* own makes current the owner. */
static __always_inline void own(struct owner *o, u8 source)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (in_kernel_thread())
		return;
	o->holder = source == OWNER_CLOSE ? HOLDER_GONE : HOLDER_HELD;
	if (o->pid != pid || o->source == OWNER_NONE || o->source == OWNER_INHERITED) {
		o->pid = pid;
		o->source = source;
		o->fd = -1;
	}
	read_own_comm(o->comm);
}

static __always_inline void inherit(struct owner *o, const struct sock_info *listener)
{
	if (!listener || listener->owner.source == OWNER_NONE)
		return;
	*o = listener->owner;
	o->source = OWNER_INHERITED;
	o->holder = HOLDER_UNKNOWN;
	o->pass = 0;
	o->fd = -1;
}

/* cgroup_id reads the cgroup v2 of the socket's creator; direct as in LOAD. */
static __always_inline u64 cgroup_id(const struct sock *sk, bool direct)
{
	const struct sock_cgroup_data *data = &sk->sk_cgrp_data;
	struct cgroup *cgroup;

	if (bpf_core_field_exists(data->cgroup)) {
		return direct ? data->cgroup->kn->id : BPF_CORE_READ(data, cgroup, kn, id);
	} else {
		const struct sock_cgroup_data___val *old = (const void *)data;
		u64 val = BPF_CORE_READ(old, val);

		if (val & 1) /* the union holds a classid */
			return 0;
		cgroup = (struct cgroup *)(val & ~3ULL);
		return cgroup ? BPF_CORE_READ(cgroup, kn, id) : 0;
	}
}

/*
 * tcp_rcv_space_adjust runs in the process that reads. That is the first sign of
 * who accepted a connection, and the only one of a descriptor that was passed on.
 * A sockmap reads in softirq (tcp_read_sock from sk_psock_verdict_data_ready or
 * strp_data_ready): nobody owns the lock then, and current is a stranger.
 */
static __always_inline void first_use(struct sock *sk)
{
	u64 key = (u64)sk;
	struct sock_info *info;

	if (!sk->sk_lock.owned)
		return;
	info = bpf_map_lookup_elem(&socks, &key);
	if (!info)
		return;
	if (info->owner.pid != bpf_get_current_pid_tgid() >> 32 ||
	    info->owner.source == OWNER_INHERITED)
		own(&info->owner, OWNER_USE);
}

#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* sock_of finds the TCP or MPTCP socket of a file. */
static __always_inline struct sock *sock_of(struct file *file)
{
	struct socket *sock;
	struct sock *sk;
	u16 protocol, family;

	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	sock = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(sock, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return NULL;
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if (protocol == IPPROTO_MPTCP)
		return bpf_core_type_exists(struct mptcp_sock) ? sk : NULL;
	return protocol == IPPROTO_TCP && BPF_CORE_READ(sk, sk_type) == SOCK_STREAM ? sk : NULL;
}

static __always_inline bool is_msk(const struct sock *sk)
{
	return bpf_core_type_exists(struct mptcp_sock) && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_MPTCP;
}

/* tcp_sock_of finds the TCP socket of a file; of an MPTCP socket the first subflow. */
static __always_inline struct sock *tcp_sock_of(struct file *file)
{
	struct sock *sk = sock_of(file);

	if (sk && is_msk(sk))
		return BPF_CORE_READ((struct mptcp_sock *)sk, first);
	return sk;
}

/* file_of finds the file of a descriptor of current. */
static __always_inline struct file *file_of(long fd)
{
	struct fdtable *table = BPF_CORE_READ(current_task(), files, fdt);
	struct file **slots, *file = NULL;

	if (fd < 0 || fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	slots = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file;
}

/*
 * keep_top keeps the first words of the user stack. glibc's connect() and accept()
 * have no frame pointer, so the walk misses their caller: its address is among these.
 * Not inlined: BPF functions that call each other share 512 bytes of stack.
 */
static __noinline int keep_top(u32 id)
{
	struct pt_regs *regs;
	struct stack_top top;

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs)) /* 5.15+ */
		return 0;
	if (bpf_map_lookup_elem(&stack_tops, &id))
		return 0;
	regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	if (bpf_probe_read_user(&top, sizeof(top), (void *)BPF_CORE_READ(regs, sp)) == 0)
		bpf_map_update_elem(&stack_tops, &id, &top, BPF_NOEXIST);
	return 0;
}

/* take_stack remembers which code opens the socket. */
static __always_inline void take_stack(void *ctx, struct sock_info *info)
{
	long id;

	if (!take_stacks)
		return;
	id = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
	if (id < 0)
		return;
	info->stack = id + 1;
	if (keep_tops)
		keep_top(id);
}

/*
 * accepted runs as accept() returns a descriptor to its process: its owner, its fd
 * and the code that called. Only attached for stacks, as a tracepoint of one system
 * call costs every system call of the host some 80 ns.
 */
static __always_inline void accepted(void *ctx, long fd)
{
	struct file *file = file_of(fd);
	struct sock_info *info;
	u64 key;

	if (!file)
		return;
	key = (u64)tcp_sock_of(file);
	info = bpf_map_lookup_elem(&socks, &key);
	if (!info)
		return;
	own(&info->owner, OWNER_ACCEPT);
	info->owner.fd = fd;
	take_stack(ctx, info);
}

#endif
