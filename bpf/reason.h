/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Why a full socket left its state. The state that it leaves comes first, sk_err
 * second: it may be an old one. connect() after a disconnect keeps the error of
 * the first connection, IP_RECVERR and sockmap set one that ends nothing.
 */
#ifndef __REASON_H
#define __REASON_H

#include "trace.h"
#include "caller.h"
#include "neighbor.h"
#include "syscall.h"

#define EPIPE 32
#define ECONNRESET 104
#define ETIMEDOUT 110
#define EHOSTUNREACH 113
#define RCV_SHUTDOWN 1
#define SEND_SHUTDOWN 2
#define SOCK_DEAD 0 /* bit numbers of enum sock_flags, include/net/sock.h */
#define SOCK_DONE 1
#define SOCK_LINGER 4

/* What happens to a socket, in one argument: a BPF function takes five at most. */
struct transition {
	u8 old;
	u8 new;
	u8 in_task;
	u8 released; /* the file is gone, see needs_released() */
	u8 next;     /* the state in which the connection goes on, see goes_on() */
	u8 why;      /* see reason() */
	u8 no_room;  /* its mini-socket found none in timewaits */
};

static __always_inline bool sock_flag(const struct sock *sk, int flag)
{
	return sk->__sk_common.skc_flags & (1UL << flag);
}

/*
 * released tells close() from shutdown(): the last reference to the file is gone
 * before __fput calls inet_release. A socket without a file was closed before.
 */
static __always_inline bool released(const struct sock *sk)
{
	struct socket *sock = sk->sk_socket;
	struct file *file;

	if (!sock)
		return true;
	file = sock->file;
	if (!file) /* a kernel socket */
		return true;
	if (bpf_core_field_exists(file->f_ref)) /* 6.13+: negative once dead, __file_ref_put */
		return file->f_ref.refcnt.counter < 0;
	return BPF_CORE_READ((struct file___f_count *)file, f_count.counter) == 0;
}

/*
 * timewait_full repeats the test of inet_twsk_alloc. (In 5.18 .. 6.0 the death
 * row is behind a pointer; no long-term kernel is among them, and there the
 * answer is no.)
 */
static __always_inline bool timewait_full(const struct sock *sk)
{
	struct net *net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	struct inet_timewait_death_row *row = &net->ipv4.tcp_death_row;
	int count;

	if (bpf_core_field_size(net->ipv4.tcp_death_row) == sizeof(void *))
		return false;
	if (bpf_core_field_exists(row->tw_refcount))
		count = BPF_CORE_READ(row, tw_refcount.refs.counter) - 1;
	else
		count = BPF_CORE_READ((struct inet_timewait_death_row___tw_count *)row,
				      tw_count.counter);
	return count >= BPF_CORE_READ(row, sysctl_max_tw_buckets);
}

/* The FIN counts for a byte, until it is read like one. */
static __always_inline bool has_unread(const struct sock *sk, const struct tcp_sock *tp)
{
	return (s32)(tp->rcv_nxt - tp->copied_seq - sock_flag(sk, SOCK_DONE)) > 0;
}

/*
 * abort_reason: __tcp_close closes at once, and sends an RST, for unread data or else for
 * SO_LINGER with a time of 0. (In repair mode, that of CRIU, it sends nothing.) The
 * worker of MPTCP sets SO_LINGER itself to get a subflow reset (__mptcp_close_ssk).
 */
static __always_inline u8 abort_reason(const struct sock *sk, const struct tcp_sock *tp)
{
	bool mptcp = bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp;

	if (mptcp || has_unread(sk, tp))
		return REASON_ABORTED;
	return sock_flag(sk, SOCK_LINGER) && !sk->sk_lingertime ? REASON_ABORTED_LINGER : REASON_NONE;
}

/* fin_acked: our FIN was the last that we had to send. */
static __always_inline bool fin_acked(const struct tcp_sock *tp)
{
	return tp->snd_una == tp->write_seq;
}

/*
 * in_close: __tcp_close is at work, and has not orphaned the socket yet. sk_shutdown proves
 * nothing by itself: shutdown() before connect() sets it, too, and fails (inet_shutdown).
 * A subflow of MPTCP has no file that could be open, so behind its FIN an error comes first.
 */
static __always_inline bool in_close(const struct sock *sk, const volatile struct transition *transition)
{
	u8 old = transition->old;
	bool fin_sent = old != TCP_ESTABLISHED && old != TCP_CLOSE_WAIT && old != TCP_SYN_SENT;

	if (!transition->in_task || !transition->released || !(sk->sk_shutdown & SEND_SHUTDOWN))
		return false;
	return !fin_sent || (!sock_flag(sk, SOCK_DEAD) && (sk->sk_socket || !sk->sk_err));
}

/* unreachable: an ICMP message came. It is our own where the next hop did not answer. */
static __always_inline u8 unreachable(const struct sock *sk, const struct conn *c)
{
	return sk->sk_err == EHOSTUNREACH && next_hop_failed(sk, c) ? REASON_NEIGHBOR_UNREACHABLE
								    : REASON_ICMP_RECEIVED;
}

