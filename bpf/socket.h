/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Full sockets: every state change that inet_sk_set_state reports, less the
 * kernel's internal steps, plus what only we remember.
 */
#ifndef __SOCKET_H
#define __SOCKET_H

#include "trace.h"
#include "owner.h"
#include "reason.h"

/* Set where no tcp_destroy_sock tells when a socket is gone. */
const volatile bool close_is_end;

/* Set where state_change_3 is attached. */
const volatile bool third_copy;

static __always_inline u64 socket_cookie(struct sock *sk)
{
	/* The helper gives the socket a cookie if it has none yet. */
	if (has_socket_cookie)
		return bpf_get_socket_cookie(sk);
	return sk->__sk_common.skc_cookie.counter;
}

static __always_inline bool is_mptcp(const struct tcp_sock *tp)
{
	return bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp;
}

/* The owner of a child whose request nobody saw is that of its port's listener. */
static __always_inline void inherit_from_port(struct owner *o, const struct conn *c)
{
	u64 key = port_key(c);
	u64 *listener = bpf_map_lookup_elem(&listeners, &key);

	if (listener)
		inherit(o, bpf_map_lookup_elem(&socks, listener));
}

static __always_inline void remember_listener(struct sock *sk, const struct conn *c, u8 new)
{
	u64 addr = (u64)sk, key = port_key(c), *known;

	if (new == TCP_LISTEN) {
		bpf_map_update_elem(&listeners, &key, &addr, BPF_ANY);
		return;
	}
	known = bpf_map_lookup_elem(&listeners, &key);
	if (known && *known == addr)
		bpf_map_delete_elem(&listeners, &key);
}

/*
 * A child is cloned for the final ACK of a handshake, in the state SYN_RECV.
 * Up to 6.12 inet_csk_clone_lock changes the state before it sets addresses and
 * cookie (they are the listener's), and whether its request was seen shows only
 * at the cancelled timer, microseconds later. So the child waits: its next state
 * change tells what there is to tell.
 */
static __always_inline void child_cloned(u64 sk)
{
	struct moment *moment = this_moment();
	struct life l = {
		.since = bpf_ktime_get_boot_ns(),
		.sk = sk,
		.state = TCP_SYN_RECV,
		.kind = DURATION_EXACT,
		.role = ROLE_SERVER,
		.flags = LIFE_CHILD,
		.owner.fd = -1,
	};

	if (bpf_map_update_elem(&socks, &sk, &l, BPF_ANY))
		__sync_fetch_and_add(&untracked, 1);
	if (moment)
		moment->child = sk;
}

/* tell_late tells of the change that l began with, now that it can be told. */
static __always_inline void tell_late(struct life *l, const struct conn *c, u8 old, u8 reason)
{
	u8 state = l->state;

	l->state = old;
	l->kind = DURATION_NONE;
	emit(l->since, l->sk, c, l, state, reason, 0, NULL);
	l->state = state;
	l->kind = DURATION_EXACT;
}

/* child_grown makes up for what child_cloned could not do. */
static __always_inline void child_grown(struct life *l, const struct conn *c)
{
	struct moment *moment = this_moment();

	if (moment && moment->child == l->sk)
		moment->child = 0;
	l->flags &= ~LIFE_CHILD;
	if (l->flags & LIFE_REQUEST)
		return;
	if (l->owner.source == OWNER_NONE) /* Fast Open: it may be accepted already */
		inherit_from_port(&l->owner, c);
	tell_late(l, c, TCP_LISTEN, REASON_SYN_RECEIVED);
}

/*
 * connect_due: connect() has no local port yet (__inet_hash_connect finds one later),
 * and there is a filter for it. So the next change tells, if it is the right one.
 */
static __always_inline bool connect_due(const struct conn *c, u8 new)
{
	return filter_lports[0] && new == TCP_SYN_SENT && !c->lport;
}

/* connected makes up for that. It had no port then, and is told so. */
static __always_inline void connected(struct life *l, struct conn *c)
{
	u16 lport = c->lport;

	l->flags &= ~LIFE_CONNECT;
	c->lport = 0;
	tell_late(l, c, TCP_CLOSE, REASON_CONNECT);
	c->lport = lport;
}

/* new_life begins to know a socket, in the state that it is about to leave. */
static __always_inline void new_life(struct life *l, u64 sk, u8 old)
{
	__builtin_memset(l, 0, sizeof(*l));
	l->sk = sk;
	l->state = old;
	/* The time between socket() and connect() or listen() is no TCP state. */
	l->kind = old == TCP_CLOSE ? DURATION_NONE : DURATION_UNKNOWN;
	l->owner.fd = -1;
}

