/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Request sockets: half-open connections, from the first SYN to the end of the
 * handshake. They too are seen through their timer, which repeats the SYN-ACK.
 * SYN cookies and Fast Open have none: socket.h tells their SYN_RECV.
 */
#ifndef __REQUEST_H
#define __REQUEST_H

#include "trace.h"
#include "owner.h"
#include "caller.h"

static __always_inline struct request_sock *request_of(struct timer_list *timer)
{
	return (void *)timer - bpf_core_field_offset(struct request_sock, rsk_timer);
}

static __always_inline bool request_is_mptcp(struct request_sock *req)
{
	struct tcp_request_sock *treq = (void *)req;

	return bpf_core_field_exists(treq->is_mptcp) && BPF_CORE_READ(treq, is_mptcp);
}

/* describe_request fills in the event that a request sock begins with. */
static __always_inline void describe_request(struct request *r, struct request_sock *req,
					     const struct conn *c, u64 now)
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
	r->since = now;
	r->event.time = now;
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

/* request_armed: the first SYN, or the SYN-ACK was sent once more. */
static __always_inline void request_armed(struct timer_list *timer)
{
	struct request_sock *req = request_of(timer);
	struct cpu_state *cpu = this_cpu();
	u64 key = (u64)req, now;
	struct sock_head head;
	struct request r;
	struct conn c;

	if (cpu && cpu->expiring == key)
		cpu->expiring = 0;
	if (bpf_map_lookup_elem(&requests, &key))
		return;
	probe_conn(&c, req, &head);
	if (!selected(&c))
		return;
	now = bpf_ktime_get_boot_ns();
	describe_request(&r, req, &c, now);
	if (bpf_map_update_elem(&requests, &key, &r, BPF_ANY)) {
		/* Not emitted: its end, or its child, could not be joined to it. */
		__sync_fetch_and_add(&untracked, 1);
		return;
	}
	emit_request(&r, now);
}

/*
 * request_completed joins a request to the child that was cloned for it a cpu
 * ago on this CPU. (req->sk is set only later, inet_csk_reqsk_queue_add.)
 */
static __always_inline bool request_completed(const struct request *r)
{
	struct cpu_state *cpu = this_cpu();
	struct sock_info *info;
	struct sock_head head;
	struct conn c;

	if (!cpu || !cpu->child)
		return false;
	probe_conn(&c, (void *)cpu->child, &head);
	if (conn_key(&c) != conn_key(&r->event.conn))
		return false;
	info = bpf_map_lookup_elem(&socks, &cpu->child);
	cpu->child = 0;
	if (!info)
		return true;
	info->flags |= INFO_REQUEST;
	info->since = r->since;
	info->owner.pid = r->event.pid;
	info->owner.source = r->event.owner_source;
	__builtin_memcpy(info->owner.comm, r->event.comm, sizeof(info->owner.comm));
	return true;
}

/* request_closed turns what began the half-open connection into its end. */
static __always_inline void request_closed(struct request *r, u64 now, u8 why)
{
	r->event.time = now;
	r->event.duration = now - r->since;
	r->event.duration_kind = DURATION_EXACT;
	r->event.old_state = TCP_SYN_RECV;
	r->event.new_state = TCP_CLOSE;
	r->event.reason = why;
}

static __always_inline bool listens(struct request_sock *req)
{
	struct sock *listener = BPF_CORE_READ(req, __req_common.skc_listener);

	return BPF_CORE_READ(listener, __sk_common.skc_state) == TCP_LISTEN;
}

/*
 * expiry_reason: why the last SYN-ACK timer gave up. acked: the final ACK came,
 * but the accept queue had no room for it (tcp_v4_syn_recv_sock).
 */
static __always_inline u8 expiry_reason(struct request_sock *req)
{
	struct sock *listener = BPF_CORE_READ(req, __req_common.skc_listener);
	struct inet_request_sock *ireq = (void *)req;

	if (!listens(req))
		return REASON_LISTENER_CLOSED;
	if (BPF_CORE_READ_BITFIELD_PROBED(ireq, acked) &&
	    BPF_CORE_READ(listener, sk_ack_backlog) > BPF_CORE_READ(listener, sk_max_ack_backlog))
		return REASON_BACKLOG_FULL;
	return REASON_SYN_TIMEOUT;
}

static __always_inline u8 request_end(u32 caller, struct request_sock *req)
{
	switch (caller) {
	case CALLER_CHECK_REQ:
		return REASON_RST_RECEIVED;
	case CALLER_ABORT:
		return REASON_ABORTED;
	case CALLER_NETNS_EXIT:
		return REASON_NETNS_EXIT;
	case CALLER_RECEIVE:
		/* tcp_v4_rcv ends it when nobody listens any more; tcp_check_req may have
		 * left the stack by a sibling call (arm64). */
		return listens(req) ? REASON_RST_RECEIVED : REASON_LISTENER_CLOSED;
	default:
		return REASON_NONE;
	}
}

/*
 * request_cancelled: by its expiry, or by what ended it. A timer that is due may
 * still be cancelled by another, when its softirq was held up: only the stack tells.
 */
static __always_inline void request_cancelled(void *ctx, struct timer_list *timer)
{
	struct request_sock *req = request_of(timer);
	struct cpu_state *cpu = this_cpu();
	u64 key = (u64)req, now;
	struct request *r;
	u32 caller;

	r = bpf_map_lookup_elem(&requests, &key);
	if (!r)
		return;
	if (!request_completed(r)) {
		now = bpf_ktime_get_boot_ns();
		caller = who_called(ctx);
		if (caller == CALLER_REARM) /* tcp_check_req: the SYN came again */
			return;
		if (caller == CALLER_EXPIRY || (caller == CALLER_UNKNOWN && due(timer))) {
			/* reqsk_timer_handler arms it again, or gives up: request_expired. */
			request_closed(r, now, expiry_reason(req));
			if (cpu)
				cpu->expiring = key;
			return;
		}
		request_closed(r, now, request_end(caller, req));
		emit_request(r, now);
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
	emit_request(r, r->event.time);
	bpf_map_delete_elem(&requests, &key);
}

#endif
