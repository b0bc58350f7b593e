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
#include "syscall.h"

/* Set where no tcp_destroy_sock says when a socket is gone. */
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

/*
 * listener_of finds the listener that a child is being cloned from, whatever shares its
 * port. Until the child joins the list of those that do (__inet_inherit_port), its node of
 * that list is a copy of the listener's (sock_copy in sk_clone_lock): what points to the
 * listener's node is known. If the list has changed since, the two nodes differ, and the
 * answer is NULL.
 */
static __always_inline struct sock_info *listener_of(const struct sock *child)
{
	const struct hlist_node *copy = &child->__sk_common.skc_bind_node;
	struct hlist_node node, *at = NULL;
	struct sock_info *listener;
	u64 key;

	bpf_probe_read_kernel(&at, sizeof(at), copy->pprev);
	if (bpf_probe_read_kernel(&node, sizeof(node), at) || node.next != copy->next || node.pprev != copy->pprev)
		return NULL;
	key = (u64)at - bpf_core_field_offset(struct sock_common, skc_bind_node);
	listener = bpf_map_lookup_elem(&socks, &key);
	return listener && listener->state == TCP_LISTEN ? listener : NULL;
}

/*
 * share_owner: the subflows of an MPTCP connection belong to whoever has the first one, which
 * a process connects or accepts. The others are opened by the kernel (mptcp_worker,
 * subflow_syn_recv_sock).
 */
static __noinline int share_owner(struct sock_info *info, const struct tcp_sock *tp)
{
	struct mptcp_subflow_context *subflow;
	struct sock_info *first;
	struct sock *msk;
	u64 key;

	if (!bpf_core_type_exists(struct mptcp_subflow_context))
		return 0;
	subflow = BPF_CORE_READ(tp, inet_conn.icsk_ulp_data);
	msk = BPF_CORE_READ(subflow, conn);
	key = (u64)BPF_CORE_READ((struct mptcp_sock *)msk, first);
	first = bpf_map_lookup_elem(&socks, &key);
	if (first && key != info->sk && first->owner.source != OWNER_NONE)
		info->owner = first->owner;
	return 0;
}

/*
 * A child is cloned for the final ACK of a handshake, in the state SYN_RECV.
 * Up to 6.12 inet_csk_clone_lock changes the state before it sets addresses and
 * cookie (they are the listener's), and whether its request was seen shows only
 * at the cancelled timer, microseconds later. So the child waits: its next state
 * change reports it.
 */
static __always_inline void child_cloned(const struct sock *child, u64 sk)
{
	struct cpu_state *cpu = this_cpu();
	struct sock_info info = {
		.since = bpf_ktime_get_boot_ns(),
		.sk = sk,
		.state = TCP_SYN_RECV,
		.kind = DURATION_EXACT,
		.role = ROLE_SERVER,
		.flags = INFO_CHILD,
		.owner.fd = -1,
	};

	inherit(&info.owner, listener_of(child));
	bpf_map_update_elem(&socks, &sk, &info, BPF_ANY); /* or changed() tries again, and counts it */
	if (cpu)
		cpu->child = sk;
}

/* emit_late emits the transition that began info's state, now that it can be described. */
static __always_inline void emit_late(struct sock_info *info, const struct conn *c, u8 old, u8 reason)
{
	u8 state = info->state, kind = info->kind;

	info->state = old;
	info->kind = DURATION_NONE;
	emit(info->since, info->sk, c, info, state, reason, 0, NULL);
	info->state = state;
	info->kind = kind;
}

/* child_grown makes up for what child_cloned could not do. */
static __always_inline void child_grown(struct sock_info *info, const struct conn *c)
{
	struct cpu_state *cpu = this_cpu();

	if (cpu && cpu->child == info->sk)
		cpu->child = 0;
	info->flags &= ~INFO_CHILD;
	if (info->flags & INFO_REQUEST)
		return;
	emit_late(info, c, TCP_LISTEN, REASON_SYN_RECEIVED);
}

/*
 * connect_due: connect() has no local port yet (__inet_hash_connect finds one later),
 * and there is a filter for it. So the next change reports it, if it is the right one.
 */
static __always_inline bool connect_due(const struct conn *c, u8 new)
{
	return filter_lports[0] && new == TCP_SYN_SENT && !c->lport;
}

