/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The slice of the kernel that our programs touch, and nothing else. Offsets do
 * not matter: every access is relocated against the running kernel's BTF
 * (preserve_access_index), so a struct lists only the fields that are read. A
 * name with ___suffix is a flavour: the same struct as another version has it.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;
typedef __s64 s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;

#define true 1
#define false 0

/* UAPI: what bpf_helpers.h needs to compile and what we ask of the ring. */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum {
	BPF_F_NO_PREALLOC = 1,
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
	BPF_F_USER_STACK = 256,
};

/* Used only to ask whether this kernel has a helper (CO-RE enum existence). */
enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158,
	BPF_FUNC_task_pt_regs = 175,
};

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
	TCP_NEW_SYN_RECV,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	u32 val;
} kuid_t;

typedef struct {
	s64 counter;
} atomic64_t;

typedef struct {
	long counter;
} atomic_long_t;

typedef struct {
	atomic_long_t refcnt;
} file_ref_t;

/* Timers: what a timer tracepoint hands over. */
struct timer_list {
	unsigned long expires; /* jiffies */
	void (*function)(struct timer_list *);
};

/* Namespaces: the inode number names one. */
struct ns_common {
	unsigned int inum;
};

/* How many mini-sockets there are, and how many there may be. */
typedef struct {
	int counter;
} atomic_t;

typedef struct {
	atomic_t refs;
} refcount_t;

struct inet_timewait_death_row {
	refcount_t tw_refcount; /* 5.18+, one more than there are */
	int sysctl_max_tw_buckets;
};

struct inet_timewait_death_row___tw_count {
	atomic_t tw_count; /* before 5.18 */
};

struct netns_ipv4 {
	struct inet_timewait_death_row tcp_death_row; /* a pointer in 5.18 .. 6.0 */
	u8 sysctl_tcp_abort_on_overflow;              /* an int before 5.13 */
};

struct net {
	struct ns_common ns;
	struct netns_ipv4 ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

/* Cgroups: the id of the creator's cgroup v2. */
struct kernfs_node {
	u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup; /* 5.15+ */
};

struct sock_cgroup_data___val {
	u64 val; /* before 5.15: the pointer, flags in the low two bits */
};

/* Processes: who owns a socket. */
struct task_struct {
	unsigned int flags;
	int tgid;
	struct task_struct *group_leader;
	struct files_struct *files;
	char comm[16];
};

struct super_block {
	unsigned long s_magic;
};

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
};

struct file {
	struct inode *f_inode;
	void *private_data;
	file_ref_t f_ref; /* 6.13+ */
};

