/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Timewait mini-sockets. No tracepoint is their own, but each has a timer, armed
 * when it is made (tcp_time_wait) and cancelled when it ends, whatever ends it.
 * tcp_time_wait arms the timer about 10 us before it closes the full socket.
 */
#ifndef __TIMEWAIT_H
#define __TIMEWAIT_H

#include "trace.h"
#include "caller.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define IPV4_SADDR 12 /* offset in the header, the destination follows */
#define IPV6_SADDR 8
#define TCP_FIN 1

static __always_inline struct inet_timewait_sock *timewait_of(struct timer_list *timer)
{
	return (void *)timer - bpf_core_field_offset(struct inet_timewait_sock, tw_timer);
}

/*
 * timewait_moved reports FIN_WAIT2 > TIME_WAIT inside the mini-socket. When the FIN
 * comes, on another CPU, before the full socket has handed over, hand_over does.
 */
static __always_inline void timewait_moved(struct sock_info *info, const struct conn *c, u64 when, u8 kind)
{
	if (info->flags & INFO_MINI) {
		info->state = TCP_TIME_WAIT;
		return;
	}
	emit(when, info->sk, c, info, TCP_TIME_WAIT, REASON_FIN_RECEIVED, 0, NULL);
	info->state = TCP_TIME_WAIT;
	info->since = when;
	info->kind = kind;
}

/* timewait_armed: a mini-socket is made, or its time begins again. */
static __always_inline void timewait_armed(struct timer_list *timer)
{
	struct inet_timewait_sock *tw = timewait_of(timer);
	u64 now = bpf_ktime_get_boot_ns();
	u8 substate = BPF_CORE_READ(tw, tw_substate);
	struct sock_info *info, mini = {};
	struct cpu_state *cpu = this_cpu();
	struct sock_head head;
	struct conn c;
	u64 key;

	probe_conn(&c, tw, &head);
	if (!selected(&c))
		return;
	key = conn_key(&c);
	info = bpf_map_lookup_elem(&timewaits, &key);
	if (info && info->sk == (u64)tw) {
		if (info->state == TCP_FIN_WAIT2 && substate == TCP_TIME_WAIT)
			timewait_moved(info, &c, now, DURATION_EXACT);
		return;
	}
	mini.since = now;
	mini.sk = (u64)tw;
	mini.cookie = HEAD_FIELD(&head, skc_cookie).counter;
	mini.state = substate;
	mini.kind = DURATION_EXACT;
	mini.flags = INFO_MINI;
	mini.uid = -1;
	mini.owner.fd = -1;
	if (bpf_map_update_elem(&timewaits, &key, &mini, BPF_ANY) == 0 || !cpu)
		return;
	cpu->no_room = key;
	cpu->no_room_state = substate;
}

static __always_inline u8 timewait_end(u32 caller, u8 state)
{
	switch (caller) {
	case CALLER_TIMEWAIT:
		return REASON_RST_RECEIVED;
	case CALLER_CONNECT:
		return REASON_REUSED_BY_CONNECT;
	case CALLER_RECEIVE: /* TCP_TW_SYN, or TCP_TW_RST for data into FIN_WAIT2 */
		return state == TCP_TIME_WAIT ? REASON_REOPENED_BY_SYN : REASON_RST_SENT;
	case CALLER_ABORT:
		return REASON_KILLED;
	case CALLER_NETNS_EXIT:
		return REASON_NETNS_EXIT;
	default:
		return REASON_NONE;
	}
}

/*
 * missed_move: skb_freed did not see the mini-socket move to TIME_WAIT (the kernel
 * does not nest a program in itself), and its timer was armed again within the same
 * wheel bucket, which no timer tracepoint shows. The timer was set to 60 s then, so
 * it says when that was, to a tick: the duration is a lower bound.
 */
static __always_inline void missed_move(struct sock_info *info, const struct conn *c, u64 now,
					u64 jiffies, u64 expires)
{
	u64 ticks = jiffies - (expires - (u64)TIMEWAIT_SEC * hz);
	u64 when = now - ticks * (NSEC_PER_SEC / hz);

	timewait_moved(info, c, when < info->since ? info->since : when, DURATION_AT_LEAST);
}

