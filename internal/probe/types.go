package probe

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/cilium/ebpf/btf"
)

// typesFile is where the kernel shows its types.
const typesFile = "/sys/kernel/btf/vmlinux"

// errNoTypes: nothing can be traced without the types.
var errNoTypes = errors.New("this kernel shows no type information (BTF) in " + typesFile +
	": it has to be built with CONFIG_DEBUG_INFO_BTF=y; if it is and only the file is hidden, as in a container, give a copy of the file with --btf FILE")

// types are those of the running kernel.
type types struct {
	kernel *btf.Spec
	cache  *btf.Cache // finds attach targets
	from   string     // where they were found
}

// kernelTypes reads the types from path, or if that is empty from the kernel.
func kernelTypes(path string) (*types, error) {
	if path != "" {
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
	return nil, fmt.Errorf("%w (%w)", errNoTypes, err)
}

// explain says what is likely behind err, with which the kernel refused a program
// that it should take.
func (t *types) explain(err error) error {
	if lockdown() == confidentiality {
		return fmt.Errorf("%s (%w)", lockedDown, err)
	}
	// No file can replace types that the kernel itself lacks.
	if _, own := ownTypes(); t.from == typesFile || own == nil {
		return err
	}
	return fmt.Errorf("%w: is %s of this very kernel? And if the kernel was built without CONFIG_DEBUG_INFO_BTF=y, no --btf FILE can help: it looks up in its own types what it attaches to", err, t.from)
}

// typesFrom reads types that the user gives.
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
			return nil, fmt.Errorf("the type information (BTF) in %s is that of another kernel than runs here", path)
		}
	}
	return types, nil
}

// ownTypes asks the kernel for its types without a file: 5.11+, needs
// CAP_SYS_ADMIN.
func ownTypes() (*btf.Spec, error) {
	handle, err := btf.FindHandle((*btf.HandleInfo).IsVmlinux)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	return handle.Spec(nil)
}

// typeID gives 0, which is void, for what is not there.
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

// withCache makes the library find attach targets in kernel. It has an option for
// the types of relocations (ProgramOptions.KernelTypes), but looks for the targets
// only where it knows of itself (btf.LoadKernelSpec), unless the cache that it is
// given has looked before. Nothing exported says so to a cache.
func withCache(kernel *btf.Spec, from string) (*types, error) {
	cache := btf.NewCache()
	known := reflect.ValueOf(cache).Elem().FieldByName("kernelTypes")
	if !known.IsValid() || known.Type() != reflect.TypeFor[*btf.Spec]() {
		return nil, errors.New("built with a version of github.com/cilium/ebpf whose btf.Cache is not known here")
	}
	*(**btf.Spec)(known.Addr().UnsafePointer()) = kernel
	return &types{kernel, cache, from}, nil
}