/*
 * unseen_change: the socket leaves a state that we never saw it enter. All copies of
 * state_change may be busy at once; and there are kernels that run no BPF program while
 * a thread of process 1 is current, not for a softirq either (some 6.18 guests). What
 * is still known belongs to this socket or, where its end was not seen, to another one.
 * Not inlined, or the verifier works through much of change_life a second time.
 */
static __noinline int unseen_change(struct life *l, struct sock *sk, u8 old)
{
	__sync_fetch_and_add(&unseen, 1);
	if (l->cookie != socket_cookie(sk)) {
		new_life(l, (u64)sk, old);
		return 0;
	}
	l->flags &= ~(LIFE_CHILD | LIFE_CONNECT); /* too late to tell */
	l->kind = DURATION_UNKNOWN;
	return 0;
}

static __always_inline struct life *begin_life(u64 key, const struct life *l)
{
	if (bpf_map_update_elem(&socks, &key, l, BPF_NOEXIST)) {
		__sync_fetch_and_add(&untracked, 1);
		return NULL;
	}
	return bpf_map_lookup_elem(&socks, &key);
}

/*
 * hand_over gives what is known of a full socket to the mini-socket that
 * tcp_time_wait made for it just before this state change to CLOSE. It returns
 * the state in which the connection goes on, TCP_CLOSE where there is no
 * mini-socket.
 */
static __always_inline u8 hand_over(const struct life *l, const struct conn *c, u64 now)
{
	u64 key = conn_key(c);
	struct life *mini = bpf_map_lookup_elem(&timewaits, &key);
	u64 tw;
	u8 state;

	if (!mini || !(mini->flags & LIFE_MINI))
		return TCP_CLOSE;
	tw = mini->sk;
	state = mini->state;
	*mini = *l;
	mini->sk = tw;
	mini->state = state;
	mini->flags = 0;
	mini->owner.fd = -1;
	if (state != l->state) {
		mini->since = now;
		mini->kind = DURATION_EXACT;
	}
	return state;
}

static __always_inline u8 owner_source(const struct edge *edge)
{
	switch (edge->new) {
	case TCP_SYN_SENT:
		return OWNER_CONNECT;
	case TCP_LISTEN:
		return OWNER_LISTEN;
	default:
		return edge->released ? OWNER_CLOSE : OWNER_USE;
	}
}

/* Not inlined, or clang moves its reads of l before the caller's NULL check. */
static __noinline int change_life(void *ctx, struct tcp_sock *tp, struct life *l, struct conn *c,
				  const struct edge *edge)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_boot_ns();
	u8 old = edge->old, new = edge->new, next = new;

	if (l->state != old && !(l->flags & LIFE_ROW_DUE))
		unseen_change(l, sk, old);
	if (!l->cookie) {
		l->cookie = socket_cookie(sk);
		l->cgroup = cgroup_id(sk);
		l->uid = sk->sk_uid.val;
		l->mptcp = is_mptcp(tp);
	}
	l->state = old;
	l->flags &= ~LIFE_ROW_DUE;
	if (l->flags & LIFE_CHILD)
		child_grown(l, c);
	if (filter_lports[0] && l->flags & LIFE_CONNECT)
		connected(l, c);
	if (edge->in_task && sk->sk_err != ECONNABORTED) /* SOCK_DESTROY: current is the killer */
		own(&l->owner, owner_source(edge));
	if (new == TCP_SYN_SENT && edge->in_task)
		take_stack(ctx, l);
	if (old == TCP_CLOSE)
		l->role = new == TCP_LISTEN ? ROLE_LISTENER : ROLE_CLIENT;
	if (new == TCP_LISTEN || old == TCP_LISTEN)
		remember_listener(sk, c, new);
	if (new == TCP_CLOSE && (old == TCP_FIN_WAIT2 || old == TCP_CLOSING))
		next = hand_over(l, c, now);
	if (connect_due(c, new))
		l->flags |= LIFE_CONNECT;
	else if (next != old) /* else the mini-socket goes on in FIN_WAIT2: nothing happened */
		emit(now, l->sk, c, l, next, reason(ctx, sk, tp, edge, next),
		     sk->sk_err, tp);
	l->state = new;
	l->since = now;
	l->kind = DURATION_EXACT;
	return 0;
}

/* told notes that a change was told, for the copies of state_change() to come. */
static __always_inline void told(u64 sk, int state)
{
	struct moment *moment = this_moment();

	if (!moment)
		return;
	moment->told = sk;
	moment->told_state = state;
}

