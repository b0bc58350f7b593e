/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The sockets that exist already: one pass over all open files shows who holds which
 * socket, one walk over the socket tables of each network namespace gives the
 * rows. Both run while events are flowing, and an event always wins over a row.
 */
#ifndef __SNAPSHOT_H
#define __SNAPSHOT_H

#include "trace.h"
#include "owner.h"
#include "request.h"
#include "socket.h"

#define NSFS_MAGIC 0x6e736673
#define RTO_MAX_SEC 120 /* TCP_RTO_MAX, include/net/tcp.h */

enum pass_mode {
	PASS_SEED,    /* begin to know the sockets that processes hold */
	PASS_MARK,    /* find the holder of inherited sockets, mark owners seen */
	PASS_REPLACE, /* owners not seen by PASS_MARK gave the socket away */
};

enum pass_mode pass_mode;

/*
 * What the last pass proves about the rows that are being written: nothing (it is not fresh),
 * what it saw, or also what it did not see (our PID namespace is the initial one, so it looked
 * at every process).
 */
enum look_kind {
	LOOK_STALE,
	LOOK_PARTIAL,
	LOOK_COMPLETE,
};

enum look_kind look;

/* Holders that PASS_MARK found where it had not seen the known owner yet: then PASS_REPLACE follows. */
u32 strangers;

static __always_inline void hold(struct owner *o, struct task_struct *task, u32 pid, u32 fd)
{
	o->pid = pid;
	o->fd = fd;
	o->pass = pass;
	o->source = OWNER_SNAPSHOT;
	o->holder = HOLDER_HELD;
	read_comm(o->comm, task);
}

static __always_inline void found_holder(struct sock_info *info, struct task_struct *task, u32 pid, u32 fd)
{
	struct owner *o = &info->owner;
	bool known = o->source != OWNER_NONE && o->source != OWNER_INHERITED;

	if (known && o->pid == pid) {
		if (o->pass == pass)
			return;
		o->fd = fd;
		o->pass = pass;
		read_comm(o->comm, task); /* execve() changes it */
	} else if (!known || (pass_mode == PASS_REPLACE && o->pass != pass)) {
		hold(o, task, pid, fd);
	} else if (o->pass != pass) {
		strangers++; /* one runs at a time */
	}
}

/*
 * was_connected: a socket in CLOSE gets a row if its connection is over (reset, timed out, closed
 * both ways): that leaves the port of the peer. tcp_disconnect clears it, as for a connect()
 * that is refused while it waits (__inet_stream_connect). It leaves the hash that sockets get
 * with their first SYN or as a child (tcp_v4_connect, tcp_v6_connect, tcp_v4_syn_recv_sock). A
 * new socket has neither, and a listener that was shut down.
 */
static __always_inline bool was_connected(const struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_dport) || BPF_CORE_READ(sk, sk_txhash);
}

static __always_inline void seed(struct sock *sk, struct sock_info *info)
{
	struct sock_head head;
	struct conn c;
	u64 key = (u64)sk;

	probe_conn(&c, sk, &head);
	c.lport = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	info->state = HEAD_FIELD(&head, skc_state);
	if (info->state == TCP_CLOSE && !was_connected(sk)) /* its first transition inserts it */
		return;
	if (!selected(&c) && !(info->state == TCP_LISTEN && listener_selected(&c)))
		return;
	info->since = bpf_ktime_get_boot_ns();
	info->sk = key;
	info->kind = DURATION_AT_LEAST;
	info->flags = INFO_ROW_DUE;
	/* fill_row reads these again. A child of this listener may come before, and inherits them. */
	info->cgroup = cgroup_id(sk, false);
	info->uid = BPF_CORE_READ(sk, sk_uid.val);
	bpf_map_update_elem(&socks, &key, info, BPF_NOEXIST);
}

/*
 * What the pass writes about an open file: a network namespace that it may be all to keep
 * alive, as a file of the namespace, or a socket in it; or one holder more of a socket. It is
 * openFile in netns.go.
 */
struct open_file {
	u64 sk;    /* held by this process too; 0: it leads to a network namespace */
	u32 netns; /* of a socket; 0: the file is a namespace */
	u32 pid;
	u32 fd;
	u32 zero;
	char comm[16];
};