struct file___f_count {
	atomic_long_t f_count; /* before 6.13 */
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct socket {
	int state; /* enum socket_state */
	struct file *file;
	struct sock *sk;
};

/* Sockets, from the general to the particular. */
struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct hlist_node {
	struct hlist_node *next, **pprev;
};

struct list_head {
	struct list_head *next;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	struct hlist_node skc_bind_node; /* the list of those that share its port */
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
	struct sock *skc_listener; /* of a request sock */
};

typedef struct {
	int owned;
} socket_lock_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	int sk_err;
	atomic_t sk_drops;
	unsigned long sk_lingertime;
	struct dst_entry *sk_dst_cache;
	struct timer_list tcp_retransmit_timer; /* 7.0+ */
	u32 sk_ack_backlog;
	u32 sk_max_ack_backlog;
	u32 sk_txhash;
	kuid_t sk_uid;
	u16 sk_type;
	u16 sk_protocol;
	u8 sk_shutdown;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct request_sock_queue {
	struct request_sock *rskq_accept_head;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	void *icsk_ulp_data;                     /* of a subflow: its mptcp_subflow_context */
	struct timer_list icsk_retransmit_timer; /* before 7.0 */
	struct timer_list icsk_delack_timer;     /* keeps its time when it has run */
	u32 icsk_rto;                            /* jiffies, doubled at each timeout */
	u8 icsk_retransmits;
	u8 icsk_backoff;
	u32 icsk_user_timeout;
	struct {
		u32 dst_quick_ack : 1; /* not in 6.1 */
		u32 lrcvtime;          /* jiffies of the last data */
	} icsk_ack;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u32 copied_seq;
	u32 rcv_nxt;
	u32 snd_una;
	u32 write_seq;
	u32 srtt_us;    /* << 3 */
	u32 rcv_tstamp; /* jiffies of the last ACK */
	u32 total_retrans;
	u32 snd_nxt;
	u32 retrans_stamp;  /* in SYN_SENT: ms or, with tcp_usec_ts, us of the first SYN */
	u8 tcp_usec_ts : 1; /* 6.7+ */
	u64 bytes_sent;
	u64 bytes_retrans;
	u64 bytes_acked;
	u64 bytes_received;
	int linger2;
	bool is_mptcp; /* 5.6+ with CONFIG_MPTCP */
};

struct mptcp_sock {
	struct sock *first;         /* the first subflow */
	struct list_head conn_list; /* all of them, by mptcp_subflow_context.node */
};

struct mptcp_subflow_context {
	struct list_head node;
	struct sock *tcp_sock; /* the subflow */
	struct sock *conn;     /* the mptcp_sock */
};

/* The mini-socket that stands in for TIME_WAIT and an orphan's FIN_WAIT2. */
struct inet_timewait_sock {
	struct sock_common __tw_common;
	volatile unsigned char tw_substate;
	u32 tw_entry_stamp; /* 6.14+: ms, CLOCK_MONOTONIC */
	struct timer_list tw_timer;
};

/* The request sock: a half-open connection. */
struct request_sock {
	struct sock_common __req_common;
	struct request_sock *dl_next; /* in the accept queue */
	struct sock *sk;              /* ... the child */
	u8 num_retrans;
	u8 num_timeout : 7;
	struct timer_list rsk_timer;
};

struct inet_request_sock {
	struct request_sock req;
	u16 acked : 1;
};

struct tcp_request_sock {
	struct inet_request_sock req;
	u64 snt_synack; /* us, CLOCK_MONOTONIC: the first SYN-ACK */
	bool is_mptcp;
};

/* Segments: the addresses of one that is freed, and the device that it came in by. */
struct net_device {
	possible_net_t nd_net;
};

struct inet_skb_parm {
	int iif;
};

struct tcp_skb_cb {
	union {
		struct inet_skb_parm h4; /* of IPv6 the same field is first, too */
	} header;
};

struct sk_buff {
	struct net_device *dev;
	char cb[48];
	int skb_iif;
	__be16 protocol;
	u16 transport_header;
	u16 network_header;
	unsigned char *head;
};

/* Neighbours: whether ARP or neighbour discovery failed for the next hop. */
struct neigh_table {
	int family;
};

struct neighbour {
	struct neigh_table *tbl;
	struct timer_list timer;
	u8 nud_state;
	struct net_device *dev;
	u8 primary_key[0];
};

/* Routes: the next hop. Both kinds begin with their dst_entry. */
struct dst_entry {
	short int obsolete;
};

struct rtable {
	struct dst_entry dst;
	u8 rt_gw_family; /* 0: the destination is on the link */
	__be32 rt_gw4;
	struct in6_addr rt_gw6;
};

struct rt6_info {
	struct dst_entry dst;
	struct in6_addr rt6i_gateway;
	u32 rt6i_flags;
};

struct seq_file;

/* The user's registers: the stack pointer has the same name on x86-64 and arm64. */
struct pt_regs {
	unsigned long sp;
	unsigned long orig_ax; /* number of the system call */
	unsigned long di;      /* its first argument */
};

struct pt_regs___arm64 {
	s32 syscallno;
	u64 orig_x0;
};

/* What the tracepoints syscalls:sys_exit_* hand over. */
struct trace_event_raw_sys_exit {
	long ret;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_map;

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

#pragma clang attribute pop

#endif
