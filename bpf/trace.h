/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What all programs share: configuration, maps, the two ends of a connection,
 * and the way of a record into the ring.
 */
#ifndef __TRACE_H
#define __TRACE_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "event.h"
#include "read.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define SOCK_STREAM 1
#define MAX_PORTS 8
#define V4_MAPPED bpf_htonl(0xffff)
#define NSEC_PER_SEC 1000000000ULL
#define NSEC_PER_MSEC 1000000ULL
#define TIMEWAIT_SEC 60 /* TCP_TIMEWAIT_LEN, include/net/tcp.h */

/*
 * Configuration: constants at load time, so the verifier removes what is not
 * used. 0 in a filter means any.
 */
const volatile u16 filter_family;
const volatile u32 filter_netns;
const volatile u16 filter_lports[MAX_PORTS];
const volatile u16 filter_rports[MAX_PORTS];
const volatile bool has_socket_cookie; /* bpf_get_socket_cookie in tracing: 5.12+ */

const volatile bool take_stacks;
const volatile bool keep_tops; /* of these stacks: see keep_top() */

const volatile u32 hz = 250; /* ticks per second */

/*
 * Addresses of the two timer functions, from kallsyms; 0: not found. Like callers in
 * caller.h they are not constants: the loader finds them while the kernel verifies the
 * programs, and sets them before anything is attached.
 */
u64 tw_timer_handler;
u64 reqsk_timer_handler;

/*
 * Events that found no room in the ring, sockets that found none in a map, and state
 * changes for which the kernel ran no program, as far as we find out: missed_transition().
 */
u64 lost;
u64 untracked;
u64 missed;

/* The pass over all open files that runs, or ran last; see snapshot.h. None has number 0. */
u32 pass = 1;

/* Our own process, as the kernel numbers it; 0 until it has looked at open files. */
u32 self_tgid;

/*
 * forget makes the verifier forget what it has found out about a number: otherwise it works
 * through all that follows once for each value that the number may have. nothing stays 0.
 */
volatile u32 nothing;

static __always_inline u32 forget(u32 number)
{
	return number ^ nothing;
}

/*
 * What is known of one socket in its present state. It outlives lost events:
 * durations are taken here, in the kernel.
 */
struct owner {
	char comm[16] __attribute__((aligned(8))); /* copied as two words, not byte by byte */
	u32 pid;
	s32 fd;
	u32 pass; /* the last pass over all files that saw pid hold the socket */
	u8 source;
	u8 holder; /* at the socket's last state change */
};

enum info_flags {
	INFO_CHILD = 1,       /* cloned from a listener, LISTEN > SYN_RECV not yet emitted */
	INFO_REQUEST = 2,     /* ... and emitted already, for its request sock */
	INFO_ROW_DUE = 4,     /* known from a file, not yet shown in the snapshot */
	INFO_MINI = 8,        /* a mini-socket that no full socket has handed over to yet */
	INFO_CONNECT = 16,    /* CLOSE > SYN_SENT not yet emitted: there was no port to filter by */
	INFO_UNACCEPTED = 32, /* in its listener's accept queue at its last state change */
	INFO_COUNTED = 64,    /* found no room at first, and was counted in untracked */
};

struct sock_info {
	u64 since; /* CLOCK_BOOTTIME, ns: entered state */
	u64 cookie;
	u64 cgroup;
	u64 sk;
	u32 uid;
	u8 state;
	u8 kind; /* of the duration that since gives */
	u8 role;
	u8 mptcp;
	u32 stack; /* as in struct event */
	u32 flags; /* not at a multiple of 8: there the verifier follows each value on the stack */
	struct owner owner;
};

/*
 * Full sockets, by address. Inserted at the first state change or by the
 * snapshot, deleted at the change of an orphan to CLOSE or by tcp_destroy_sock.
 * When full, the socket is shown without duration and inherited owner, and
 * counted in untracked. Since 6.1 (bpf_mem_alloc) entries are allocated as
 * needed; before, the loader asks for a preallocated map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct sock_info);
} socks SEC(".maps");

/*
 * Timewait mini-sockets, by conn_key(): the kernel keeps one per address pair.
 * Inserted when the timer is armed for the first time or by the snapshot,
 * deleted when it is cancelled for good. When full, the end of that TIME_WAIT is
 * not shown; counted in untracked as its full socket is closed.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct sock_info);
} timewaits SEC(".maps");

/*
 * Half-open connections, by address of the request sock. Inserted when its timer
 * is armed or by the snapshot, deleted when it is cancelled for good. It holds
 * the whole event, as the request sock is gone when its expiry is emitted. When
 * full, the connection is first seen when it is established, or sends its SYN-ACK once
 * more; counted.
 */