/* All holders are to be listed, not the first alone. */
bool list_holders;

/* Not inlined: its record is for the few. */
static __noinline int write_holder(struct seq_file *seq, struct sock *sk, struct task_struct *task, u32 fd)
{
	struct open_file f = {.sk = (u64)sk, .pid = task->tgid, .fd = fd};

	read_comm(f.comm, task);
	return bpf_seq_write(seq, &f, sizeof(f));
}

/* Not inlined: an MPTCP file has several subflows. */
static __noinline int sock_seen(struct seq_file *seq, struct sock *sk, struct task_struct *task, u32 fd)
{
	struct sock_info *info, fresh = {};
	u64 key = (u64)sk;
	u32 pid = task->tgid;

	info = bpf_map_lookup_elem(&socks, &key);
	if (info) {
		if (list_holders && info->owner.pid != pid)
			write_holder(seq, sk, task, fd);
		found_holder(info, task, pid, fd);
	} else if (pass_mode == PASS_SEED) {
		hold(&fresh.owner, task, pid, fd);
		seed(sk, &fresh);
	}
	return 0;
}

#define MAX_SUBFLOWS 8

/* subflows_seen: all subflows of an MPTCP socket are behind its file. */
static __always_inline void subflows_seen(struct seq_file *seq, struct mptcp_sock *msk, struct task_struct *task,
					  u32 fd)
{
	struct list_head *end = (void *)msk + bpf_core_field_offset(struct mptcp_sock, conn_list);
	struct list_head *at = BPF_CORE_READ(end, next);

	for (int i = 0; i < MAX_SUBFLOWS && at && at != end; i++) {
		struct mptcp_subflow_context *subflow =
			(void *)at - bpf_core_field_offset(struct mptcp_subflow_context, node);
		struct sock *sk = BPF_CORE_READ(subflow, tcp_sock);

		if (sk)
			sock_seen(seq, sk, task, fd);
		at = BPF_CORE_READ(at, next);
	}
}

/* The namespace of the last socket: most sockets of a process are in one. */
u32 last_netns;

static __always_inline void write_namespace(struct seq_file *seq, u32 netns, u32 pid, u32 fd)
{
	struct open_file f = {.netns = netns, .pid = pid, .fd = fd};

	bpf_seq_write(seq, &f, sizeof(f));
}

static __always_inline int file_seen(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk;
	u32 netns;

	if (!task || !file)
		return 0;
	self_tgid = bpf_get_current_pid_tgid() >> 32;
	sk = sock_of(file);
	if (!sk) {
		if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) == NSFS_MAGIC)
			write_namespace(ctx->meta->seq, 0, task->tgid, ctx->fd);
		return 0;
	}
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (netns != last_netns) {
		write_namespace(ctx->meta->seq, netns, task->tgid, ctx->fd);
		last_netns = netns;
	}
	if (is_msk(sk))
		subflows_seen(ctx->meta->seq, (struct mptcp_sock *)sk, task, ctx->fd);
	else
		sock_seen(ctx->meta->seq, sk, task, ctx->fd);
	return 0;
}

static __always_inline u64 ticks_to_ns(u64 ticks)
{
	return ticks * (NSEC_PER_SEC / hz);
}

static __always_inline void begin_row(struct event *e, const struct conn *c, const struct sock_info *info, u8 kind)
{
	u64 now = bpf_ktime_get_boot_ns();

	e->time = now;
	e->duration = now - info->since;
	e->sk = info->sk;
	e->conn = *c;
	e->kind = SOCKET;
	e->new_state = info->state;
	e->duration_kind = kind;
	copy_info(e, info);
}

/* row_holder: what the pass over all files, which came just before, says of the owner. */
static __always_inline void row_holder(struct event *e, const struct owner *o)
{
	if (look != LOOK_STALE && o->pass == pass) {
		e->holder = HOLDER_HELD;
		return;
	}
	e->holder = o->holder == HOLDER_HELD ? HOLDER_UNKNOWN : o->holder;
	if (look != LOOK_COMPLETE)
		return;
	e->fd = -1;
	if (o->source != OWNER_INHERITED)
		e->holder = HOLDER_GONE;
}