/* connected makes up for that. There was no port then, and the event says so. */
static __always_inline void connected(struct sock_info *info, struct conn *c)
{
	u16 lport = c->lport;

	info->flags &= ~INFO_CONNECT;
	c->lport = 0;
	emit_late(info, c, TCP_CLOSE, REASON_CONNECT);
	c->lport = lport;
}

/* init_info is for a socket that was not known, in the state that it is about to leave. */
static __always_inline void init_info(struct sock_info *info, u64 sk, u8 old)
{
	u64 *words = (u64 *)info;

	_Static_assert(sizeof(*info) % sizeof(*words) == 0, "whole words only");
	/* Zeros, but the verifier must not know: it follows each value on the stack by itself. */
#pragma unroll
	for (int i = 0; i < sizeof(*info) / sizeof(*words); i++)
		words[i] = nothing * 0x100000001ULL; /* all 64 bits of it */
	info->sk = sk;
	info->state = old;
	/* The time between socket() and connect() or listen() is not a TCP state. */
	info->kind = old == TCP_CLOSE ? DURATION_NONE : DURATION_UNKNOWN;
	info->owner.fd = -1;
}

/*
 * missed_transition: the socket leaves a state that we never saw it enter. All copies of
 * state_change may be busy at once; and there are kernels that run no BPF program while
 * a thread of process 1 is current, not for a softirq either (some 6.18 guests). What
 * is still known belongs to this socket or, where its end was not seen, to another one.
 * Not inlined, or the verifier works through much of change_state a second time.
 */
static __noinline int missed_transition(struct sock_info *info, struct sock *sk, u8 old)
{
	__sync_fetch_and_add(&missed, 1);
	if (info->cookie != socket_cookie(sk)) {
		init_info(info, (u64)sk, old);
		return 0;
	}
	info->flags &= ~(INFO_CHILD | INFO_CONNECT); /* too late to tell */
	info->kind = DURATION_UNKNOWN;
	return 0;
}

/* insert_info counts a socket for which there is no room, once. */
static __always_inline struct sock_info *insert_info(u64 key, const struct sock_info *info)
{
	if (bpf_map_update_elem(&socks, &key, info, BPF_NOEXIST)) {
		if (!(info->flags & INFO_COUNTED))
			__sync_fetch_and_add(&untracked, 1);
		return NULL;
	}
	return bpf_map_lookup_elem(&socks, &key);
}

/*
 * goes_on returns the state in which a connection continues when its full socket is closed:
 * that of the mini-socket that tcp_time_wait made for it just before, TCP_CLOSE where
 * there is none. One that found no room in timewaits is noted here, where it is once.
 */
static __always_inline u8 goes_on(const struct conn *c, struct transition *transition)
{
	u64 key = conn_key(c);
	struct sock_info *mini = bpf_map_lookup_elem(&timewaits, &key);
	struct cpu_state *cpu = this_cpu();

	if (mini && mini->flags & INFO_MINI)
		return mini->state;
	if (!cpu || cpu->no_room != key)
		return TCP_CLOSE;
	cpu->no_room = 0;
	transition->no_room = 1;
	return cpu->no_room_state;
}

/*
 * hand_over gives what is known of a full socket to its mini-socket, and returns the state
 * in which that goes on. It is TIME_WAIT where the FIN came, on another CPU, after goes_on
 * looked: timewait_moved left it to us to emit that.
 */
static __always_inline u8 hand_over(const struct sock_info *info, const struct conn *c, u64 now, u8 next)
{
	u64 key = conn_key(c);
	struct sock_info *mini = bpf_map_lookup_elem(&timewaits, &key);
	u64 tw;
	u8 state;

	if (!mini || !(mini->flags & INFO_MINI))
		return next;
	tw = mini->sk;
	state = mini->state;
	*mini = *info;
	mini->sk = tw;
	mini->state = state;
	mini->flags = 0;
	mini->owner.fd = -1;
	if (mini->owner.holder == HOLDER_HELD) /* of the full socket, which is in CLOSE now */
		mini->owner.holder = HOLDER_UNKNOWN;
	if (state != info->state) {
		mini->since = now;
		mini->kind = DURATION_EXACT;
	}
	return state;
}

