/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The system call that current is in, as the registers say with which it entered the
 * kernel. Numbers are those of x86-64 or of arm64; other architectures have no tcptrace.
 */
#ifndef __SYSCALL_H
#define __SYSCALL_H

#include "owner.h"

struct system_call {
	u64 number;
	u64 first; /* argument */
	bool arm64;
};

/* current_call is false where no system call is known: before 5.15, and in a thread of io_uring. */
static __always_inline bool current_call(struct system_call *call)
{
	struct pt_regs *regs;

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs) ||
	    current_flags() & (PF_EXITING | PF_IO_WORKER))
		return false;
	regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	call->arm64 = !bpf_core_field_exists(regs->orig_ax);
	if (call->arm64) {
		call->number = BPF_CORE_READ((struct pt_regs___arm64 *)regs, syscallno);
		call->first = BPF_CORE_READ((struct pt_regs___arm64 *)regs, orig_x0);
	} else {
		call->number = BPF_CORE_READ(regs, orig_ax);
		call->first = BPF_CORE_READ(regs, di);
	}
	return true;
}

#endif
