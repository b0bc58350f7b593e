/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How to read what the verifier does not know by its type: with bpf_probe_read_kernel, by
 * itself or in BPF_CORE_READ. The sources are built once more, with DIRECT_READS, for kernels
 * that have bpf_rdonly_cast (6.2+): it says what type is at an address, and then the verifier
 * allows plain loads. They cost 1 ns and not 25, and lockdown=confidentiality allows them,
 * which refuses the helper to every program (bpf_base_func_proto, LOCKDOWN_BPF_READ_KERNEL).
 * A load from a wrong address gives 0, as a probe read that fails.
 */
#ifndef __READ_H
#define __READ_H

#ifdef DIRECT_READS

extern void *bpf_rdonly_cast(const void *obj, u32 btf_id) __ksym;

#define CAST(type, p) ((type *)bpf_rdonly_cast((const void *)(p), bpf_core_type_id_kernel(type)))

#undef BPF_CORE_READ
#define BPF_CORE_READ(p, ...) ___arrow(CAST(typeof(*(p)), p), __VA_ARGS__)

#undef BPF_CORE_READ_BITFIELD_PROBED
#define BPF_CORE_READ_BITFIELD_PROBED(p, field)            \
	({                                                 \
		typeof(*(p)) *__p = CAST(typeof(*(p)), p); \
		BPF_CORE_READ_BITFIELD(__p, field);        \
	})

/*
 * Memory has to be of some type. This one, of 16 bytes, may be read by words of any length. The
 * address is taken once: it may lie in what is read into.
 */
#define READ_WORD(type, to, from, i)                                                                  \
	({                                                                                            \
		type __w = *(const type *)((const u8 *)&CAST(struct in6_addr, (from) + (i) / 16 * 16) \
						   ->in6_u.u6_addr32 +                                \
					   (i) % 16);                                                 \
		__builtin_memcpy((u8 *)(to) + (i), &__w, sizeof(__w));                                \
	})

#define bpf_probe_read_kernel(to, size, from)                                       \
	({                                                                          \
		const u8 *__from = (const u8 *)(from);                              \
		_Static_assert((size) % sizeof(u32) == 0, "whole words only");      \
		_Pragma("unroll") for (int __i = 0; __i < (size) / 8 * 8; __i += 8) \
			READ_WORD(u64, to, __from, __i);                            \
		if ((size) % 8)                                                     \
			READ_WORD(u32, to, __from, (size) / 8 * 8);                 \
		0L;                                                                 \
	})

#endif

#endif