/* timewait_cancelled: its end, unless mod_timer is about to arm it again. */
static __always_inline void timewait_cancelled(void *ctx, struct timer_list *timer)
{
	struct inet_timewait_sock *tw = timewait_of(timer);
	u64 now = bpf_ktime_get_boot_ns(), jiffies = bpf_jiffies64();
	u64 expires = timer->expires;
	struct sock_head head;
	struct conn c;
	struct sock_info *info;
	u64 key;
	u8 why;

	probe_conn(&c, tw, &head);
	key = conn_key(&c);
	info = bpf_map_lookup_elem(&timewaits, &key);
	if (!info || info->sk != (u64)tw)
		return;
	if (!due(timer)) {
		u32 caller = who_called(ctx);

		if (caller == CALLER_REARM)
			return;
		why = timewait_end(caller, BPF_CORE_READ(tw, tw_substate));
	} else {
		why = BPF_CORE_READ(tw, tw_substate) == TCP_TIME_WAIT ? REASON_EXPIRED
								      : REASON_TIMEOUT;
	}
	if (info->flags & INFO_MINI) /* there was no room when it was made, but when it was armed again */
		info->kind = DURATION_AT_LEAST;
	if (info->state == TCP_FIN_WAIT2 && BPF_CORE_READ(tw, tw_substate) == TCP_TIME_WAIT)
		missed_move(info, &c, now, jiffies, expires);
	emit(now, (u64)tw, &c, info, TCP_CLOSE, why, 0, NULL);
	bpf_map_delete_elem(&timewaits, &key);
}

/*
 * skb_conn reads both ends from the headers of a TCP segment that came in with FIN. One that
 * a full socket has queued has no device any more (tcp_v4_rcv, tcp_v6_rcv: skb->dev = NULL
 * before tcp_v4_do_rcv; tcp_transmit_skb sends without one); one for a mini-socket still
 * has: do_time_wait is a branch before that. Most are of the first kind, and return here.
 */
static __always_inline bool skb_conn(struct sk_buff *skb, struct conn *c)
{
	unsigned char *ip = skb->head + skb->network_header;
	unsigned char *tcp = skb->head + skb->transport_header;
	__be16 protocol = skb->protocol;
	struct tcp_head header;
	__be32 addrs[2];

	if (!skb->dev)
		return false;
	if (protocol != bpf_htons(ETH_P_IP) && protocol != bpf_htons(ETH_P_IPV6))
		return false;
	if (bpf_probe_read_kernel(&header, sizeof(header), tcp) || !(header.flags & TCP_FIN))
		return false;
	if (protocol == bpf_htons(ETH_P_IP)) {
		bpf_probe_read_kernel(addrs, sizeof(addrs), ip + IPV4_SADDR);
		c->laddr[0] = c->laddr[1] = c->raddr[0] = c->raddr[1] = 0;
		c->laddr[2] = c->raddr[2] = V4_MAPPED;
		c->raddr[3] = addrs[0];
		c->laddr[3] = addrs[1];
	} else {
		bpf_probe_read_kernel(c->raddr, sizeof(c->raddr), ip + IPV6_SADDR);
		bpf_probe_read_kernel(c->laddr, sizeof(c->laddr), ip + IPV6_SADDR + sizeof(c->raddr));
	}
	c->rport = bpf_ntohs(header.source);
	c->lport = bpf_ntohs(header.dest);
	c->zero = 0;
	c->netns = skb->dev->nd_net.net->ns.inum;
	return true;
}

/*
 * waiting_for finds the mini-socket that a segment is for. It may be bound to a device
 * (inet_bound_dev_eq): to the one that the segment came in by, which tcp_v4_fill_cb notes,
 * or to the VRF that this one belongs to, which then is skb_iif.
 */
static __always_inline struct sock_info *waiting_for(struct sk_buff *skb, struct conn *c)
{
	const struct tcp_skb_cb *cb = (void *)skb->cb;
	u32 devices[3] = {0, BPF_CORE_READ(cb, header.h4.iif), skb->skb_iif};
	struct sock_info *info = NULL;

#pragma unroll
	for (int i = 0; i < 3 && !info; i++) {
		u64 key;

		c->device = devices[i];
		key = conn_key(c);
		info = bpf_map_lookup_elem(&timewaits, &key);
	}
	return info;
}

/*
 * The FIN that moves a mini-socket from FIN_WAIT2 to TIME_WAIT is freed as soon as
 * that is done (tcp_v4_rcv, discard_it), and kfree_skb shows it. Only since
 * 6.11 it names the socket; the addresses in the segment do as well. Segments
 * that are not TCP at all find no mini-socket.
 */
static __always_inline void fin_freed(struct sk_buff *skb)
{
	struct inet_timewait_sock *tw;
	struct sock_info *info;
	struct conn c;

	if (!skb_conn(skb, &c) || !selected(&c))
		return;
	info = waiting_for(skb, &c);
	if (!info || info->state != TCP_FIN_WAIT2)
		return;
	tw = (void *)info->sk;
	if (BPF_CORE_READ(tw, tw_substate) == TCP_TIME_WAIT)
		timewait_moved(info, &c, bpf_ktime_get_boot_ns(), DURATION_EXACT);
}

#endif