/*
 * write_row returns an error when the page of the reader is full. Then the kernel throws
 * away the row, and comes again with the same socket (bpf_seq_read): whatever was done
 * so that it gets only one row has to be undone.
 */
static __noinline int write_row(struct seq_file *seq, const struct conn *c, const struct sock_info *info, u8 kind,
				const struct tcp_sock *tp)
{
	struct event e = {};

	begin_row(&e, c, info, kind);
	row_holder(&e, &info->owner);
	if (tp) {
		if (info->state != TCP_LISTEN)
			fill_counters(&e, tp);
		fill_queues(&e, tp, info->state, true);
		fill_drops(&e, tp, info->state, true);
	}
	return bpf_seq_write(seq, &e, sizeof(e));
}

/* A route may ask for ACKs at once (quickack). Old kernels do not note that in the socket. */
static __always_inline bool acks_at_once(const struct inet_connection_sock *icsk)
{
	return bpf_core_field_exists(icsk->icsk_ack.dst_quick_ack) &&
	       BPF_CORE_READ_BITFIELD(icsk, icsk_ack.dst_quick_ack);
}

/*
 * No field says when the FIN came, so the age is the greater of two lower bounds. The
 * last ACK came with the FIN, or later: an answer to a keepalive probe, or to what we
 * still send. And tcp_fin has its own ACK delayed, for 40 to 200 ms, by a timer that
 * nothing arms again in CLOSE_WAIT; a FIN whose ACK was not delayed came with data.
 */
static __always_inline u64 close_wait_age(const struct tcp_sock *tp)
{
	const struct inet_connection_sock *icsk = &tp->inet_conn;
	u64 now = bpf_jiffies64();
	s64 acked = (u32)now - tp->rcv_tstamp;
	s64 delayed = now - icsk->icsk_delack_timer.expires;
	s64 data = (u32)now - icsk->icsk_ack.lrcvtime;
	s64 fin = delayed < data ? delayed : data;

	return ticks_to_ns(fin > acked && !acks_at_once(icsk) ? fin : acked);
}

/*
 * opened: whether the SYN is among the bytes that the peer has acknowledged. For a client it is
 * (tcp_snd_una_update, called for the SYN-ACK); a child begins to count after it
 * (tcp_create_openreq_child). -1: neither 1 nor 0 comes out, as where the device dropped
 * what bytes_sent counts.
 */
static __always_inline int opened(const struct tcp_sock *tp, u8 state)
{
	bool closed = state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING || state == TCP_LAST_ACK;
	u64 numbers = tp->bytes_acked + (tp->snd_nxt - tp->snd_una);
	u64 data = tp->bytes_sent - tp->bytes_retrans + (closed && tp->snd_nxt == tp->write_seq);

	return numbers == data ? 0 : numbers == data + 1 ? 1
							 : -1;
}

static __always_inline u8 seed_role(const struct tcp_sock *tp, u8 state)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	switch (state) {
	case TCP_LISTEN:
		return ROLE_LISTENER;
	case TCP_SYN_SENT:
		return ROLE_CLIENT;
	case TCP_SYN_RECV: /* Fast Open, or a simultaneous open */
		break;
	default:
		switch (opened(tp, state)) {
		case 1:
			return ROLE_CLIENT;
		case 0:
			return ROLE_SERVER;
		}
	}
	/* A child keeps its listener's backlog limit, sk_clone_lock; that may be 0. */
	return sk->sk_max_ack_backlog ? ROLE_SERVER : ROLE_NONE;
}

/*
 * seed_queued: nobody has accepted that child yet, so no file shows whose it is. The queue is
 * read without its lock: what does not look like a child of this listener is left out.
 * A global function, as the verifier looks at it once then and not for each round of a loop.
 */
__noinline int seed_queued(u64 listener, u64 request)
{
	struct request_sock *req = (void *)request;
	struct sock_info *parent = bpf_map_lookup_elem(&socks, &listener), *known, child = {};
	struct sock *sk = BPF_CORE_READ(req, sk);
	u64 key = (u64)sk;

	if (!parent || !sk || (u64)BPF_CORE_READ(req, __req_common.skc_listener) != listener || BPF_CORE_READ(sk, sk_socket))
		return 0;
	known = bpf_map_lookup_elem(&socks, &key);
	if (known) {
		if (known->owner.source == OWNER_NONE)
			inherit(&known->owner, parent);
		return 0;
	}
	child.owner.fd = -1;
	inherit(&child.owner, parent);
	seed(sk, &child);
	return 0;
}