static __always_inline u8 owner_source(const struct transition *transition)
{
	switch (transition->new) {
	case TCP_SYN_SENT:
		return OWNER_CONNECT;
	case TCP_LISTEN:
		return OWNER_LISTEN;
	default:
		return transition->released ? OWNER_CLOSE : OWNER_USE;
	}
}

/*
 * unaccepted: a child has no struct socket until accept() grafts one, and an orphan, which
 * had one, is marked dead (sock_orphan). Subflows of MPTCP never need one of their own.
 */
static __always_inline bool unaccepted(const struct sock *sk, const struct sock_info *info)
{
	return !sk->sk_socket && !sock_flag(sk, SOCK_DEAD) && !info->mptcp;
}

/* begin_holder says what the socket itself proves about its holder. own() says more. */
static __always_inline void begin_holder(struct sock_info *info, const struct sock *sk, const struct transition *transition)
{
	info->flags &= ~INFO_UNACCEPTED;
	info->owner.holder = HOLDER_UNKNOWN;
	if (unaccepted(sk, info)) {
		if (transition->old != TCP_SYN_RECV)
			info->flags |= INFO_UNACCEPTED;
	} else if (!info->mptcp && (transition->released || sock_flag(sk, SOCK_DEAD))) {
		info->owner.holder = HOLDER_GONE;
	}
}

/*
 * The system calls by which a process drops a descriptor, or takes one and drops it at
 * once. 6 is close() of a 32-bit process.
 */
static __always_inline bool gives_up(u64 call, bool arm64)
{
	if (call == 436 || call == 426) /* close_range, io_uring_enter */
		return true;
	if (arm64) /* close, dup3, execve, execveat, recvmsg, recvmmsg, unshare */
		return call == 57 || call == 24 || call == 221 || call == 281 || call == 212 || call == 243 || call == 97;
	/* close, dup2, dup3, execve, execveat, recvmsg, recvmmsg, unshare */
	return call == 3 || call == 6 || call == 33 || call == 292 || call == 59 || call == 322 || call == 47 ||
	       call == 299 || call == 272;
}

/*
 * only_looks: a process that looks at a file of another one (an iterator over open files,
 * readlink() of /proc/PID/fd/N) holds a reference for a moment. If that is the last one, the
 * close() is finished in its name, at the end of its system call (____fput). And a process
 * that walks over the socket tables (iter/tcp, ss) handles what came while it held the
 * socket's lock (release_sock). So a process that is not known to have the socket must drop
 * a descriptor, or work on one that leads to it. Not inlined: see keep_top.
 */
static __noinline int only_looks(const struct sock_info *info, u8 source)
{
	const struct owner *o = &info->owner;
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct system_call call;
	struct file *file;

	if (source == OWNER_CONNECT || source == OWNER_LISTEN || (o->source != OWNER_NONE && o->pid == pid))
		return 0;
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs)) /* 5.15+ */
		return pid == self_tgid;
	if (!current_call(&call))
		return 0;
	if (source == OWNER_CLOSE)
		return !gives_up(call.number, call.arm64);
	if (info->mptcp || call.number == 426 || call.number == (call.arm64 ? 76 : 275)) /* io_uring_enter, splice */
		return 0;
	file = file_of((u32)call.first);
	return !file || (u64)tcp_sock_of(file) != info->sk;
}

/* act: current works on the socket. */
static __always_inline void act(struct sock_info *info, const struct transition *transition)
{
	u8 source = owner_source(transition);

	if (only_looks(info, source))
		return;
	own(&info->owner, source);
	if (source != OWNER_CLOSE)
		info->owner.pass = pass;
	if (info->mptcp) /* its file is another one's, which may be open yet */
		info->owner.holder = HOLDER_UNKNOWN;
}

/*
 * decide finds out why a socket leaves its state, and where it goes on. Not inlined, and not
 * called by change_state: the stack of who_called must not add to that one's.
 */
static __noinline u32 decide(void *ctx, struct tcp_sock *tp, struct transition *transition, const struct conn *c)
{
	u8 old = transition->old, next = transition->new;

	if (next == TCP_CLOSE && (old == TCP_FIN_WAIT2 || old == TCP_CLOSING))
		next = goes_on(c, transition);
	transition->next = forget(next);
	return forget(reason(ctx, tp, transition, c, forget(next)));
}