struct request {
	struct event event;
	u64 since;
	u64 expired;     /* when its timer last ran */
	enum reason why; /* ... and why it ends, if nobody arms it again */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 17);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct request);
} requests SEC(".maps");

/*
 * What one CPU is in the middle of. child, expiring and refused are set and used up within
 * one softirq, which no other softirq on that CPU can interrupt; last_emitted and no_room
 * may be overwritten at any time, see already_emitted().
 */
struct cpu_state {
	u64 child;        /* sock just cloned from a listener for a finished handshake */
	u64 expiring;     /* request sock whose timer runs now */
	u64 last_emitted; /* the sock of the last transition emitted, to last_emitted_state */
	u64 last_emitted_state;
	u64 no_room; /* conn_key() of a mini-socket that found no room in timewaits, see goes_on() */
	u64 no_room_state;
	u64 counted;   /* child of a request that found no room, which is counted in untracked */
	bool refusing; /* refused is a request that tcp_check_req ended, see request_refused() */
	struct request refused;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu_state);
} cpu_states SEC(".maps");

/*
 * User stacks at connect() and accept(), where take_stacks asks for them. Inserted
 * by bpf_get_stackid, deleted with the map. Equal stacks share an entry; when two
 * different ones meet in a slot the later is not kept.
 */
#define STACK_FRAMES 32

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 8192);
	__uint(key_size, sizeof(u32));
	__uint(value_size, STACK_FRAMES * sizeof(u64));
} stacks SEC(".maps");

/*
 * What lies on top of these stacks, by their id. Inserted with the stack, deleted
 * with the map; when full, the top of that stack is not kept. Nor is any where keep_tops is
 * not set: the library that loads the programs makes bpf_probe_read of bpf_probe_read_user
 * where lockdown=confidentiality refuses bpf_probe_read_kernel (fixupProbeReadKernel of
 * cilium/ebpf), and that is refused as well.
 */
struct stack_top {
	u64 words[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct stack_top);
} stack_tops SEC(".maps");

/* The way out. When full, the event is counted in lost. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
	__type(value, struct event);
} events SEC(".maps");

static __always_inline struct cpu_state *this_cpu(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cpu_states, &zero);
}

/*
 * Waking the reader costs 4 to 16 us, a record without it 0.3 us. So wake it at
 * most once per WAKEUP_NS: an idle reader gets a lone event at once, and a busy
 * one looks again by itself within twice that time (probe.go, pollInterval).
 * It is forced: by default the kernel wakes only for the record that the reader
 * is waiting for, which may be one that another CPU submits without a wakeup.
 * The race on last_wakeup is harmless: at worst two CPUs wake the reader.
 */
#define WAKEUP_NS 10000000

u64 last_wakeup;

static __always_inline u64 wakeup_flags(u64 now)
{
	if ((s64)(now - last_wakeup) < WAKEUP_NS)
		return BPF_RB_NO_WAKEUP;
	last_wakeup = now;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline struct event *reserve(void)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e)
		__sync_fetch_and_add(&lost, 1);
	return e;
}

/*
 * Both ends of a connection. A socket that is an argument of the program is read
 * directly, which costs next to nothing.
 */
static __always_inline void read_conn(struct conn *to, const struct sock_common *c)
{
	to->netns = c->skc_net.net->ns.inum;
	if (c->skc_family == AF_INET) {
		to->laddr[0] = to->laddr[1] = to->raddr[0] = to->raddr[1] = 0;
		to->laddr[2] = to->raddr[2] = V4_MAPPED;
		to->laddr[3] = c->skc_rcv_saddr;
		to->raddr[3] = c->skc_daddr;
	} else {
		to->laddr[0] = c->skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		to->laddr[1] = c->skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		to->laddr[2] = c->skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		to->laddr[3] = c->skc_v6_rcv_saddr.in6_u.u6_addr32[3];
		to->raddr[0] = c->skc_v6_daddr.in6_u.u6_addr32[0];
		to->raddr[1] = c->skc_v6_daddr.in6_u.u6_addr32[1];
		to->raddr[2] = c->skc_v6_daddr.in6_u.u6_addr32[2];
		to->raddr[3] = c->skc_v6_daddr.in6_u.u6_addr32[3];
	}
	to->device = c->skc_bound_dev_if;
	to->lport = c->skc_num;
	to->rport = bpf_ntohs(c->skc_dport);
	to->zero = 0;
}