#define QUEUE_CHUNK 64
#define MAX_QUEUED 4096 /* as net.core.somaxconn. Whoever waits behind them has no owner yet. */

/*
 * seed_chunk looks at the next few children of an accept queue, and returns the request that
 * follows them; 0: none. A global function too: a loop as long as the queue would cost the
 * verifier half of the time that it takes for everything.
 */
__noinline u64 seed_chunk(u64 listener, u64 request)
{
	u64 req = request;

	for (int i = 0; i < QUEUE_CHUNK && req; i++) {
		seed_queued(listener, req);
		bpf_probe_read_kernel(&req, sizeof(req), (void *)req + bpf_core_field_offset(struct request_sock, dl_next));
	}
	return req;
}

static __noinline int seed_queue(struct tcp_sock *tp)
{
	u64 key = (u64)tp, listener, req = 0;
	struct sock_info *info = bpf_map_lookup_elem(&socks, &key);

	if (!info)
		return 0;
	listener = info->sk; /* a number to the verifier, as seed_queued takes it */
	bpf_probe_read_kernel(&req, sizeof(req), &tp->inet_conn.icsk_accept_queue.rskq_accept_head);
	for (int i = 0; i < MAX_QUEUED / QUEUE_CHUNK && req; i++)
		req = seed_chunk(listener, req);
	return 0;
}

/* connecting_age: tcp_connect() notes when it sent the first SYN, to a millisecond. */
static __always_inline u64 connecting_age(const struct tcp_sock *tp)
{
	u64 now = bpf_ktime_get_ns();

	if (bpf_core_field_exists(tp->tcp_usec_ts) && BPF_CORE_READ_BITFIELD(tp, tcp_usec_ts))
		return (u64)((u32)(now / 1000) - tp->retrans_stamp) * 1000;
	return (u64)((u32)(now / 1000000) - tp->retrans_stamp) * 1000000;
}

/* When the retransmission timer will run, jiffies. */
static __always_inline u64 retransmit_at(const struct inet_connection_sock *icsk)
{
	const struct sock *sk = &icsk->icsk_inet.sk;

	if (bpf_core_field_exists(icsk->icsk_retransmit_timer))
		return icsk->icsk_retransmit_timer.expires;
	return sk->tcp_retransmit_timer.expires;
}

/*
 * unanswered_age of a FIN, 0 for unknown. If the FIN alone is not acknowledged, all the
 * timeouts since the last progress were its own. The first came after rto >> n, each after
 * twice as long as the one before: together rto - (rto >> n) for n of them, up to the
 * longest. Then TCP_USER_TIMEOUT would cut them short.
 */
static __always_inline u64 unanswered_age(const struct tcp_sock *tp)
{
	const struct inet_connection_sock *icsk = &tp->inet_conn;
	u32 n = icsk->icsk_retransmits, rto = icsk->icsk_rto, first;
	s64 left = retransmit_at(icsk) - bpf_jiffies64();

	if (n > icsk->icsk_backoff)
		n = icsk->icsk_backoff;
	if (!n || n > 15 || icsk->icsk_user_timeout || tp->write_seq - tp->snd_una != 1)
		return 0;
	first = rto >> n;
	if (rto >= RTO_MAX_SEC * hz) /* no longer doubled: the last was at least half of it */
		first = rto / 2;
	if (left < 0)
		left = 0;
	return ticks_to_ns(rto - first + (left < rto ? rto - left : 0));
}

/*
 * kernel_age is a lower bound of a state's age by the kernel's own clocks, 0 for none. The
 * last ACK came with the one that began FIN_WAIT2 or CLOSING, or later.
 */
