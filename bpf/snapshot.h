/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is there already: one pass over all open files tells who holds which
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

enum pass_mode {
	PASS_SEED,    /* begin to know the sockets that processes hold */
	PASS_MARK,    /* find the holder of inherited sockets, mark owners seen */
	PASS_REPLACE, /* owners not seen by PASS_MARK gave the socket away */
};

u32 pass;
enum pass_mode pass_mode;

static __always_inline void hold(struct owner *o, struct task_struct *task, u32 pid, u32 fd)
{
	o->pid = pid;
	o->fd = fd;
	o->pass = pass;
	o->source = OWNER_SNAPSHOT;
	read_comm(o->comm, task);
}

static __always_inline void found_holder(struct sock_info *info, struct task_struct *task, u32 pid, u32 fd)
{
	struct owner *o = &info->owner;
	bool known = o->source != OWNER_NONE && o->source != OWNER_INHERITED;

	if (known && o->pid == pid) {
		if (o->pass != pass)
			o->fd = fd;
		o->pass = pass;
	} else if (!known || (pass_mode == PASS_REPLACE && o->pass != pass)) {
		hold(o, task, pid, fd);
	}
}

static __always_inline void seed_from_file(struct sock *sk, struct task_struct *task, u32 pid, u32 fd)
{
	struct sock_info info = {};
	u64 key = (u64)sk;

	info.since = bpf_ktime_get_boot_ns();
	info.sk = key;
	info.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	info.kind = DURATION_AT_LEAST;
	info.flags = INFO_ROW_DUE;
	info.uid = -1; /* fill_row finds out, where its namespace is walked */
	hold(&info.owner, task, pid, fd);
	if (info.state == TCP_CLOSE) /* not connected yet: its first transition inserts it */
		return;
	bpf_map_update_elem(&socks, &key, &info, BPF_NOEXIST);
}

/*
 * An open file may be all that keeps a network namespace alive: netns.go looks at
 * it. It goes out as one number, pid above fd.
 */
static __always_inline void write_namespace(struct seq_file *seq, u32 pid, u32 fd)
{
	u64 name = (u64)pid << 32 | fd;

	bpf_seq_write(seq, &name, sizeof(name));
}

static __always_inline int file_seen(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk;
	struct sock_info *info;
	u64 key;
	u32 pid;

	if (!task || !file)
		return 0;
	if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) == NSFS_MAGIC)
		write_namespace(ctx->meta->seq, task->tgid, ctx->fd);
	sk = tcp_sock_of(file);
	if (!sk)
		return 0;
	pid = task->tgid;
	key = (u64)sk;
	info = bpf_map_lookup_elem(&socks, &key);
	if (info)
		found_holder(info, task, pid, ctx->fd);
	else if (pass_mode == PASS_SEED)
		seed_from_file(sk, task, pid, ctx->fd);
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

/*
 * write_row returns an error when the page of the reader is full. Then the kernel throws
 * away the row, and comes again with the same socket (bpf_seq_read): whatever was done
 * for it so that it has but one row is to be undone.
 */
