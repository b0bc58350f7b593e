/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Neighbours that did not answer ARP or neighbour discovery. The kernel then sends an
 * ICMP message to itself (ipv4_link_failure, ip6_link_failure), and the socket cannot
 * tell that from one that came over the network.
 */
#ifndef __NEIGHBOR_H
#define __NEIGHBOR_H

#include "trace.h"

#define NUD_FAILED 0x20 /* include/uapi/linux/neighbour.h */
#define RTF_GATEWAY 0x0002

/* As timers are known by tw_timer_handler; see trace.h. */
u64 neigh_timer_handler;

struct neighbor {
	u32 addr[4]; /* as in struct conn */
	u32 netns;
};

/*
 * When a neighbour was given up, by its address. Inserted as its timer gives up, never
 * deleted; when full the oldest goes, and the ICMP message of that one counts as received.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct neighbor);
	__type(value, u64);
} failed_neighbors SEC(".maps");

/* neighbor_timed: the timer of a neighbour has run. neigh_timer_handler gives up after the last probe. */
static __always_inline void neighbor_timed(struct timer_list *timer)
{
	struct neighbour *n = (void *)timer - bpf_core_field_offset(struct neighbour, timer);
	void *key = (void *)n + bpf_core_field_offset(struct neighbour, primary_key);
	u64 now = bpf_ktime_get_boot_ns();
	struct neighbor id = {};

	if (!(BPF_CORE_READ(n, nud_state) & NUD_FAILED))
		return;
	if (BPF_CORE_READ(n, tbl, family) == AF_INET) {
		id.addr[2] = V4_MAPPED;
		bpf_probe_read_kernel(&id.addr[3], sizeof(id.addr[3]), key);
	} else {
		bpf_probe_read_kernel(id.addr, sizeof(id.addr), key);
	}
	id.netns = BPF_CORE_READ(n, dev, nd_net.net, ns.inum);
	bpf_map_update_elem(&failed_neighbors, &id, &now, BPF_ANY);
}

/*
 * failed_just_now: the ICMP message is handled in the softirq that follows; before a
 * neighbour can fail again it is asked again, for three seconds.
 */
static __always_inline bool failed_just_now(const struct neighbor *id)
{
	u64 *when = bpf_map_lookup_elem(&failed_neighbors, id);

	return when && bpf_ktime_get_boot_ns() - *when < NSEC_PER_SEC;
}

/* next_hop is the gateway of sk's route, or else its peer. */
static __always_inline void next_hop(struct neighbor *id, const struct sock *sk, const struct conn *c)
{
	struct dst_entry *dst = BPF_CORE_READ(sk, sk_dst_cache);
	struct rtable *route = (void *)dst;
	struct rt6_info *route6 = (void *)dst;
	u8 family = 0;

	__builtin_memcpy(id->addr, c->raddr, sizeof(id->addr));
	id->netns = c->netns;
	if (!dst)
		return;
	if (!is_ipv4(c)) {
		if (BPF_CORE_READ(route6, rt6i_flags) & RTF_GATEWAY)
			BPF_CORE_READ_INTO(&id->addr, route6, rt6i_gateway.in6_u.u6_addr32);
		return;
	}
	family = BPF_CORE_READ(route, rt_gw_family);
	if (family == AF_INET)
		id->addr[3] = BPF_CORE_READ(route, rt_gw4);
	else if (family == AF_INET6)
		BPF_CORE_READ_INTO(&id->addr, route, rt_gw6.in6_u.u6_addr32);
}

/* Not inlined: BPF functions that call each other share 512 bytes of stack. */
static __noinline bool next_hop_failed(const struct sock *sk, const struct conn *c)
{
	struct neighbor id = {};

	next_hop(&id, sk, c);
	return failed_just_now(&id);
}

#endif