/*
 * was_told: mostly this CPU did it a moment ago, else the socket's life knows. One
 * without a life is new, or has ended. The last copy clears the note: the next socket
 * at that address may get to the same state before anything else is told on this CPU.
 */
static __always_inline bool was_told(u64 sk, int state, bool last_copy)
{
	struct moment *moment = this_moment();
	struct life *l;

	if (moment && moment->told == sk && moment->told_state == state) {
		if (last_copy)
			moment->told = 0;
		return true;
	}
	l = bpf_map_lookup_elem(&socks, &sk);
	return l ? l->state == state : state == TCP_CLOSE;
}

/* Where owner_source() or reason() ask. The worker of MPTCP closes without owning. */
static __always_inline bool needs_released(const struct edge *edge)
{
	return edge->in_task || edge->new == TCP_FIN_WAIT1 || edge->new == TCP_LAST_ACK ||
	       edge->new == TCP_CLOSE;
}

/*
 * Whether a child may be of a connection that is asked for. Up to 6.12 it has no
 * remote end yet; its local port is the listener's.
 */
static __always_inline bool child_selected(struct conn *c)
{
	return c->rport ? selected(c) : port_selected(filter_lports, c->lport);
}

/* changed tells one change of state, or notes what has to wait. */
static __always_inline int changed(void *ctx, struct tcp_sock *tp, int old, int new)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct edge edge = {.old = old, .new = new, .in_task = sk->sk_lock.owned != 0};
	struct life fresh, *l;
	u64 key = (u64)tp;
	struct conn c;

	read_conn(&c, &sk->__sk_common);
	if (old == TCP_LISTEN && new == TCP_SYN_RECV) {
		if (child_selected(&c))
			child_cloned(key);
		return 0;
	}
	/* At * > CLOSE tcp_set_state has released the port; inet_sport still has it. */
	if (new != TCP_SYN_SENT)
		c.lport = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	if (!selected(&c)) {
		if (filter_lports[0] && old == TCP_SYN_SENT) /* see connect_due */
			bpf_map_delete_elem(&socks, &key);
		return 0;
	}
	edge.released = needs_released(&edge) && released(sk);
	l = bpf_map_lookup_elem(&socks, &key);
	if (!l) {
		new_life(&fresh, key, old);
		/* A socket at its end needs no entry: tcp_destroy_sock follows or has been. */
		l = new != TCP_CLOSE ? begin_life(key, &fresh) : NULL;
	}
	if (!l)
		return change_life(ctx, tp, &fresh, &c, &edge);
	change_life(ctx, tp, l, &c, &edge);
	if (new == TCP_CLOSE && (close_is_end || sock_flag(sk, SOCK_DEAD)))
		bpf_map_delete_elem(&socks, &key);
	return 0;
}

/*
 * state_change is the heart. Several copies of it see each event, and the first
 * that runs tells it: the kernel does not nest a program in itself (6.1+,
 * __bpf_trace_run), so a softirq that interrupts one copy in a process needs
 * another. That can happen once; but since 7.0 tracepoints are preemptible
 * (SRCU-fast), and a process that is stopped in a copy blocks it for others.
 *
 * The copies may not share their body by a tail call. It would be entered twice on a
 * CPU then, with one stack: since 6.13 a program has its own, for each CPU, and what
 * protects that is only that it does not nest. A kernel 7.2 crashed of it.
 *
 * The socket is read through tp: each time that the verifier sees a pointer followed
 * that it trusts, as it does sk, it searches all types of the kernel by name, which
 * takes a millisecond (btf_nested_type_is_trusted, seen on 6.18).
 */
static __always_inline int state_change(void *ctx, struct sock *sk, int old, int new, int copy)
{
	struct tcp_sock *tp;
	u64 key = (u64)sk;

	/* MPTCP's own sockets, SCTP and DCCP come here too; self-transitions are no news. */
	if (sk->sk_protocol != IPPROTO_TCP || old == new)
		return 0;
	if (copy > 1 && was_told(key, new, copy == 3 || !third_copy))
		return 0;
	told(key, new);
	tp = bpf_skc_to_tcp_sock(sk);
	return tp ? changed(ctx, tp, old, new) : 0;
}

/*
 * socket_destroyed forgets a socket that its process closed when the connection was
 * over. One that was closed before has been forgotten at its last state change: the
 * kernel may destroy it in a softirq that interrupts this very program, unseen.
 */
static __always_inline void socket_destroyed(struct sock *sk)
{
	u64 key = (u64)sk;

	bpf_map_delete_elem(&socks, &key);
}

#endif
