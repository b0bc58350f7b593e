/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The contract between the kernel and the loader: one record for each event.
 * bpf2go derives the Go types from it, so nothing here is typed twice. Fixed
 * width integers, big ones first: no hole, and a cast is enough to decode. The
 * enums are packed: one byte each.
 */
#ifndef __EVENT_H
#define __EVENT_H

/* The two ends of a connection, in one form for IPv4 and IPv6. */
struct conn {
	__u32 laddr[4]; /* network order; IPv4 as ::ffff:a.b.c.d */
	__u32 raddr[4];
	__u32 netns;  /* inode number */
	__u32 device; /* index of the device that it is bound to (a link-local address always is); 0: none */
	__u16 lport;  /* host order */
	__u16 rport;
	__u32 zero; /* conn_key() hashes whole words */
};

enum kind {
	TRANSITION, /* a state change */
	SOCKET,     /* a row of the snapshot: new_state is the state it is in */
} __attribute__((packed));

/* Whether the owner still holds a descriptor of the socket. */
enum holder {
	HOLDER_UNKNOWN,
	HOLDER_HELD,
	HOLDER_GONE,
} __attribute__((packed));

/* Why a state ended. reason(), timewait_end() and request_end() hold the proof of each. */
enum reason {
	REASON_NONE,
	REASON_CONNECT,
	REASON_LISTEN,
	REASON_SYN_RECEIVED,
	REASON_HANDSHAKE_DONE,
	REASON_CONNECT_FAILED,
	REASON_LOCAL_CLOSE,
	REASON_LOCAL_SHUTDOWN,
	REASON_FIN_RECEIVED,
	REASON_FIN_ACKED,
	REASON_RST_RECEIVED,
	REASON_RST_SENT,
	REASON_ICMP_RECEIVED,
	REASON_TIMEOUT,
	REASON_SYN_TIMEOUT,
	REASON_ABORTED,
	REASON_LISTENER_CLOSED,
	REASON_BACKLOG_FULL,
	REASON_EXPIRED,
	REASON_REUSED_BY_CONNECT,
	REASON_REOPENED_BY_SYN,
	REASON_NETNS_EXIT,
	REASON_KILLED,
	REASON_TIMEWAIT_OVERFLOW,
	REASON_ABORTED_LINGER,
	REASON_DISCONNECTED,
	REASON_LISTEN_FAILED,
	REASON_NEIGHBOR_UNREACHABLE,
	REASON_TOO_MANY_ORPHANS,
} __attribute__((packed));

enum duration_kind {
	DURATION_NONE, /* does not apply */
	DURATION_EXACT,
	DURATION_AT_LEAST,
	DURATION_UNKNOWN,
} __attribute__((packed));

enum role {
	ROLE_NONE,
	ROLE_CLIENT,
	ROLE_SERVER,
	ROLE_LISTENER,
} __attribute__((packed));

enum owner_source {
	OWNER_NONE,
	OWNER_CONNECT,
	OWNER_LISTEN,
	OWNER_ACCEPT,
	OWNER_USE,
	OWNER_SNAPSHOT,
	OWNER_CLOSE,
	OWNER_INHERITED,
} __attribute__((packed));

enum event_flags {
	EVENT_MPTCP = 1,       /* a subflow of an MPTCP connection */
	EVENT_COUNTERS = 2,    /* bytes_*, retransmits and srtt_us apply */
	EVENT_QUEUES = 4,      /* *_queue apply */
	EVENT_DROPS = 8,       /* drops applies */
	EVENT_ACKED = 16,      /* half-open: the peer has completed the handshake, we have not */
	EVENT_UNACCEPTED = 32, /* nobody has accepted the connection yet */
} __attribute__((packed));

struct event {
	__u64 time;     /* CLOCK_BOOTTIME, ns */
	__u64 duration; /* ns in old_state, see duration_kind */
	__u64 cookie;
	__u64 sk;     /* kernel address of the sock, request or timewait sock */
	__u64 cgroup; /* id of the cgroup v2 of the socket's creator */
	__u64 bytes_sent;
	__u64 bytes_received;
	struct conn conn;
	__u32 pid; /* of the owner; applies unless owner_source is OWNER_NONE */
	__u32 uid;
	__s32 fd; /* -1: unknown */
	__u32 retransmits;
	__u32 srtt_us;
	__u32 rx_queue;
	__u32 tx_queue;
	__u32 drops; /* connections that a listener dropped (sk_drops) */
	__u32 stack; /* id in the map stacks plus one, of the code that opened it; 0: none */
	__u16 error; /* errno of the socket */
	enum kind kind;
	__u8 old_state;
	__u8 new_state;
	enum reason reason;
	enum duration_kind duration_kind;
	enum role role;
	enum owner_source owner_source;
	enum event_flags flags;
	enum holder holder;
	__u8 unused[1];
	__u8 comm[16] __attribute__((aligned(8))); /* of the owner's thread group leader */
};

_Static_assert(sizeof(struct event) == 168, "struct event is a contract: no hole, no growth by accident");

#endif