/* Not inlined, or clang moves its reads of info before the caller's NULL check. */
static __noinline int change_state(void *ctx, struct tcp_sock *tp, struct sock_info *info, struct conn *c,
				   const struct transition *transition)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_boot_ns();
	u8 old = transition->old, new = transition->new, next = transition->next, why = transition->why;

	if (info->state != old && !(info->flags & INFO_ROW_DUE))
		missed_transition(info, sk, old);
	if (!info->cookie) {
		info->cookie = socket_cookie(sk);
		info->cgroup = cgroup_id(sk, true);
		info->mptcp = is_mptcp(tp);
	}
	info->uid = sk->sk_uid.val; /* accept() gives it to who accepts (sock_graft) */
	info->state = old;
	info->flags &= ~INFO_ROW_DUE;
	if (info->flags & INFO_CHILD)
		child_grown(info, c);
	if (filter_lports[0] && info->flags & INFO_CONNECT)
		connected(info, c);
	begin_holder(info, sk, transition);
	if (transition->in_task && why != REASON_KILLED) /* then current is the killer */
		act(info, transition);
	if (info->mptcp && (info->owner.source == OWNER_NONE || info->owner.source == OWNER_INHERITED))
		share_owner(info, tp);
	if (next != new) {
		next = hand_over(info, c, now, next);
		if (next != transition->next)
			why = REASON_FIN_RECEIVED;
	}
	if (new == TCP_SYN_SENT && transition->in_task)
		take_stack(ctx, info);
	if (old == TCP_CLOSE)
		info->role = new == TCP_LISTEN ? ROLE_LISTENER : ROLE_CLIENT;
	if (connect_due(c, new))
		info->flags |= INFO_CONNECT;
	else if (next != old) /* else the mini-socket goes on in FIN_WAIT2: nothing happened */
		emit(now, info->sk, c, info, next, why, caused_by_error(sk, why) ? sk->sk_err : 0, tp);
	info->state = new;
	info->since = now;
	info->kind = DURATION_EXACT;
	return 0;
}

/* note_emitted tells the copies of state_change() that run next that this one emitted a transition. */
static __always_inline void note_emitted(u64 sk, int state)
{
	struct cpu_state *cpu = this_cpu();

	if (!cpu)
		return;
	cpu->last_emitted = sk;
	cpu->last_emitted_state = state;
}

/*
 * already_emitted: as a rule this CPU did it a moment ago; otherwise the socket's entry
 * knows. A socket without an entry is new, or has ended. The last copy clears the note: the
 * next socket at that address may reach the same state before this CPU emits anything else.
 */
static __always_inline bool already_emitted(u64 sk, int state, bool last_copy)
{
	struct cpu_state *cpu = this_cpu();
	struct sock_info *info;

	if (cpu && cpu->last_emitted == sk && cpu->last_emitted_state == state) {
		if (last_copy)
			cpu->last_emitted = 0;
		return true;
	}
	info = bpf_map_lookup_elem(&socks, &sk);
	return info ? info->state == state : state == TCP_CLOSE;
}

/* Where owner_source() or reason() ask. The worker of MPTCP closes without owning. */
static __always_inline bool needs_released(const struct transition *transition)
{
	return transition->in_task || transition->new == TCP_FIN_WAIT1 || transition->new == TCP_LAST_ACK ||
	       transition->new == TCP_CLOSE;
}

/*
 * Whether a child may be of a connection that is asked for. Up to 6.12 it has no
 * remote end yet; its local port is the listener's. One that turns out not to be gives
 * its place in socks back at its next change.
 */
static __always_inline bool child_selected(struct conn *c)
{
	return c->rport ? selected(c) : port_selected(filter_lports, c->lport);
}

/*
 * note_listener remembers whose a listener outside the filter is, for its children; see
 * listener_selected. tcp_destroy_sock deletes it, if it does not end here by shutdown().
 */
static __always_inline void note_listener(struct tcp_sock *tp, const struct conn *c, u8 new)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct sock_info fresh;
	u64 key = (u64)tp;

	if (new != TCP_LISTEN) {
		bpf_map_delete_elem(&socks, &key);
		return;
	}
	if (!listener_selected(c))
		return;
	init_info(&fresh, key, new);
	fresh.role = ROLE_LISTENER;
	fresh.cookie = socket_cookie(sk);
	fresh.cgroup = cgroup_id(sk, true);
	fresh.uid = sk->sk_uid.val;
	own(&fresh.owner, OWNER_LISTEN);
	insert_info(key, &fresh);
}

