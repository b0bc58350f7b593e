package symbolize

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"slices"
)

// Complete puts a function back that stacks of C programs lack. A stack is walked
// along the frame pointers; most C libraries have none, so that when their
// connect() enters the kernel, the frame pointer is still that of its caller, and
// the walk goes from connect() to the caller of the caller. What is missing is
// the very function that opened the socket.
//
// addrs is a stack as for Symbolize; top is the memory that the stack pointer
// pointed to, a dozen words, on arm64 with the link register before it. The first
// word there that a call returns to is where connect() returns to, be it addrs[1]
// already. Words left over from earlier calls are told by the call that leads to
// addrs[2] then: it has to go to the function that the word belongs to. Where
// that cannot be seen, in a call by pointer, the first such word is believed. So
// it is if no call returns to addrs[1]: the program itself is without frame
// pointers then, and its stack ends with what is found here.
// The result is addrs itself where nothing is missing or can be said.
func (s *Symbolizer) Complete(pid uint32, addrs, top []uint64) []uint64 {
	p := s.processes.get(pid)
	if p == nil || len(addrs) == 0 {
		return addrs
	}
	if len(addrs) > 1 && s.code(p, addrs[1]-1, 1) != nil {
		if size, _ := s.callBefore(p, addrs[1]); size == 0 {
			addrs = addrs[:1]
		}
	}
	for _, word := range top {
		if len(addrs) > 1 && word == addrs[1] {
			break
		}
		if size, _ := s.callBefore(p, word); size == 0 {
			continue
		}
		if len(addrs) == 1 || s.leadsTo(p, addrs[1], word) {
			return slices.Insert(slices.Clone(addrs), 1, word)
		}
	}
	return addrs
}

// leadsTo tells whether the call that returns to ret may be one of the function
// that holds addr.
func (s *Symbolizer) leadsTo(p *process, ret, addr uint64) bool {
	const maxFunction = 1 << 20
	size, target := s.callBefore(p, ret)
	if size == 0 || target == 0 {
		return size != 0
	}
	if called := s.function(p, target+1); called != "" {
		return called == s.function(p, addr)
	}
	if addr > target && addr-target < maxFunction {
		return true // stripped
	}
	// In another library it is called by way of a stub that jumps to where a
	// table says: on x86, jmp *offset(%rip); on arm64, br x17.
	jump := []byte{0xff, 0x25}
	if runtime.GOARCH == "arm64" {
		jump = []byte{0x20, 0x02, 0x1f, 0xd6}
	}
	return bytes.Contains(s.code(p, target, 16), jump)
}

// function returns the name of the function that holds the byte before addr.
func (s *Symbolizer) function(p *process, addr uint64) string {
	m, o := s.locate(p, addr-1)
	if o == nil {
		return ""
	}
	frames := s.lookUp(o, addr-m.start+m.offset)
	return frames[len(frames)-1].Function
}

// callBefore returns the size of the call instruction that ends at addr, 0 if
// none does, and where it goes, 0 if that is not known before it runs.
func (s *Symbolizer) callBefore(p *process, addr uint64) (size int, target uint64) {
	const longest = 7
	code := s.code(p, addr-longest, longest)
	if len(code) < longest {
		return 0, 0
	}
	if runtime.GOARCH == "arm64" {
		switch word := binary.LittleEndian.Uint32(code[longest-4:]); {
		case word>>26 == 0x25: // bl
			return 4, addr - 4 + uint64(int64(int32(word<<6)>>6)*4)
		case word&^(31<<5) == 0xd63f0000: // blr
			return 4, 0
		}
		return 0, 0
	}
	for size := 2; size <= longest; size++ {
		switch at := code[longest-size:]; {
		case size == 5 && at[0] == 0xe8: // call target
			return size, addr + uint64(int64(int32(binary.LittleEndian.Uint32(at[1:]))))
		case at[0] == 0xff && at[1]>>3&7 == 2 && size == indirectSize(at): // call *register or *memory
			return size, 0
		}
	}
	return 0, 0
}

// indirectSize returns the size of an x86 instruction of one byte with operands.
func indirectSize(code []byte) int {
	mode, register := code[1]>>6, code[1]&7
	size := 2
	if mode != 3 && register == 4 { // a scaled index follows
		size++
		if mode == 0 && len(code) > 2 && code[2]&7 == 5 {
			size += 4
		}
	}
	switch {
	case mode == 1:
		size++
	case mode == 2, mode == 0 && register == 5:
		size += 4
	}
	return size
}

// code returns up to size bytes of code as it is in the file.
func (s *Symbolizer) code(p *process, addr uint64, size int) []byte {
	m, o := s.locate(p, addr)
	if o == nil || o.file == nil || addr > addr+uint64(size) {
		return nil
	}
	code := make([]byte, size)
	n, _ := o.file.ReadAt(code, int64(addr-m.start+m.offset))
	return code[:n]
}