/*
 * One reached by pointer arithmetic, from its timer, has to be copied first: at
 * once, as each bpf_probe_read_kernel costs 25 ns. The head of struct sock_common
 * up to the cookie takes 96 bytes where nothing is configured out.
 */
#ifdef DIRECT_READS

/* A field is as cheap as any other, so nothing is copied. */
struct sock_head {
	const struct sock_common *common;
};

#define HEAD_FIELD(head, field) ((head)->common->field)

static __always_inline void probe_conn(struct conn *to, const void *sock, struct sock_head *head)
{
	head->common = CAST(struct sock_common, sock);
	read_conn(to, head->common);
}

#else

struct sock_head {
	u64 words[16];
};

#define HEAD_FIELD(head, field)                                         \
	(*(typeof(((struct sock_common *)0)->field) *)((void *)(head) + \
						       bpf_core_field_offset(struct sock_common, field)))

static __always_inline void copy_v6(u32 *to, const struct in6_addr *from)
{
	const u32 *words = (const void *)from;

	to[0] = words[0];
	to[1] = words[1];
	to[2] = words[2];
	to[3] = words[3];
}

static __always_inline void probe_conn(struct conn *to, const void *sock, struct sock_head *head)
{
	struct net *net;

	bpf_probe_read_kernel(head, sizeof(*head), sock);
	if (HEAD_FIELD(head, skc_family) == AF_INET) {
		to->laddr[0] = to->laddr[1] = to->raddr[0] = to->raddr[1] = 0;
		to->laddr[2] = to->raddr[2] = V4_MAPPED;
		to->laddr[3] = HEAD_FIELD(head, skc_rcv_saddr);
		to->raddr[3] = HEAD_FIELD(head, skc_daddr);
	} else {
		copy_v6(to->laddr, &HEAD_FIELD(head, skc_v6_rcv_saddr));
		copy_v6(to->raddr, &HEAD_FIELD(head, skc_v6_daddr));
	}
	to->device = HEAD_FIELD(head, skc_bound_dev_if);
	to->lport = HEAD_FIELD(head, skc_num);
	to->zero = 0;
	to->rport = bpf_ntohs(HEAD_FIELD(head, skc_dport));
	net = *(struct net **)((void *)head + bpf_core_field_offset(struct sock_common, skc_net.net));
	to->netns = BPF_CORE_READ(net, ns.inum);
}

#endif

/*
 * conn_key hashes an address pair, the identity of a mini-socket. The cookie
 * would do as well where a kernel gives us one, but a socket that is connected
 * again while its TIME_WAIT lasts shares its cookie with it.
 */
static __always_inline u64 conn_key(const struct conn *c)
{
	const u64 *w = (const u64 *)c;
	u64 h = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*c) / sizeof(*w); i++) {
		h = (h ^ w[i]) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 32;
	}
	return h;
}

/* due: jiffies64 and jiffies are one on 64-bit kernels. */
static __always_inline bool due(const struct timer_list *timer)
{
	return (s64)(bpf_jiffies64() - timer->expires) >= 0;
}

/* The head of a TCP segment, as on the wire. */
struct tcp_head {
	__be16 source, dest;
	__be32 seq, ack;
	u8 offset, flags;
};

static __always_inline bool is_ipv4(const struct conn *c)
{
	return c->laddr[0] == 0 && c->laddr[1] == 0 && c->laddr[2] == V4_MAPPED;
}

static __always_inline bool port_selected(const volatile u16 *ports, u16 port)
{
	if (!ports[0])
		return true;
#pragma unroll
	for (int i = 0; i < MAX_PORTS; i++)
		if (ports[i] && ports[i] == port)
			return true;
	return false;
}

/*
 * selected rejects only what can never match: a filter selects sockets, and a
 * socket that has no local port yet may still get the right one.
 */
static __always_inline bool selected(const struct conn *c)
{
	if (filter_family && (filter_family == AF_INET) != is_ipv4(c))
		return false;
	if (filter_netns && filter_netns != c->netns)
		return false;
	if (!port_selected(filter_rports, c->rport))
		return false;
	return !c->lport || port_selected(filter_lports, c->lport);
}

