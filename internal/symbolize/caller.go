package symbolize

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"slices"
)

// complete puts a function back that stacks of C programs lack. A stack is walked
// along the frame pointers; most C libraries have none, so that when their
// connect() enters the kernel, the frame pointer is still that of its caller, and
// the walk goes from connect() to the caller of the caller. What is missing is
// the very function that opened the socket.
//
// addrs is a stack as for Name; top is the memory that the stack pointer
// pointed to, a dozen words, on arm64 with the link register before it. Of these
// words, complete takes only return addresses: a call instruction comes before
// them. The first one is where connect() returns to, unless an earlier call left
// it there. So the call that returns to addrs[1] has to go to the function that
// holds the word, directly or by a jump. A call by pointer does not say where it
// goes; then the first word is believed. It is also believed if addrs[1] is not a
// return address: then the program itself has no frame pointers, and its stack ends
// with this word.
// If nothing is missing, or nothing is certain, the result is addrs.
func (s *Symbolizer) complete(pid uint32, addrs, top []uint64) []uint64 {
	p := s.processes.get(pid)
	if p == nil || len(addrs) == 0 {
		return addrs
	}
	if len(addrs) > 1 && (p.find(addrs[1]-1) == nil || !s.isReturn(p, addrs[1])) {
		addrs = addrs[:1]
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

// leadsTo reports whether the call that returns to ret may be one of the function
// that holds addr.
func (s *Symbolizer) leadsTo(p *process, ret, addr uint64) bool {
	const maxFunction = 1 << 20
	size, target := s.callBefore(p, ret)
	if size == 0 || target == 0 {
		return size != 0
	}
	if called := s.function(p, target+1); called != "" {
		name := s.function(p, addr)
		return called == name || s.jumpsTo(p, target, name)
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

// jumpsTo reports whether the function at an address jumps to the one of that name,
// as it does to call it last: the callee then returns to the caller of both.
func (s *Symbolizer) jumpsTo(p *process, addr uint64, name string) bool {
	const maxCode = 512 // of a function that is looked through
	code := s.code(p, addr, maxCode)
	step, long := 1, 5
	if runtime.GOARCH == "arm64" {
		step, long = 4, 4
	}
	for at := 0; at+long <= len(code); at += step {
		target := jumpTarget(code[at:at+long], addr+uint64(at))
		if target == 0 {
			continue
		}
		// It has to begin there: a chance byte that looks like a jump does not.
		if s.function(p, target+1) == name && s.function(p, target) != name {
			return true
		}
	}
	return false
}

// jumpTarget returns where an instruction at addr jumps to, 0 if it does not.
func jumpTarget(code []byte, addr uint64) uint64 {
	if runtime.GOARCH == "arm64" {
		if word := binary.LittleEndian.Uint32(code); word>>26 == 0x05 { // b
			return addr + uint64(int64(int32(word<<6)>>6)*4)
		}
		return 0
	}
	switch code[0] {
	case 0xe9: // jmp target
		return addr + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(code[1:]))))
	case 0xeb:
		return addr + 2 + uint64(int64(int8(code[1])))
	}
	return 0
}

// isReturn reports whether a call returns to addr, as far as the code can be read.
func (s *Symbolizer) isReturn(p *process, addr uint64) bool {
	if len(s.code(p, addr-longestCall, longestCall)) < longestCall {
		return true
	}
	if size, _ := s.callBefore(p, addr); size != 0 {
		return true
	}
	// The runtime of Go begins a goroutine as if goexit had called it.
	return s.function(p, addr) == "runtime.goexit"
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

// longestCall is the size of the longest call instruction.
const longestCall = 7

// callBefore returns the size of the call instruction that ends at addr, 0 if
// there is not one, and where it goes, 0 if that is not known before it runs.
func (s *Symbolizer) callBefore(p *process, addr uint64) (size int, target uint64) {
	code := s.code(p, addr-longestCall, longestCall)
	if len(code) < longestCall {
		return 0, 0
	}
	if runtime.GOARCH == "arm64" {
		switch word := binary.LittleEndian.Uint32(code[longestCall-4:]); {
		case word>>26 == 0x25: // bl
			return 4, addr - 4 + uint64(int64(int32(word<<6)>>6)*4)
		case word&^(31<<5) == 0xd63f0000: // blr
			return 4, 0
		case word&0xfefff800 == 0xd63f0800: // blraa, blrab and their forms with a zero
			return 4, 0
		}
		return 0, 0
	}
	for size := 2; size <= longestCall; size++ {
		switch at := code[longestCall-size:]; {
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
