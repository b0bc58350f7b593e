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
static __always_inline void child_cloned(struct sock *sk)
{
	struct moment *moment = this_moment();
	struct life l = {
		.since = bpf_ktime_get_boot_ns(),
		.sk = (u64)sk,
		.state = TCP_SYN_RECV,
		.kind = DURATION_EXACT,
		.role = ROLE_SERVER,
		.flags = LIFE_CHILD,
		.owner.fd = -1,
	};
	u64 key = (u64)sk;

	if (bpf_map_update_elem(&socks, &key, &l, BPF_ANY))
		__sync_fetch_and_add(&untracked, 1);
	if (moment)
		moment->child = key;
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
	l->state = TCP_LISTEN;
	l->kind = DURATION_NONE;
	emit(l->since, l->sk, c, l, TCP_SYN_RECV, REASON_SYN_RECEIVED, 0, NULL);
	l->state = TCP_SYN_RECV;
	l->kind = DURATION_EXACT;
}

/* new_life begins to know a socket, in the state that it is about to leave. */
static __always_inline void new_life(struct life *l, struct sock *sk, u8 old)
{
	__builtin_memset(l, 0, sizeof(*l));
	l->sk = (u64)sk;
	l->state = old;
	/* The time between socket() and connect() or listen() is no TCP state. */
	l->kind = old == TCP_CLOSE ? DURATION_NONE : DURATION_UNKNOWN;
	l->owner.fd = -1;
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

/*
 * The program that the copies of seen() call. Inserted by the loader before anything
 * is attached, deleted with the map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} called SEC(".maps");

/* Not inlined, or clang moves its reads of l before the caller's NULL check. */
static __noinline int change_life(void *ctx, struct sock *sk, struct life *l, struct conn *c,
				  const struct edge *edge)
{
	u64 now = bpf_ktime_get_boot_ns();
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	u8 old = edge->old, new = edge->new, next = new;

	if (!tp)
		return 0;
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
	/* The mini-socket goes on in FIN_WAIT2: nothing happened. */
	if (next != old)
		emit(now, l->sk, c, l, next, reason(ctx, sk, tp, edge, next),
		     sk->sk_err, tp);
	l->state = new;
	l->since = now;
	l->kind = DURATION_EXACT;
	return 0;
}

/* told notes that a change was told, for the copies of seen() to come. */
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
 * without a life is new, or has ended.
 */
static __always_inline bool was_told(u64 sk, int state)
{
	struct moment *moment = this_moment();
	struct life *l;

	if (moment && moment->told == sk && moment->told_state == state)
		return true;
	l = bpf_map_lookup_elem(&socks, &sk);
	return l ? l->state == state : state == TCP_CLOSE;
}

/* Where owner_source() or reason() ask. The worker of MPTCP closes without owning. */
static __always_inline bool needs_released(const struct edge *edge)
{
	return edge->in_task || edge->new == TCP_FIN_WAIT1 || edge->new == TCP_LAST_ACK ||
	       edge->new == TCP_CLOSE;
}

/* state_change tells one change of state, or notes what has to wait. */
static __always_inline int state_change(void *ctx, struct sock *sk, int old, int new)
{
	struct edge edge = {.old = old, .new = new, .in_task = sk->sk_lock.owned != 0};
	struct inet_sock *inet = (void *)sk;
	u64 key = (u64)sk;
	struct life fresh, *l;
	struct conn c;

	if (old == TCP_LISTEN && new == TCP_SYN_RECV) {
		child_cloned(sk);
		return 0;
	}
	read_conn(&c, &sk->__sk_common);
	/* At * > CLOSE tcp_set_state has released the port; inet_sport still has it. */
	if (new != TCP_SYN_SENT)
		c.lport = bpf_ntohs(BPF_CORE_READ(inet, inet_sport));
	if (!selected(&c))
		return 0;
	edge.released = needs_released(&edge) && released(sk);
	l = bpf_map_lookup_elem(&socks, &key);
	if (!l) {
		new_life(&fresh, sk, old);
		/* A socket at its end needs no entry: tcp_destroy_sock follows or has been. */
		l = new != TCP_CLOSE ? begin_life(key, &fresh) : NULL;
	}
	if (!l)
		return change_life(ctx, sk, &fresh, &c, &edge);
	change_life(ctx, sk, l, &c, &edge);
	if (new == TCP_CLOSE && (close_is_end || sock_flag(sk, SOCK_DEAD)))
		bpf_map_delete_elem(&socks, &key);
	return 0;
}

/*
 * seen is where each event comes in. Several copies of it see each event, and the
 * first that runs has it told: the kernel does not nest a program in itself (6.1+,
 * __bpf_trace_run), so a softirq that interrupts one copy in a process needs
 * another. That can happen once; but since 7.0 tracepoints are preemptible
 * (SRCU-fast), and a process that is stopped in a copy blocks it for others.
 * What they call is one program, as the verifier takes its time for each.
 */
static __always_inline int seen(void *ctx, struct sock *sk, int old, int new, bool first_copy)
{
	u64 key = (u64)sk;

	/* MPTCP's own sockets, SCTP and DCCP come here too; self-transitions are no news. */
	if (sk->sk_protocol != IPPROTO_TCP || old == new)
		return 0;
	if (!first_copy && was_told(key, new))
		return 0;
	told(key, new);
	bpf_tail_call(ctx, &called, 0);
	return 0;
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