/* held: there is a descriptor, so the socket outlives its connection. */
static __always_inline bool held(const struct sock *sk, const struct transition *transition)
{
	return !close_is_end && !sock_flag(sk, SOCK_DEAD) && !transition->released;
}

/*
 * is_new: a socket that finds no room is counted at its first state change, a child at that
 * to ESTABLISHED as a rule, unless its request was counted a moment ago on this CPU. (Not
 * inlined, as the stack is short.)
 */
static __noinline bool is_new(u64 sk, int old)
{
	struct cpu_state *cpu = this_cpu();

	if (cpu && cpu->counted == sk) {
		cpu->counted = 0;
		return false;
	}
	return old == TCP_CLOSE || old == TCP_SYN_RECV;
}

/* changed reports one change of state, or notes what has to wait. */
static __always_inline int changed(void *ctx, struct tcp_sock *tp, int old, int new)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct transition transition = {.old = old, .new = new, .in_task = forget(sk->sk_lock.owned != 0)};
	struct sock_info fresh, *info;
	u64 key = (u64)tp;
	struct conn c;
	bool counted; /* in untracked */

	read_conn(&c, &sk->__sk_common);
	if (old == TCP_LISTEN && new == TCP_SYN_RECV) {
		if (child_selected(&c))
			child_cloned(sk, key);
		return 0;
	}
	/* At * > CLOSE tcp_set_state has released the port; inet_sport still has it. */
	if (new != TCP_SYN_SENT)
		c.lport = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	if (!selected(&c)) {
		if (new == TCP_LISTEN || old == TCP_LISTEN)
			note_listener(tp, &c, new);
		else if (old == TCP_SYN_RECV || (filter_lports[0] && old == TCP_SYN_SENT))
			bpf_map_delete_elem(&socks, &key); /* see child_selected, connect_due */
		return 0;
	}
	transition.released = forget(needs_released(&transition) && released(sk));
	transition.why = decide(ctx, tp, &transition, &c);
	info = bpf_map_lookup_elem(&socks, &key);
	if (!info) {
		init_info(&fresh, key, old);
		fresh.flags = is_new(key, old) ? 0 : INFO_COUNTED;
		/* An orphan at its end needs no entry: tcp_destroy_sock follows or has been. */
		info = new != TCP_CLOSE || held(sk, &transition) ? insert_info(key, &fresh) : NULL;
	}
	counted = forget(!info || info->flags & INFO_COUNTED);
	if (transition.no_room && !counted)
		__sync_fetch_and_add(&untracked, 1);
	if (!info)
		return change_state(ctx, tp, &fresh, &c, &transition);
	change_state(ctx, tp, info, &c, &transition);
	if (new == TCP_CLOSE && (close_is_end || sock_flag(sk, SOCK_DEAD)))
		bpf_map_delete_elem(&socks, &key);
	return 0;
}

/*
 * state_change is the heart. Several copies of it see each event, and the first
 * that runs reports it: the kernel does not nest a program in itself (6.1+,
 * __bpf_trace_run), so a softirq that interrupts one copy in a process needs
 * another. That can happen once; but since 7.0 tracepoints are preemptible
 * (SRCU-fast), and a process that is stopped in a copy blocks it for others.
 *
 * The copies may not share their body by a tail call. It would be entered twice on a
 * CPU then, with one stack: since 6.13 a program has its own, for each CPU, and what
 * protects that is only that it does not nest. Linux 7.2 crashed because of it.
 *
 * The socket is read through tp: each time that the verifier sees a pointer followed
 * that it trusts, as it does sk, it searches all types of the kernel by name, which
 * takes a millisecond (btf_nested_type_is_trusted, seen on 6.18).
 */
static __always_inline int state_change(void *ctx, struct sock *sk, int old, int new, int copy)
{
	struct tcp_sock *tp;
	u64 key = (u64)sk;

	/* MPTCP's own sockets, SCTP and DCCP come here too; self-transitions change nothing. */
	if (sk->sk_protocol != IPPROTO_TCP || old == new)
		return 0;
	if (copy > 1 && already_emitted(key, new, copy == 3 || !third_copy))
		return 0;
	note_emitted(key, new);
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
