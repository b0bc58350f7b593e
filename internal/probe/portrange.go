package probe

import (
	"fmt"
	"os"
)

// PortRange reads ip_local_port_range of a network namespace: the first and the
// last port that connect() picks from.
func (p *Probe) PortRange(netns uint32) (first, last uint16, err error) {
	ns, err := p.namespace(netns)
	if err != nil {
		return 0, 0, fmt.Errorf("read the port range: %w", err)
	}
	err = inNamespace(uint64(netns), ns, func() error {
		// The sysctl is that of the thread that opens the file.
		text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(string(text), &first, &last)
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("read the port range of network namespace %d: %w", netns, err)
	}
	return first, last, nil
}