static __always_inline u64 kernel_age(const struct tcp_sock *tp, u8 state)
{
	switch (state) {
	case TCP_CLOSE_WAIT:
		return tp->rcv_tstamp ? close_wait_age(tp) : 0;
	case TCP_SYN_SENT:
		return tp->retrans_stamp ? connecting_age(tp) : 0;
	case TCP_FIN_WAIT2:
	case TCP_CLOSING:
		return tp->rcv_tstamp ? ticks_to_ns((u32)bpf_jiffies64() - tp->rcv_tstamp) : 0;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		return unanswered_age(tp);
	default:
		return 0;
	}
}

/*
 * since_of must come after the age was found by another clock: what passes between the two
 * readings makes the age too low then, which is a lower bound.
 */
static __always_inline u64 since_of(u64 age)
{
	return bpf_ktime_get_boot_ns() - age;
}

/*
 * fill_row writes a row, except of a listener that is known for its children alone. It returns
 * INFO_ROW_DUE where there was no room for it.
 */
static __noinline int fill_row(struct seq_file *seq, struct tcp_sock *tp, struct sock_info *info,
			       struct conn *c)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u8 kind = DURATION_UNKNOWN; /* the kernel keeps no time for this state */
	u64 age;

	info->flags &= ~(INFO_ROW_DUE | INFO_UNACCEPTED);
	info->cookie = socket_cookie(sk);
	info->cgroup = cgroup_id(sk, true);
	info->uid = sk->sk_uid.val;
	info->mptcp = is_mptcp(tp);
	info->role = seed_role(tp, info->state);
	if (info->state != TCP_SYN_RECV && unaccepted(sk, info))
		info->flags |= INFO_UNACCEPTED;
	age = kernel_age(tp, info->state);
	if (age) {
		info->since = since_of(age);
		kind = DURATION_AT_LEAST;
	}
	return selected(c) && write_row(seq, c, info, kind, tp) ? INFO_ROW_DUE : 0;
}

/* Not inlined: its stack must not add to that of request_row, 512 bytes are for both. */
static __noinline int socket_row(struct seq_file *seq, struct tcp_sock *tp)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct sock_info fresh = {}, *info;
	u64 key = (u64)tp;
	struct conn c;

	read_conn(&c, &sk->__sk_common);
	c.lport = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	fresh.state = sk->__sk_common.skc_state;
	if (!selected(&c) && !(fresh.state == TCP_LISTEN && listener_selected(&c)))
		return 0;
	info = bpf_map_lookup_elem(&socks, &key);
	if (info) {
		if (info->flags & INFO_ROW_DUE) /* else an event has shown it */
			info->flags |= fill_row(seq, tp, info, &c);
		return 0;
	}
	fresh.since = bpf_ktime_get_boot_ns();
	fresh.sk = key;
	fresh.kind = DURATION_AT_LEAST;
	fresh.owner.fd = -1;
	info = insert_info(key, &fresh);
	if (info)
		info->flags |= fill_row(seq, tp, info, &c);
	else
		fill_row(seq, tp, &fresh, &c);
	/* It was closed meanwhile, and its entry may have come after tcp_destroy_sock. */
	if (sk->__sk_common.skc_state == TCP_CLOSE)
		bpf_map_delete_elem(&socks, &key);
	return 0;
}

/*
 * timewait_age is a lower bound, 0 for none. TIME_WAIT takes a minute from when it began, or
 * began again; the timer may come seconds late. tcp_time_wait notes when the connection last
 * did anything, so FIN_WAIT2 has lasted since then; in TIME_WAIT that is too long ago.
 */
static __always_inline u64 timewait_age(struct inet_timewait_sock *tw, u8 state)
{
	s64 left = BPF_CORE_READ(tw, tw_timer.expires) - bpf_jiffies64();

	if (state == TCP_TIME_WAIT) {
		if (left < 0)
			left = 0;
		return left < TIMEWAIT_SEC * (s64)hz ? ticks_to_ns(TIMEWAIT_SEC * (u64)hz - left) : 0;
	}
	if (!bpf_core_field_exists(tw->tw_entry_stamp))
		return 0;
	return (u64)((u32)(bpf_ktime_get_ns() / 1000000) - BPF_CORE_READ(tw, tw_entry_stamp)) * 1000000;
}

