package probe

import (
	"errors"
	"fmt"
	"os"
	"reflect"

	"github.com/cilium/ebpf/btf"
)

// typesFile is where the kernel shows its types.
const typesFile = "/sys/kernel/btf/vmlinux"

// ErrNoTypes says that the kernel does not show its types, without which nothing can be
// traced.
var ErrNoTypes = errors.New("this kernel shows no type information (BTF) in " + typesFile)

// ErrForeignTypes says that a user other than root gave the types. The verifier of the kernel
// relies on them: with a doctored file, the programs would read any memory of the kernel.
var ErrForeignTypes = errors.New("type information (BTF) from a file is taken from root alone")

// types are those of the running kernel.
type types struct {
	kernel *btf.Spec
	cache  *btf.Cache // finds attach targets
	from   string     // where they were found
}

// kernelTypes reads the types from path, or from the kernel if path is empty.
func kernelTypes(path string) (*types, error) {
	if path != "" {
		if os.Getuid() != 0 {
			return nil, ErrForeignTypes
		}
		kernel, err := typesFrom(path)
		if err != nil {
			return nil, err
		}
		return withCache(kernel, path)
	}
	cache := btf.NewCache()
	kernel, err := cache.Kernel()
	if err == nil {
		return &types{kernel, cache, typesFile}, nil
	}
	if kernel, own := ownTypes(); own == nil {
		return withCache(kernel, "the kernel itself")
	}
	return nil, fmt.Errorf("%w: %w", ErrNoTypes, err)
}

// explain adds the likely cause to err, with which the kernel refused a program.
func (t *types) explain(err error) error {
	// A file cannot replace types that the kernel itself lacks.
	if _, own := ownTypes(); t.from == typesFile || own == nil {
		return err
	}
	return fmt.Errorf("%w: %s must be a copy of the types of this very kernel; a kernel that was built without CONFIG_DEBUG_INFO_BTF=y cannot be traced even so", err, t.from)
}

// typesFrom reads the types from a file of the user.
func typesFrom(path string) (*btf.Spec, error) {
	types, err := btf.LoadSpec(path)
	if err != nil {
		return nil, fmt.Errorf("read type information (BTF) from %s: %w: give a copy of this kernel's %s, or its vmlinux with debug information", path, err, typesFile)
	}
	own, err := ownTypes()
	if err != nil {
		return types, nil // before 5.11 there is nothing to compare with
	}
	for _, name := range []string{"btf_trace_inet_sock_set_state", "btf_trace_timer_start", "tcp_timewait_sock"} {
		if typeID(types, name) != typeID(own, name) {
			return nil, fmt.Errorf("the type information (BTF) in %s belongs to another kernel than the running one", path)
		}
	}
	return types, nil
}

// ownTypes asks the kernel for its types through bpf(2) and needs no file: 5.11+, with
// CAP_SYS_ADMIN.
func ownTypes() (*btf.Spec, error) {
	handle, err := btf.FindHandle((*btf.HandleInfo).IsVmlinux)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	return handle.Spec(nil)
}

// typeID returns 0, which is void, for a type that is not there.
func typeID(types *btf.Spec, name string) btf.TypeID {
	found, err := types.AnyTypeByName(name)
	if err != nil {
		return 0
	}
	id, err := types.TypeID(found)
	if err != nil {
		return 0
	}
	return id
}

func hasType(kernel *btf.Spec, name string) bool {
	_, err := kernel.AnyTypesByName(name)
	return err == nil
}

// withCache makes the library look for attach targets in kernel. It has an option for
// the types of relocations (ProgramOptions.KernelTypes), but it looks for attach targets
// in a cache, which fills itself from where the library expects the types
// (btf.LoadKernelSpec). It has no exported way to fill the cache with other types.
func withCache(kernel *btf.Spec, from string) (*types, error) {
	cache := btf.NewCache()
	known := reflect.ValueOf(cache).Elem().FieldByName("kernelTypes")
	if !known.IsValid() || known.Type() != reflect.TypeFor[*btf.Spec]() {
		return nil, errors.New("built with a version of github.com/cilium/ebpf whose btf.Cache is not known here")
	}
	*(**btf.Spec)(known.Addr().UnsafePointer()) = kernel
	return &types{kernel, cache, from}, nil
}
