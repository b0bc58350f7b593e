/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Request sockets: half-open connections, from the first SYN to the end of the
 * handshake. They too are seen through their timer, which repeats the SYN-ACK.
 * SYN cookies and Fast Open have none: socket.h reports their SYN_RECV.
 */
#ifndef __REQUEST_H
#define __REQUEST_H

#include "trace.h"
#include "owner.h"
#include "caller.h"
#include "neighbor.h"

#define TCP_SYN 2
#define TCP_RST 4

/* Set where kfree_skb is seen: it tells which segment ended a request. */
const volatile bool sees_freed;

static __always_inline struct request_sock *request_of(struct timer_list *timer)
{
	return (void *)timer - bpf_core_field_offset(struct request_sock, rsk_timer);
}

static __always_inline bool request_is_mptcp(struct request_sock *req)
{
	struct tcp_request_sock *treq = (void *)req;

	return bpf_core_field_exists(treq->is_mptcp) && BPF_CORE_READ(treq, is_mptcp);
}

/* describe_request fills in the event that a request sock begins with; since is 0 if unknown. */
static __always_inline void describe_request(struct request *r, struct request_sock *req,
					     const struct conn *c, u64 since)
{
	u64 listener = (u64)BPF_CORE_READ(req, __req_common.skc_listener);
	struct sock_info *parent = bpf_map_lookup_elem(&socks, &listener);
	struct sock_info info = {.role = ROLE_SERVER, .uid = -1, .owner.fd = -1};

	if (parent) {
		inherit(&info.owner, parent);
		info.cgroup = parent->cgroup;
		info.uid = parent->uid;
	}
	info.mptcp = request_is_mptcp(req);
	__builtin_memset(r, 0, sizeof(*r));
	r->since = r->event.time = since;
	r->event.sk = (u64)req;
	r->event.conn = *c;
	r->event.kind = TRANSITION;
	r->event.old_state = TCP_LISTEN;
	r->event.new_state = TCP_SYN_RECV;
	r->event.reason = REASON_SYN_RECEIVED;
	copy_info(&r->event, &info);
}

static __always_inline void emit_request(const struct request *r, u64 now)
{
	struct event *e = reserve();

	if (!e)
		return;
	*e = r->event;
	bpf_ringbuf_submit(e, wakeup_flags(now));
}

/*
 * boot_time turns CLOCK_MONOTONIC into CLOCK_BOOTTIME, which is ahead by the time that the
 * machine was suspended. An interrupt, or the host of a virtual machine, may come between
 * the two readings: then they are taken again.
 */
static __always_inline u64 boot_time(u64 monotonic)
{
	u64 before, suspended;

	for (int i = 0; i < 3; i++) {
		before = bpf_ktime_get_ns();
		suspended = bpf_ktime_get_boot_ns() - before;
		if (bpf_ktime_get_ns() - before < NSEC_PER_MSEC / 10)
			break;
	}
	return monotonic + suspended;
}

/*
 * request_since is when the kernel sent the first SYN-ACK, right after the SYN: the
 * beginning of a request that is older than what we know of it. 0: not sent yet.
 */
static __always_inline u64 request_since(struct request_sock *req)
{
	u64 sent = BPF_CORE_READ((struct tcp_request_sock *)req, snt_synack);

	return sent ? boot_time(sent * 1000) : 0;
}

/* sent_again: the SYN-ACK was, by the timer or for one more SYN, before the timer is armed. */
static __always_inline bool sent_again(struct request_sock *req)
{
	return BPF_CORE_READ(req, num_retrans) || BPF_CORE_READ_BITFIELD_PROBED(req, num_timeout);
}

/*
 * request_armed: the first SYN came, or the SYN-ACK was sent once more, possibly of a request
 * that is not known yet: it is older than the trace, or there was no room for it.
 */
static __always_inline void request_armed(struct timer_list *timer)
{
	struct request_sock *req = request_of(timer);
	struct cpu_state *cpu = this_cpu();
	u64 key = (u64)req, now;
	struct sock_head head;
	struct request r;
	struct conn c;
	bool again;

	if (cpu && cpu->expiring == key)
		cpu->expiring = 0;
	if (bpf_map_lookup_elem(&requests, &key))
		return;
	probe_conn(&c, req, &head);
	if (!selected(&c))
		return;
	now = bpf_ktime_get_boot_ns();
	again = sent_again(req);
	describe_request(&r, req, &c, again ? request_since(req) : now);
	if (!r.since)
		r.event.time = now;
	if (bpf_map_update_elem(&requests, &key, &r, BPF_ANY) == 0)
		emit_request(&r, now);
	else if (!again) /* Not emitted: its end, or its child, could not be joined to it. */
		__sync_fetch_and_add(&untracked, 1);
}