static __noinline int write_row(struct seq_file *seq, const struct conn *c, const struct sock_info *info, u8 kind,
				const struct tcp_sock *tp)
{
	struct event e = {};

	begin_row(&e, c, info, kind);
	if (tp) {
		if (info->state != TCP_LISTEN)
			fill_counters(&e, tp);
		fill_queues(&e, tp, info->state, true);
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

static __always_inline u8 seed_role(const struct sock *sk, u8 state)
{
	if (state == TCP_LISTEN)
		return ROLE_LISTENER;
	/* A child keeps its listener's backlog limit, sk_clone_lock; a client has none. */
	return sk->sk_max_ack_backlog ? ROLE_SERVER : ROLE_CLIENT;
}

static __noinline int fill_row(struct seq_file *seq, struct tcp_sock *tp, struct sock_info *info,
			       struct conn *c)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	u64 now = bpf_ktime_get_boot_ns();
	u8 kind = DURATION_UNKNOWN; /* the kernel keeps no time for this state */

	info->flags &= ~INFO_ROW_DUE;
	info->cookie = socket_cookie(sk);
	info->cgroup = cgroup_id(sk);
	info->uid = sk->sk_uid.val;
	info->mptcp = is_mptcp(tp);
	info->role = seed_role(sk, info->state);
	if (info->state == TCP_CLOSE_WAIT && tp->rcv_tstamp) {
		info->since = now - close_wait_age(tp);
		kind = DURATION_AT_LEAST;
	}
	if (info->state == TCP_LISTEN)
		remember_listener(sk, c, TCP_LISTEN);
	if (write_row(seq, c, info, kind, tp))
		info->flags |= INFO_ROW_DUE;
	return 0;
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
	if (!selected(&c))
		return 0;
	info = bpf_map_lookup_elem(&socks, &key);
	if (info) {
		if (info->flags & INFO_ROW_DUE) /* else an event has shown it */
			fill_row(seq, tp, info, &c);
		return 0;
	}
	fresh.since = bpf_ktime_get_boot_ns();
	fresh.sk = key;
	fresh.state = sk->__sk_common.skc_state;
	fresh.kind = DURATION_AT_LEAST;
	fresh.owner.fd = -1;
	info = insert_info(key, &fresh);
	if (info)
		fill_row(seq, tp, info, &c);
	else
		fill_row(seq, tp, &fresh, &c);
	/* It was closed meanwhile, and its entry may have come after tcp_destroy_sock. */
	if (sk->__sk_common.skc_state == TCP_CLOSE)
		bpf_map_delete_elem(&socks, &key);
	return 0;
}

/*
 * The two kinds of mini-socket are recognized by their state and read by probe: of an
 * MPTCP listener they have a sk_prot of their own (tcp_prot_override), and
 * bpf_skc_to_tcp_timewait_sock and bpf_skc_to_tcp_request_sock refuse them.
 */
static __noinline int timewait_row(struct seq_file *seq, struct sock_common *common)
{
	struct inet_timewait_sock *tw = (void *)common;
	u64 now = bpf_ktime_get_boot_ns(), key;
	u8 kind = DURATION_UNKNOWN;
	struct sock_info info = {};
	struct conn c;

	read_conn(&c, common);
	if (!selected(&c))
		return 0;
	info.sk = (u64)common;
	info.cookie = has_socket_cookie ? bpf_get_socket_cookie(common) : common->skc_cookie.counter;
	info.state = BPF_CORE_READ(tw, tw_substate);
	info.kind = DURATION_AT_LEAST;
	info.since = now;
	info.uid = -1;
	info.owner.fd = -1;
	if (info.state == TCP_TIME_WAIT) {
		s64 left = BPF_CORE_READ(tw, tw_timer.expires) - bpf_jiffies64();

		if (left > 0 && left < TIMEWAIT_SEC * (s64)hz) {
			info.since = now - ticks_to_ns(TIMEWAIT_SEC * (u64)hz - left);
			kind = DURATION_AT_LEAST;
		}
	}
	key = conn_key(&c);
	if (bpf_map_update_elem(&timewaits, &key, &info, BPF_NOEXIST) == 0 &&
	    write_row(seq, &c, &info, kind, NULL))
		bpf_map_delete_elem(&timewaits, &key);
	return 0;
}

/* write_request turns what began a half-open connection into a row of it. */
static __always_inline long write_request(struct seq_file *seq, struct event *e, u64 since)
{
	e->time = bpf_ktime_get_boot_ns();
	e->kind = SOCKET;
	e->old_state = e->reason = 0;
	e->duration = e->time - since;
	e->duration_kind = DURATION_EXACT;
	return bpf_seq_write(seq, e, sizeof(*e));
}

static __noinline int request_row(struct seq_file *seq, struct sock_common *common)
{
	struct tcp_request_sock *treq = (void *)common;
	u64 now = bpf_ktime_get_boot_ns(), key = (u64)common;
	u64 sent = BPF_CORE_READ(treq, snt_synack); /* the first SYN-ACK, us */
	struct request r;
	struct conn c;

	read_conn(&c, common);
	if (!selected(&c))
		return 0;
	describe_request(&r, (struct request_sock *)common, &c, now);
	if (sent)
		r.since = now - (bpf_ktime_get_ns() - sent * 1000);
	if (bpf_map_update_elem(&requests, &key, &r, BPF_NOEXIST) == 0 &&
	    write_request(seq, &r.event, r.since))
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
		if (tp)
			socket_row(seq, tp);
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

/* known_row serves socks and timewaits. */
static __always_inline int known_row(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct sock_info *info = ctx->value;
	const u64 *key = ctx->key;
	struct sock_head head;
	struct event e = {};
	struct conn c;
	u8 state;

	if (!info || !key || info->flags & (INFO_CHILD | INFO_MINI))
		return 0;
	state = state_now(info, *key);
	if (!row_wanted(state))
		return 0;
	probe_conn(&c, (void *)info->sk, &head);
	if (!selected(&c) || !still_there(info, *key, &c, HEAD_FIELD(&head, skc_cookie).counter))
		return 0;
	begin_row(&e, &c, info, state == info->state ? info->kind : DURATION_UNKNOWN);
	e.new_state = state;
	e.cookie = HEAD_FIELD(&head, skc_cookie).counter;
	if (*key == info->sk)
		fill_queues(&e, (void *)info->sk, state, false);
	bpf_seq_write(ctx->meta->seq, &e, sizeof(e));
	return 0;
}

static __always_inline int known_request(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct request *r = ctx->value;
	struct event e;

	if (!r || !row_wanted(TCP_SYN_RECV))
		return 0;
	e = r->event;
	write_request(ctx->meta->seq, &e, r->since);
	return 0;
}

#endif
