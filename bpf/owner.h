/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who owns a socket. sk_lock.owned is set exactly while a process works on the
 * socket, so current is its owner then and a stranger at any other time (in
 * softirq it is whoever was interrupted).
 */
#ifndef __OWNER_H
#define __OWNER_H

#include "trace.h"

#define PF_KTHREAD 0x00200000
#define ECONNABORTED 103

static __always_inline struct task_struct *current_task(void)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf))
		return bpf_get_current_task_btf(); /* 5.11+ */
	return (struct task_struct *)bpf_get_current_task();
}

/* The name is the process's, not the thread's. */
static __always_inline void read_comm(char *comm, struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	bpf_core_read(comm, sizeof(leader->comm), &leader->comm);
}

/*
 * own makes current the owner. A kernel thread never is: it only finishes what
 * a process began (delayed fput, the MPTCP worker).
 */
static __always_inline void own(struct owner *o, u8 source)
{
	struct task_struct *task = current_task();
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return;
	if (o->pid != pid || o->source == OWNER_NONE || o->source == OWNER_INHERITED) {
		o->pid = pid;
		o->source = source;
		o->fd = -1;
	}
	read_comm(o->comm, task);
}

static __always_inline void inherit(struct owner *o, const struct life *listener)
{
	if (!listener || listener->owner.source == OWNER_NONE)
		return;
	*o = listener->owner;
	o->source = OWNER_INHERITED;
	o->fd = -1;
}

/* cgroup_id reads the cgroup v2 of the socket's creator. */
static __always_inline u64 cgroup_id(const struct sock *sk)
{
	const struct sock_cgroup_data *data = &sk->sk_cgrp_data;
	struct cgroup *cgroup;

	if (bpf_core_field_exists(data->cgroup)) {
		cgroup = BPF_CORE_READ(data, cgroup);
	} else {
		const struct sock_cgroup_data___val *old = (const void *)data;
		u64 val = BPF_CORE_READ(old, val);

		if (val & 1) /* the union holds a classid */
			return 0;
		cgroup = (struct cgroup *)(val & ~3ULL);
	}
	return cgroup ? BPF_CORE_READ(cgroup, kn, id) : 0;
}

/*
 * tcp_rcv_space_adjust runs in the process that reads. That is the first sign of
 * who accepted a connection, and the only one of a descriptor that was passed on.
 */
static __always_inline void first_use(struct sock *sk)
{
	u64 key = (u64)sk;
	struct life *l = bpf_map_lookup_elem(&socks, &key);

	if (!l)
		return;
	if (l->owner.pid != bpf_get_current_pid_tgid() >> 32 ||
	    l->owner.source == OWNER_INHERITED)
		own(&l->owner, OWNER_USE);
}

#endif