/*
 * child_of finds the child that was just cloned for a request on this CPU. (req->sk is
 * set only later, inet_csk_reqsk_queue_add.)
 */
static __always_inline bool child_of(u64 request_conn, struct sock_info **info)
{
	struct cpu_state *cpu = this_cpu();
	struct sock_head head;
	struct conn c;

	if (!cpu || !cpu->child)
		return false;
	probe_conn(&c, (void *)cpu->child, &head);
	if (conn_key(&c) != request_conn)
		return false;
	*info = bpf_map_lookup_elem(&socks, &cpu->child);
	cpu->child = 0;
	return true;
}

/* request_completed joins a request to its child. */
static __always_inline bool request_completed(const struct request *r)
{
	struct sock_info *info = NULL;

	if (!child_of(conn_key(&r->event.conn), &info))
		return false;
	if (!info)
		return true;
	info->flags |= INFO_REQUEST;
	info->since = r->since;
	info->kind = r->since ? DURATION_EXACT : DURATION_UNKNOWN;
	info->owner.pid = r->event.pid;
	info->owner.source = r->event.owner_source;
	__builtin_memcpy(info->owner.comm, r->event.comm, sizeof(info->owner.comm));
	return true;
}

/*
 * unknown_completed: a request that found no room, or is older than the trace. Its child
 * reports LISTEN > SYN_RECV, see child_grown(), with the time that the request has kept.
 */
static __always_inline void unknown_completed(struct request_sock *req)
{
	struct cpu_state *cpu = this_cpu();
	struct sock_info *info = NULL;
	struct sock_head head;
	struct conn c;
	u64 since, child;

	if (!cpu || !cpu->child)
		return;
	child = cpu->child;
	probe_conn(&c, req, &head);
	if (!child_of(conn_key(&c), &info))
		return;
	if (!info) {
		cpu->counted = child;
		return;
	}
	since = request_since(req);
	if (since)
		info->since = since;
	else
		info->kind = DURATION_UNKNOWN;
}

/* request_closed turns what began the half-open connection into its end. */
static __always_inline void request_closed(struct event *e, const struct request *r, u64 now, u8 why)
{
	*e = r->event;
	e->time = now;
	e->duration = r->since ? now - r->since : 0;
	e->duration_kind = r->since ? DURATION_EXACT : DURATION_UNKNOWN;
	e->old_state = TCP_SYN_RECV;
	e->new_state = TCP_CLOSE;
	e->reason = why;
}

static __always_inline void emit_request_end(const struct request *r, u64 now, u8 why)
{
	struct event *e = reserve();

	if (!e)
		return;
	request_closed(e, r, now, why);
	bpf_ringbuf_submit(e, wakeup_flags(now));
}

static __always_inline bool listens(struct request_sock *req)
{
	struct sock *listener = BPF_CORE_READ(req, __req_common.skc_listener);

	return BPF_CORE_READ(listener, __sk_common.skc_state) == TCP_LISTEN;
}

/* queue_full as sk_acceptq_is_full: the accept queue takes one more than its limit. */
static __always_inline bool queue_full(struct request_sock *req)
{
	struct sock *listener = BPF_CORE_READ(req, __req_common.skc_listener);

	return BPF_CORE_READ(listener, sk_ack_backlog) > BPF_CORE_READ(listener, sk_max_ack_backlog);
}

/*
 * is_acked: the final ACK came, but the accept queue had no room (tcp_v4_syn_recv_sock), or
 * TCP_DEFER_ACCEPT waits for data (tcp_check_req).
 */
static __always_inline bool is_acked(struct request_sock *req)
{
	return BPF_CORE_READ_BITFIELD_PROBED((struct inet_request_sock *)req, acked);
}

/* expiry_reason: why the last SYN-ACK timer gave up. */
static __always_inline u8 expiry_reason(struct request_sock *req)
{
	if (!listens(req))
		return REASON_LISTENER_CLOSED;
	return is_acked(req) && queue_full(req) ? REASON_BACKLOG_FULL : REASON_SYN_TIMEOUT;
}

/*
 * abort_on_overflow: with net.ipv4.tcp_abort_on_overflow tcp_check_req sends an RST when
 * the accept queue is full.
 */
static __always_inline bool abort_on_overflow(struct request_sock *req)
{
	struct net *net = BPF_CORE_READ(req, __req_common.skc_net.net);

	return BPF_CORE_READ(net, ipv4.sysctl_tcp_abort_on_overflow);
}