static __always_inline u8 timeout_reason(u8 old)
{
	return old == TCP_SYN_SENT || old == TCP_SYN_RECV ? REASON_SYN_TIMEOUT : REASON_TIMEOUT;
}

/* caller_reason is REASON_NONE where the caller proves nothing. */
static __always_inline u8 caller_reason(u32 caller, const struct sock *sk, const struct conn *c, u8 old)
{
	switch (caller) {
	case CALLER_ABORT:
		return REASON_KILLED;
	case CALLER_ICMP:
		return unreachable(sk, c);
	case CALLER_TIMEOUT:
		return timeout_reason(old);
	case CALLER_VALIDATE:
		return REASON_RST_RECEIVED;
	case CALLER_SEGMENT:
		/* Data after close() goes through tcp_reset too, but not because of an RST. */
		if (old == TCP_FIN_WAIT1 || old == TCP_FIN_WAIT2)
			return sk->sk_err == ECONNRESET ? REASON_RST_SENT : REASON_NONE;
		return REASON_RST_RECEIVED;
	case CALLER_LISTEN:
		return REASON_LISTEN_FAILED;
	case CALLER_CONNECT: /* no route, no port, no memory */
		return REASON_CONNECT_FAILED;
	case CALLER_SHUTDOWN:
		return REASON_LOCAL_SHUTDOWN;
	case CALLER_DISCONNECT:
		return REASON_DISCONNECTED;
	default:
		return REASON_NONE;
	}
}

/* error_reason: where the kernel has just set sk_err, then closed the socket. */
static __always_inline u8 error_reason(const struct sock *sk, u8 old)
{
	switch (sk->sk_err) {
	case ECONNRESET: /* tcp_reset */
	case EPIPE:      /* ... in CLOSE_WAIT */
		return REASON_RST_RECEIVED;
	case ECONNABORTED: /* tcp_abort */
		return REASON_KILLED;
	default: /* tcp_write_err: ETIMEDOUT, or what an ICMP message told before */
		return timeout_reason(old);
	}
}

/* quiet_reason: no error ended it; sk_err may hold an old one. */
static __always_inline u8 quiet_reason(const struct sock *sk, const struct tcp_sock *tp,
				       const volatile struct transition *transition)
{
	bool dead = sock_flag(sk, SOCK_DEAD);

	switch (transition->old) {
	case TCP_FIN_WAIT2:
		if (tp->linger2 < 0) /* TCP_LINGER2: do not linger */
			return REASON_ABORTED;
		if (!tw_timer_handler) /* there may be a mini-socket that we cannot see */
			return REASON_NONE;
		return timewait_full(sk) ? REASON_TIMEWAIT_OVERFLOW : REASON_RST_SENT;
	case TCP_FIN_WAIT1:
	case TCP_CLOSING:
	case TCP_LAST_ACK: /* tcp_check_oom: tcp_max_orphans, tcp_mem */
		return dead ? REASON_TOO_MANY_ORPHANS : REASON_NONE;
	default:
		/* inet_csk_listen_stop disconnects the children nobody accepted */
		return !transition->in_task && transition->released && !dead ? REASON_LISTENER_CLOSED
									     : REASON_NONE;
	}
}

/* finished: the FINs of both ends have been exchanged, whatever sk_err says. */
static __always_inline bool finished(const struct sock *sk, const struct tcp_sock *tp,
				     const volatile struct transition *transition)
{
	switch (transition->old) {
	case TCP_LAST_ACK:
	case TCP_CLOSING:
		return fin_acked(tp);
	case TCP_FIN_WAIT2: /* tcp_fin was here */
		return sock_flag(sk, SOCK_DONE);
	default:
		return false;
	}
}

/* finished_reason: TIME_WAIT would follow, but there is no mini-socket. */
static __always_inline u8 finished_reason(const struct sock *sk, u8 old)
{
	if (old == TCP_LAST_ACK)
		return REASON_FIN_ACKED;
	if (!tw_timer_handler) /* there may be one that we cannot see */
		return old == TCP_CLOSING ? REASON_FIN_ACKED : REASON_FIN_RECEIVED;
	return timewait_full(sk) ? REASON_TIMEWAIT_OVERFLOW : REASON_NONE;
}

/*
 * caller_needed: where sk_err is not enough. A process may disconnect, or the socket
 * has a backlog (of segments and timers) that it works off; its sk_err may be an old one. In
 * a softirq whatever closes a socket has just set it, except behind a FIN. sk_err can be the
 * same when an RST, ICMP or a timeout after an ICMP message ends SYN_SENT. FIN_WAIT2 ends
 * without an error for late data, at tcp_fin_timeout, and where TIME_WAIT finds no room.
 */