/*
 * listener_selected: a listener outside the filter may have children inside, of the other
 * family ([::] accepts IPv4) or by their remote port. It is remembered and not shown.
 */
static __always_inline bool listener_selected(const struct conn *c)
{
	if (filter_netns && filter_netns != c->netns)
		return false;
	return !c->lport || port_selected(filter_lports, c->lport);
}

/* copy_info copies what an event says of the socket itself. */
static __always_inline void copy_info(struct event *e, const struct sock_info *info)
{
	e->cookie = info->cookie;
	e->cgroup = info->cgroup;
	e->uid = info->uid;
	e->role = info->role;
	e->flags = (info->mptcp ? EVENT_MPTCP : 0) | (info->flags & INFO_UNACCEPTED);
	e->pid = info->owner.pid;
	e->fd = info->owner.fd;
	e->owner_source = info->owner.source;
	e->holder = info->owner.holder;
	e->stack = info->stack;
	__builtin_memcpy(e->comm, info->owner.comm, sizeof(e->comm));
}

static __always_inline void zero_counters(struct event *e)
{
	e->bytes_sent = e->bytes_received = 0;
	e->retransmits = e->srtt_us = e->rx_queue = e->tx_queue = 0;
	e->drops = 0;
	__builtin_memset(e->unused, 0, sizeof(e->unused));
}

/*
 * Counters and queues of a socket. direct: tp may be read as it is, else by probe; a
 * constant at each call. The queues of a listener are its accept queue and its backlog.
 */
#define LOAD(direct, p, field) ((direct) ? (p)->field : BPF_CORE_READ(p, field))

_Static_assert((int)INFO_UNACCEPTED == (int)EVENT_UNACCEPTED, "copy_info copies one to the other");

static __always_inline void fill_counters(struct event *e, const struct tcp_sock *tp)
{
	e->flags |= EVENT_COUNTERS;
	e->bytes_sent = tp->bytes_sent;
	e->bytes_received = tp->bytes_received;
	e->retransmits = tp->total_retrans;
	e->srtt_us = tp->srtt_us >> 3;
}

static __always_inline void fill_queues(struct event *e, const struct tcp_sock *tp, u8 state, bool direct)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	e->flags |= EVENT_QUEUES;
	if (state == TCP_LISTEN) {
		e->rx_queue = LOAD(direct, sk, sk_ack_backlog);
		e->tx_queue = LOAD(direct, sk, sk_max_ack_backlog);
	} else {
		e->rx_queue = LOAD(direct, tp, rcv_nxt) - LOAD(direct, tp, copied_seq);
		e->tx_queue = LOAD(direct, tp, write_seq) - LOAD(direct, tp, snd_una);
	}
}

/* fill_drops: SYNs and final ACKs that a listener had no room or memory for (tcp_listendrop). */
static __always_inline void fill_drops(struct event *e, const struct tcp_sock *tp, u8 state, bool direct)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	if (state != TCP_LISTEN || !bpf_core_field_exists(sk->sk_drops))
		return;
	e->flags |= EVENT_DROPS;
	e->drops = LOAD(direct, sk, sk_drops.counter);
}

/*
 * emit sends one transition. tp, where there is one, gives counters and
 * queues to the transitions at which they say something.
 */
static __always_inline void emit(u64 now, u64 sk, const struct conn *c,
				 const struct sock_info *info, u8 new_state, u8 reason,
				 u16 error, const struct tcp_sock *tp)
{
	struct event *e = reserve();

	if (!e)
		return;
	e->time = now;
	e->duration = info->kind == DURATION_NONE ? 0 : now - info->since;
	e->sk = sk;
	e->conn = *c;
	e->error = error;
	e->kind = TRANSITION;
	e->old_state = info->state;
	e->new_state = new_state;
	e->reason = reason;
	e->duration_kind = info->kind;
	copy_info(e, info);
	zero_counters(e);
	if (tp && (info->state == TCP_ESTABLISHED || new_state == TCP_CLOSE || new_state == TCP_TIME_WAIT) &&
	    info->state != TCP_LISTEN) {
		fill_counters(e, tp);
		fill_queues(e, tp, info->state, true);
	}
	bpf_ringbuf_submit(e, wakeup_flags(now));
}

#endif
