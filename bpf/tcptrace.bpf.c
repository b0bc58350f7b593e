// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tcptrace: every state change of every TCP socket, with its owner and cause.
 *
 * inet_sock_set_state reports the full sockets. It never reports TIME_WAIT and
 * half-open connections, which live in mini-sockets and request socks: these are
 * seen through their timers. All hooks are tracepoints, so one way serves every
 * kernel, locked down or not.
 *
 * This file is the table of hooks; what they do stands, by subject, in socket.h
 * (with reason.h and owner.h), timewait.h, request.h and snapshot.h.
 */
#include "trace.h"
#include "socket.h"
#include "timewait.h"
#include "request.h"
#include "snapshot.h"

/* Copies of one program, see state_change(). The third is for preemptible tracepoints. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_change_1, struct sock *sk, int old, int new)
{
	return state_change(ctx, sk, old, new, 1);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_change_2, struct sock *sk, int old, int new)
{
	return state_change(ctx, sk, old, new, 2);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_change_3, struct sock *sk, int old, int new)
{
	return state_change(ctx, sk, old, new, 3);
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroy_sock, struct sock *sk)
{
	socket_destroyed(sk);
	return 0;
}

SEC("tp_btf/timer_start")
int BPF_PROG(timer_start, struct timer_list *timer)
{
	u64 function = (u64)timer->function;

	if (function == tw_timer_handler)
		timewait_armed(timer);
	else if (function == reqsk_timer_handler)
		request_armed(timer);
	return 0;
}

SEC("tp_btf/timer_cancel")
int BPF_PROG(timer_cancel, struct timer_list *timer)
{
	u64 function = (u64)timer->function;

	if (function == tw_timer_handler)
		timewait_cancelled(ctx, timer);
	else if (function == reqsk_timer_handler)
		request_cancelled(ctx, timer);
	return 0;
}

SEC("tp_btf/timer_expire_exit")
int BPF_PROG(timer_expire_exit, struct timer_list *timer)
{
	if ((u64)timer->function == neigh_timer_handler)
		neighbor_timed(timer);
	else
		request_expired(timer);
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(rcv_space_adjust, struct sock *sk)
{
	first_use(sk);
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb, struct sk_buff *skb)
{
	fin_freed(skb);
	request_freed(skb);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept")
int accept_exit(struct trace_event_raw_sys_exit *ctx)
{
	accepted(ctx, ctx->ret);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int accept4_exit(struct trace_event_raw_sys_exit *ctx)
{
	accepted(ctx, ctx->ret);
	return 0;
}

SEC("iter/task_file")
int files(struct bpf_iter__task_file *ctx)
{
	return file_seen(ctx);
}

SEC("iter/tcp")
int table(struct bpf_iter__tcp *ctx)
{
	return table_row(ctx);
}

SEC("iter/bpf_map_elem")
int known_sockets(struct bpf_iter__bpf_map_elem *ctx)
{
	return known_row(ctx);
}

SEC("iter/bpf_map_elem")
int known_requests(struct bpf_iter__bpf_map_elem *ctx)
{
	return known_request(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
