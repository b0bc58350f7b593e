// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What only a trampoline shows: which process accept() gives a connection to, at
 * once, also through io_uring and MPTCP. An extra, in an object of its own, because
 * a kernel may refuse trampolines (no ftrace, an architecture without them, a policy).
 * It shares the map socks with tcptrace.bpf.c.
 *
 * An old kernel attaches either signature without complaint, so the loader chooses
 * by the kernel's types. Only pointers are read here: the upper bits of a smaller
 * argument (int, bool) are not defined, and one that is read has to be masked.
 */
#include "trace.h"
#include "owner.h"

struct proto_accept_arg;

static __always_inline int gave_away(struct sock *sk)
{
	u64 key = (u64)sk;
	struct sock_info *info = bpf_map_lookup_elem(&socks, &key);

	if (info)
		own(&info->owner, OWNER_ACCEPT);
	return 0;
}

/* 5.8 .. 6.9 */
SEC("fexit/inet_csk_accept")
int BPF_PROG(accept_flags, struct sock *listener, int flags, int *err, bool kern, struct sock *sk)
{
	return gave_away(sk);
}

/* 6.10+ */
SEC("fexit/inet_csk_accept")
int BPF_PROG(accept_arg, struct sock *listener, struct proto_accept_arg *arg, struct sock *sk)
{
	return gave_away(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
