/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Why a full socket left its state. The socket itself says it: sk_err is set
 * before the state changes (tcp_reset, tcp_write_err, tcp_abort), on every
 * version.
 */
#ifndef __REASON_H
#define __REASON_H

#include "trace.h"
#include "caller.h"

#define EPIPE 32
#define ECONNRESET 104
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define RCV_SHUTDOWN 1
#define SOCK_DEAD 0 /* bit numbers of enum sock_flags, include/net/sock.h */
#define SOCK_DONE 1

/* What happens to a socket, in one word: a BPF function takes five at most. */
struct transition {
	u8 old;
	u8 new;
	bool in_task;
	bool released; /* the file is gone, see needs_released() */
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

/* error_reason: the kernel set sk_err, then closed the socket. */
static __always_inline u8 error_reason(void *ctx, const struct sock *sk, u8 old)
{
	switch (sk->sk_err) {
	case ECONNRESET:
	case EPIPE: /* tcp_reset in CLOSE_WAIT */
		/* Data after close() goes through tcp_reset too, but not because of an RST. */
		if ((old == TCP_FIN_WAIT1 || old == TCP_FIN_WAIT2) &&
		    sk->sk_shutdown & RCV_SHUTDOWN && !was_validated(ctx))
			return knows_callers() ? REASON_RST_SENT : REASON_NONE;
		return REASON_RST_RECEIVED;
	case ECONNREFUSED:
		return REASON_RST_RECEIVED;
	case ETIMEDOUT:
		return old == TCP_SYN_SENT || old == TCP_SYN_RECV ? REASON_SYN_TIMEOUT : REASON_TIMEOUT;
	case ECONNABORTED:
		return REASON_ABORTED;
	default: /* icmp_unreach, tcp_v4_err, tcp_v6_err */
		return REASON_ICMP_RECEIVED;
	}
}

static __always_inline u8 close_reason(void *ctx, const struct sock *sk,
				       const struct tcp_sock *tp, const struct transition *transition)
{
	if (sk->sk_err)
		return error_reason(ctx, sk, transition->old);
	switch (transition->old) {
	case TCP_LISTEN:
		return transition->released ? REASON_LOCAL_CLOSE : REASON_LOCAL_SHUTDOWN;
	case TCP_SYN_SENT:
		if (transition->released)
			return REASON_LOCAL_CLOSE;
		/* __inet_hash_connect failed: no port, or no sequence number yet */
		return !tp->inet_conn.icsk_inet.inet_sport || !tp->write_seq ? REASON_CONNECT_FAILED : REASON_ABORTED;
	case TCP_LAST_ACK:
		return REASON_FIN_ACKED;
	case TCP_CLOSING:
		return tw_timer_handler ? REASON_TIMEWAIT_OVERFLOW : REASON_FIN_ACKED;
	case TCP_FIN_WAIT1:
	case TCP_FIN_WAIT2:          /* without a mini-socket, see socket.h */
		if (tp->linger2 < 0) /* TCP_LINGER2: do not linger */
			return REASON_ABORTED;
		if (!tw_timer_handler) /* there may be one that we cannot see */
			return sock_flag(sk, SOCK_DONE) ? REASON_FIN_RECEIVED : REASON_NONE;
		/* SOCK_DONE: tcp_fin was here, so only the mini-socket failed */
		return sock_flag(sk, SOCK_DONE) || timewait_full(sk) ? REASON_TIMEWAIT_OVERFLOW : REASON_RST_SENT;
	default:
		/* inet_csk_listen_stop disconnects the children nobody accepted */
		if (!transition->in_task && transition->released && !sock_flag(sk, SOCK_DEAD))
			return REASON_LISTENER_CLOSED;
		return REASON_ABORTED; /* unread data, linger 0, connect(AF_UNSPEC) */
	}
}

/* reason is why a socket leaves transition->old; to is where it goes on, see hand_over(). */
static __always_inline u8 reason(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
				 const struct transition *transition, u8 to)
{
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
		return close_reason(ctx, sk, tp, transition);
	}
}

#endif
