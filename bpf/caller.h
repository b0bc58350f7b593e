/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Some causes are visible only in who called: a mini-socket's timer is cancelled
 * by the same functions whatever ends it. The stack costs about 3 us, so it is
 * asked only at the few events that need it.
 */
#ifndef __CALLER_H
#define __CALLER_H

#include "trace.h"

enum caller {
	CALLER_UNKNOWN,
	CALLER_REARM,      /* mod_timer: the timer goes on */
	CALLER_TIMEWAIT,   /* tcp_timewait_state_process: a segment for a mini-socket */
	CALLER_CONNECT,    /* tcp_v{4,6}_connect and what they call: connect() */
	CALLER_CHECK_REQ,  /* tcp_check_req: a segment for a request sock */
	CALLER_ABORT,      /* tcp_abort: SOCK_DESTROY */
	CALLER_NETNS_EXIT, /* inet_twsk_purge, tcp_twsk_purge */
	CALLER_EXPIRY,     /* __run_timers: the timer runs */
	CALLER_RECEIVE,    /* tcp_v4_rcv, tcp_v6_rcv, themselves */
	CALLER_ICMP,       /* tcp_v4_err, tcp_v6_err: an ICMP error */
	CALLER_VALIDATE,   /* tcp_validate_incoming: a segment that it refused, one with RST as a rule */
	CALLER_SEGMENT,    /* tcp_rcv_established, tcp_rcv_state_process: any other segment */
	CALLER_TIMEOUT,    /* tcp_write_timer, tcp_write_timer_handler, tcp_keepalive_timer */
	CALLER_LISTEN,     /* inet_csk_listen_start: listen() */
	CALLER_SHUTDOWN,   /* inet_shutdown: shutdown() */
	CALLER_DISCONNECT, /* __inet_stream_connect itself: connect() to AF_UNSPEC */
	CALLER_CLOSE,      /* __tcp_close itself, tcp_close before 5.11: close() */
};

#define MAX_CALLERS 30
#define MAX_FRAMES 12
#define OWN_FRAMES 2 /* who_called and the BPF function that calls it */

/* Where these functions lie; the loader fills it in from kallsyms. */
struct text_range {
	u64 start; /* without the top bit, see is_in */
	u64 end;
	enum caller caller;
};

volatile struct text_range callers[MAX_CALLERS];

/*
 * The search has no branch that depends on data, and multiplies where one would
 * mask with -x: the verifier follows both ways of either, a million paths in all.
 * is_below gives 1 or 0 for numbers below 2^63.
 */
static __always_inline u64 is_below(u64 a, u64 b)
{
	return (a - b) >> 63;
}

/* Kernel text is above 2^63: what is compared is what is left without that bit. */
static __always_inline u64 is_in(u64 ip, const volatile struct text_range *range)
{
	u64 at = ip & ~(1ULL << 63);

	return is_below(at, range->end) & ~is_below(at, range->start);
}

/*
 * A global function: the verifier works through it once, not at each call. (It may take
 * nothing but numbers before 5.12.)
 */
__noinline u32 caller_of(u64 ip)
{
	u64 caller = CALLER_UNKNOWN;

	for (int i = 0; i < MAX_CALLERS; i++)
		caller += is_in(ip, &callers[i]) * callers[i].caller;
	return caller;
}

/*
 * who_called names the innermost function on the stack that we know. (Before 5.18 the
 * frames that __bpf_get_stack skips count among those that fit.)
 */
static __noinline u32 who_called(void *ctx)
{
	u64 ips[MAX_FRAMES] = {};
	u64 innermost = CALLER_UNKNOWN;

	bpf_get_stack(ctx, ips, sizeof(ips), OWN_FRAMES);
	for (int i = 0; i < MAX_FRAMES; i++) {
		u64 none_yet = is_below(innermost, 1);

		innermost += none_yet * caller_of(ips[i]);
	}
	return innermost;
}

#endif
