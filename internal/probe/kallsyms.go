package probe

import (
	"bufio"
	"bytes"
	"io"
	"strconv"
)

// symbol is where a kernel function is: from start up to the next symbol.
type symbol struct {
	start, end uint64
}

// findSymbols reads /proc/kallsyms until it has found all wanted functions, or to the
// end. It ignores functions of modules, and the suffix that Clang's ThinLTO may add
// (".llvm.123"). An address of 0 means that the reader may not see addresses
// (kptr_restrict, no CAP_SYSLOG) and is an error.
func findSymbols(kallsyms io.Reader, wanted map[string]bool) (map[string]symbol, error) {
	found := make(map[string]symbol, len(wanted))
	var open []string // symbols that still lack their end
	var start uint64
	lines, empty := bufio.NewScanner(kallsyms), true
	for lines.Scan() {
		empty = false
		addr, kind, name, ok := splitSymbol(lines.Bytes())
		if !ok || kind != 't' && kind != 'T' {
			continue
		}
		if len(open) > 0 {
			next, err := strconv.ParseUint(string(addr), 16, 64)
			if err == nil && next > start {
				for _, n := range open {
					found[n] = symbol{start, next}
				}
				open = open[:0]
				if len(found) == len(wanted) {
					return found, nil
				}
			}
		}
		if !wanted[string(name)] {
			continue
		}
		at, err := strconv.ParseUint(string(addr), 16, 64)
		if err != nil || at == 0 {
			return nil, &symbolsError{"the addresses in /proc/kallsyms are hidden", "set kernel.kptr_restrict to 1 or 0"}
		}
		start = at
		open = append(open, string(name))
	}
	if empty && lines.Err() == nil {
		return nil, &symbolsError{"/proc/kallsyms is empty", "something is mounted over it: start the container with " +
			"--security-opt systempaths=unconfined, or mount the host's /proc"}
	}
	return found, lines.Err()
}

// symbolsError says why function addresses are not known.
type symbolsError struct{ what, remedy string }

func (e *symbolsError) Error() string { return e.what + ": " + e.remedy }

// splitSymbol splits "ffffffff81000000 t name". It refuses the symbols of modules:
// "ffffffffc0000000 t name\t[module]".
func splitSymbol(line []byte) (addr []byte, kind byte, name []byte, ok bool) {
	addr, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || len(rest) < 3 || rest[1] != ' ' || bytes.IndexByte(rest, '\t') >= 0 {
		return nil, 0, nil, false
	}
	name = rest[2:]
	if i := bytes.Index(name, []byte(".llvm.")); i > 0 {
		name = name[:i]
	}
	return addr, rest[0], name, true
}