/*
 * The two kinds of mini-socket are recognized by their state and read by probe: of an
 * MPTCP listener they have a sk_prot of their own (tcp_prot_override), and
 * bpf_skc_to_tcp_timewait_sock and bpf_skc_to_tcp_request_sock refuse them.
 */
static __noinline int timewait_row(struct seq_file *seq, struct sock_common *common)
{
	struct inet_timewait_sock *tw = (void *)common;
	u8 kind = DURATION_UNKNOWN;
	struct sock_info info = {};
	struct conn c;
	u64 key, age;

	read_conn(&c, common);
	if (!selected(&c))
		return 0;
	info.sk = (u64)common;
	info.cookie = has_socket_cookie ? bpf_get_socket_cookie(common) : common->skc_cookie.counter;
	info.state = BPF_CORE_READ(tw, tw_substate);
	info.kind = DURATION_AT_LEAST;
	info.uid = -1;
	info.owner.fd = -1;
	age = timewait_age(tw, info.state);
	info.since = since_of(age);
	if (age) {
		kind = DURATION_AT_LEAST;
	}
	key = conn_key(&c);
	if (bpf_map_update_elem(&timewaits, &key, &info, BPF_NOEXIST) == 0 &&
	    write_row(seq, &c, &info, kind, NULL))
		bpf_map_delete_elem(&timewaits, &key);
	return 0;
}

/*
 * write_request turns what began a half-open connection into a row of it. Whether the peer
 * has completed the handshake changes, and so does the listener's accept queue.
 */
static __always_inline long write_request(struct seq_file *seq, struct event *e, u64 since, struct request_sock *req)
{
	e->time = bpf_ktime_get_boot_ns();
	e->kind = SOCKET;
	e->old_state = e->reason = 0;
	e->duration = since ? e->time - since : 0;
	e->duration_kind = since ? DURATION_EXACT : DURATION_UNKNOWN;
	if (is_acked(req))
		e->flags |= EVENT_ACKED;
	if (listens(req)) {
		struct sock *listener = BPF_CORE_READ(req, __req_common.skc_listener);

		e->flags |= EVENT_QUEUES;
		e->rx_queue = BPF_CORE_READ(listener, sk_ack_backlog);
		e->tx_queue = BPF_CORE_READ(listener, sk_max_ack_backlog);
	}
	return bpf_seq_write(seq, e, sizeof(*e));
}

static __noinline int request_row(struct seq_file *seq, struct sock_common *common)
{
	struct request_sock *req = (void *)common;
	u64 key = (u64)common;
	struct request r;
	struct conn c;

	read_conn(&c, common);
	if (!selected(&c))
		return 0;
	describe_request(&r, req, &c, request_since(req));
	if (bpf_map_update_elem(&requests, &key, &r, BPF_NOEXIST) == 0 &&
	    write_request(seq, &r.event, r.since, req))
		bpf_map_delete_elem(&requests, &key);
	return 0;
}

static __always_inline int table_row(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct seq_file *seq = ctx->meta->seq;
	struct tcp_sock *tp;

	if (!c)
		return 0;
	if (c->skc_state == TCP_TIME_WAIT) {
		timewait_row(seq, c);
	} else if (c->skc_state == TCP_NEW_SYN_RECV) {
		request_row(seq, c);
	} else {
		tp = bpf_skc_to_tcp_sock(c);
		if (!tp)
			return 0;
		socket_row(seq, tp);
		if (c->skc_state == TCP_LISTEN) /* the table has listeners first */
			seed_queue(tp);
	}
	return 0;
}

/*
 * Rows of what the trace knows, without a look at the kernel's own tables: these are
 * large, mostly empty, and walked once for each network namespace. row_states are the
 * states that are wanted, one bit each.
 */
u32 row_states;

static __always_inline bool row_wanted(u8 state)
{
	return row_states >> (state & 31) & 1;
}

/*
 * still_there: the socket at that address may be another one meanwhile, as its entry
 * is read without a lock. A socket is known by its cookie, a mini-socket, which shares
 * that with what it was, by its ends. Before 5.12 not every socket has a cookie.
 */
static __always_inline bool still_there(const struct sock_info *info, u64 key, const struct conn *c, u64 cookie)
{
	return key == info->sk ? !info->cookie || info->cookie == cookie : key == conn_key(c);
}

