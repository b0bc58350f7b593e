package probe

// One little-endian object serves x86-64 and arm64: no program needs pt_regs.
//go:generate go tool bpf2go -tags linux -target bpfel -type kind -type reason -type duration_kind -type role -type owner_source -type holder -type event_flags -type caller bpf ../../bpf/tcptrace.bpf.c -- -I../.. -I../../bpf -Wall -Werror
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types trampoline ../../bpf/trampoline.bpf.c -- -I../.. -I../../bpf -Wall -Werror

// The same sources with direct reads, see bpf/read.h.
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types direct ../../bpf/tcptrace.bpf.c -- -I../.. -I../../bpf -Wall -Werror -DDIRECT_READS
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types directTrampoline ../../bpf/trampoline.bpf.c -- -I../.. -I../../bpf -Wall -Werror -DDIRECT_READS