static __always_inline bool caller_needed(const struct sock *sk, const volatile struct transition *transition)
{
	if (transition->in_task && !transition->released)
		return true;
	switch (transition->old) {
	case TCP_SYN_SENT:
	case TCP_SYN_RECV:
		return sk->sk_err && sk->sk_err != ETIMEDOUT;
	case TCP_FIN_WAIT1:
	case TCP_CLOSING:
	case TCP_LAST_ACK:
		return sk->sk_err;
	case TCP_FIN_WAIT2:
		return true;
	default:
		return false;
	}
}

/*
 * known_quiet: the caller, which gave no reason, sets sk_err where it matters. Without
 * kallsyms nobody is known, and an error may be the reason.
 */
static __always_inline bool known_quiet(u32 caller, const struct sock *sk, const volatile struct transition *transition)
{
	if (caller == CALLER_SEGMENT || caller == CALLER_CLOSE)
		return true;
	return !sk->sk_err && !(transition->in_task && !transition->released);
}

/*
 * listener_caller is who ends a listener whose file is open. It is the system call as a rule,
 * which is known at a tenth of the cost of the stack. A listener changes in no backlog, so
 * the call is about this socket.
 */
static __noinline u32 listener_caller(void)
{
	struct system_call call;

	if (!current_call(&call))
		return CALLER_UNKNOWN;
	if (call.number == (call.arm64 ? 201 : 50))
		return CALLER_LISTEN;
	if (call.number == (call.arm64 ? 210 : 48))
		return CALLER_SHUTDOWN;
	return CALLER_UNKNOWN;
}

/* asked_reason asks who called. */
static __always_inline u32 asked_reason(void *ctx, const struct tcp_sock *tp,
					const volatile struct transition *transition, const struct conn *c)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u32 caller = CALLER_UNKNOWN, why;

	if (transition->old == TCP_LISTEN)
		caller = forget(listener_caller());
	if (caller == CALLER_UNKNOWN)
		caller = forget(who_called(ctx));
	why = forget(caller_reason(caller, sk, c, transition->old));
	if (why != REASON_NONE)
		return why;
	if (known_quiet(caller, sk, transition))
		return quiet_reason(sk, tp, transition);
	/* Nothing but tcp_abort sets that error. */
	return sk->sk_err == ECONNABORTED ? REASON_KILLED : REASON_NONE;
}

/*
 * close_reason is not inlined: it has a stack of its own. It asks one question after the
 * other and forgets all but the answer, so that the verifier does not try every combination
 * of what was asked.
 */
static __noinline u32 close_reason(void *ctx, const struct tcp_sock *tp,
				   const volatile struct transition *transition, const struct conn *c)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u32 aborted = REASON_NONE;

	if (transition->old == TCP_LISTEN && transition->released)
		return REASON_LOCAL_CLOSE;
	if (forget(in_close(sk, transition)))
		aborted = transition->old == TCP_SYN_SENT ? REASON_LOCAL_CLOSE : abort_reason(sk, tp);
	aborted = forget(aborted);
	if (aborted != REASON_NONE)
		return aborted;
	if (forget(finished(sk, tp, transition)))
		return finished_reason(sk, transition->old);
	if (forget(caller_needed(sk, transition)))
		return asked_reason(ctx, tp, transition, c);
	return sk->sk_err ? error_reason(sk, transition->old) : quiet_reason(sk, tp, transition);
}

/* caused_by_error: sk_err belongs to this end, and is not one that nobody has read yet. */
static __always_inline bool caused_by_error(const struct sock *sk, u8 why)
{
	switch (why) {
	case REASON_RST_SENT: /* tcp_reset, or tcp_done */
		return sk->sk_err == ECONNRESET;
	case REASON_RST_RECEIVED:
	case REASON_ICMP_RECEIVED:
	case REASON_NEIGHBOR_UNREACHABLE:
	case REASON_TIMEOUT:
	case REASON_SYN_TIMEOUT:
	case REASON_KILLED:
		return true;
	default:
		return false;
	}
}

/* reason is why a socket leaves transition->old; to is where it goes on, see hand_over(). */
static __always_inline u8 reason(void *ctx, const struct tcp_sock *tp, const struct transition *transition,
				 const struct conn *c, u8 to)
{
	if (to == TCP_CLOSE)
		return close_reason(ctx, tp, transition, c);
	switch (to) {
	case TCP_SYN_SENT:
		return REASON_CONNECT;
	case TCP_LISTEN:
		return REASON_LISTEN;
	case TCP_SYN_RECV:
		return REASON_SYN_RECEIVED;
	case TCP_ESTABLISHED:
		return REASON_HANDSHAKE_DONE;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		return transition->released ? REASON_LOCAL_CLOSE : REASON_LOCAL_SHUTDOWN;
	case TCP_FIN_WAIT2:
		return REASON_FIN_ACKED;
	case TCP_CLOSE_WAIT:
	case TCP_CLOSING:
		return REASON_FIN_RECEIVED;
	case TCP_TIME_WAIT:
		return transition->old == TCP_CLOSING ? REASON_FIN_ACKED : REASON_FIN_RECEIVED;
	default:
		return REASON_NONE;
	}
}

#endif