/* state_now is also right where a change was not seen; a mini-socket has it elsewhere. */
static __always_inline u8 state_now(const struct sock_info *info, u64 key)
{
	return key == info->sk ? BPF_CORE_READ((struct sock *)key, __sk_common.skc_state) : info->state;
}

/* file_open: as !released(), by probe. */
static __always_inline bool file_open(const struct sock *sk)
{
	struct file *file = BPF_CORE_READ(sk, sk_socket, file);

	if (!file)
		return false;
	if (bpf_core_field_exists(file->f_ref))
		return BPF_CORE_READ(file, f_ref.refcnt.counter) >= 0;
	return BPF_CORE_READ((struct file___f_count *)file, f_count.counter) > 0;
}

/* read_again: what may have changed without a change of state. */
static __always_inline void read_again(struct event *e, const struct sock_info *info, const struct sock *sk)
{
	bool dead = BPF_CORE_READ(sk, __sk_common.skc_flags) & 1UL << SOCK_DEAD;
	bool alone = !BPF_CORE_READ(sk, sk_socket) && !info->mptcp;

	e->uid = BPF_CORE_READ(sk, sk_uid.val);
	if (!e->cgroup)
		e->cgroup = cgroup_id(sk, false);
	e->flags &= ~EVENT_UNACCEPTED;
	if (!alone) {
		row_holder(e, &info->owner);
		return;
	}
	e->fd = -1;
	e->holder = dead ? HOLDER_GONE : HOLDER_UNKNOWN;
	if (!dead && e->new_state != TCP_SYN_RECV)
		e->flags |= EVENT_UNACCEPTED;
}

/* Rows that Seed still owes: those that the walk over the tables cannot find. */
bool rows_due_only;

static __always_inline void fill_counts(struct event *e, const struct tcp_sock *tp, u8 state)
{
	fill_queues(e, tp, state, false);
	fill_drops(e, tp, state, false);
}

/* known_row serves socks and timewaits. */
static __always_inline int known_row(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct sock_info *info = ctx->value;
	const u64 *key = ctx->key;
	const struct sock *sk;
	struct sock_head head;
	struct event e = {};
	struct conn c;
	u64 cookie;
	u8 state;

	if (!info || !key || info->flags & (INFO_CHILD | INFO_MINI))
		return 0;
	if (rows_due_only && !(info->flags & INFO_ROW_DUE))
		return 0;
	state = state_now(info, *key);
	if (!row_wanted(state))
		return 0;
	sk = *key == info->sk ? (void *)info->sk : NULL;
	if (state == TCP_CLOSE && !(sk && was_connected(sk) && file_open(sk)))
		return 0;
	probe_conn(&c, (void *)info->sk, &head);
	if (sk)
		c.lport = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	cookie = HEAD_FIELD(&head, skc_cookie).counter;
	if (!selected(&c) || !still_there(info, *key, &c, cookie))
		return 0;
	begin_row(&e, &c, info, state == info->state ? info->kind : DURATION_UNKNOWN);
	e.new_state = state;
	e.cookie = cookie;
	if (sk) {
		read_again(&e, info, sk);
		if (state != TCP_CLOSE || c.rport) /* tcp_disconnect sets write_seq for the next connection */
			fill_counts(&e, (void *)sk, state);
	}
	bpf_seq_write(ctx->meta->seq, &e, sizeof(e));
	return 0;
}

/* request_there: the request sock at that address may be another one meanwhile. */
static __always_inline bool request_there(u64 key, const struct conn *of)
{
	struct sock_head head;
	struct conn c;

	probe_conn(&c, (void *)key, &head);
	return HEAD_FIELD(&head, skc_state) == TCP_NEW_SYN_RECV && conn_key(&c) == conn_key(of);
}

static __always_inline int known_request(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct request *r = ctx->value;
	const u64 *key = ctx->key;
	struct event e;

	if (!r || !key || !row_wanted(TCP_SYN_RECV))
		return 0;
	e = r->event;
	if (request_there(*key, &e.conn))
		write_request(ctx->meta->seq, &e, r->since, (void *)*key);
	return 0;
}

#endif