/* icmp_reason: tcp_req_err. The message is our own where the peer did not answer ARP. */
static __always_inline u8 icmp_reason(const struct conn *c)
{
	struct neighbor id = {.netns = c->netns};

	__builtin_memcpy(id.addr, c->raddr, sizeof(id.addr));
	return failed_just_now(&id) ? REASON_NEIGHBOR_UNREACHABLE : REASON_ICMP_RECEIVED;
}

static __always_inline u8 request_end(u32 caller, struct request_sock *req, const struct conn *c)
{
	switch (caller) {
	case CALLER_RECEIVE:
		/* tcp_v4_rcv ends it when nobody listens any more; tcp_check_req may have
		 * left the stack by a sibling call (arm64). */
		if (!listens(req))
			return REASON_LISTENER_CLOSED;
		/* fallthrough */
	case CALLER_CHECK_REQ:
		return abort_on_overflow(req) ? REASON_NONE : REASON_RST_RECEIVED;
	case CALLER_ICMP:
		return icmp_reason(c);
	case CALLER_ABORT:
		return REASON_KILLED;
	case CALLER_NETNS_EXIT:
		return REASON_NETNS_EXIT;
	default:
		return REASON_NONE;
	}
}

/*
 * A segment ended the request: an RST, a SYN within the window, which we answer by an RST,
 * or the final ACK that finds the accept queue full. Which of these it was shows when it is freed, a
 * microsecond later (tcp_v4_rcv, discard_it).
 */
static __always_inline bool by_segment(u32 caller, struct request_sock *req)
{
	return caller == CALLER_CHECK_REQ || (caller == CALLER_RECEIVE && listens(req));
}

static __always_inline bool wait_for_segment(struct cpu_state *cpu, const struct request *r,
					     struct request_sock *req, u64 now)
{
	if (!sees_freed || !cpu)
		return false;
	if (cpu->refusing) /* its segment was not freed on this CPU */
		emit_request_end(&cpu->refused, cpu->refused.expired, REASON_NONE);
	cpu->refused = *r;
	cpu->refused.expired = now;
	cpu->refused.why = queue_full(req) ? REASON_BACKLOG_FULL : REASON_RST_SENT;
	cpu->refusing = true;
	return true;
}

/* request_freed: the segment that a request waits for has been dealt with. */
static __always_inline void request_freed(struct sk_buff *skb)
{
	struct cpu_state *cpu = this_cpu();
	struct tcp_head head;
	u8 why;

	if (!cpu || !cpu->refusing)
		return;
	if (bpf_probe_read_kernel(&head, sizeof(head), skb->head + skb->transport_header) ||
	    bpf_ntohs(head.source) != cpu->refused.event.conn.rport ||
	    bpf_ntohs(head.dest) != cpu->refused.event.conn.lport)
		return;
	cpu->refusing = false;
	if (head.flags & TCP_RST)
		why = REASON_RST_RECEIVED;
	else
		why = head.flags & TCP_SYN ? REASON_RST_SENT : cpu->refused.why;
	emit_request_end(&cpu->refused, cpu->refused.expired, why);
}

/*
 * request_cancelled: by its expiry, or by what ended it. A timer that is due may
 * still be cancelled by another, when its softirq was held up: only the stack shows which.
 */
static __always_inline void request_cancelled(void *ctx, struct timer_list *timer)
{
	struct request_sock *req = request_of(timer);
	struct cpu_state *cpu = this_cpu();
	u64 key = (u64)req, now;
	struct request *r;
	u32 caller;

	r = bpf_map_lookup_elem(&requests, &key);
	if (!r) {
		unknown_completed(req);
		return;
	}
	if (!request_completed(r)) {
		now = bpf_ktime_get_boot_ns();
		caller = who_called(ctx);
		if (caller == CALLER_REARM) /* tcp_check_req: the SYN came again */
			return;
		if (caller == CALLER_EXPIRY || (caller == CALLER_UNKNOWN && due(timer))) {
			/* reqsk_timer_handler arms it again, or gives up: request_expired. */
			r->expired = now;
			r->why = expiry_reason(req);
			if (cpu)
				cpu->expiring = key;
			return;
		}
		if (!by_segment(caller, req) || !wait_for_segment(cpu, r, req, now))
			emit_request_end(r, now, request_end(caller, req, &r->event.conn));
	}
	bpf_map_delete_elem(&requests, &key);
}

/* request_expired: the timer has run and nobody armed it again. */
static __always_inline void request_expired(struct timer_list *timer)
{
	struct cpu_state *cpu = this_cpu();
	u64 key = (u64)request_of(timer);
	struct request *r;

	if (!cpu || cpu->expiring != key)
		return;
	cpu->expiring = 0;
	r = bpf_map_lookup_elem(&requests, &key);
	if (!r)
		return;
	emit_request_end(r, r->expired, r->why);
	bpf_map_delete_elem(&requests, &key);
}

#endif
