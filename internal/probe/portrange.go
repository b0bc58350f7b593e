package probe

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// PortRange reads ip_local_port_range of a network namespace: the first and the
// last port that connect() picks from.
func (p *Probe) PortRange(netns uint32) (first, last uint16, err error) {
	text, err := p.ipv4Sysctl(netns, "ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(text, &first, &last)
	}
	return first, last, err
}

// ReservedPorts reads ip_local_reserved_ports of a network namespace: the first and the
// last of each range of ports that connect() leaves out.
func (p *Probe) ReservedPorts(netns uint32) ([][2]uint16, error) {
	text, err := p.ipv4Sysctl(netns, "ip_local_reserved_ports")
	if err != nil {
		return nil, err
	}
	return parsePorts(text)
}

// ipv4Sysctl reads a file of /proc/sys/net/ipv4 of a network namespace: that of the thread
// that opens it.
func (p *Probe) ipv4Sysctl(netns uint32, name string) (text string, err error) {
	ns, err := p.namespace(netns)
	if err == nil {
		err = inNamespace(uint64(netns), ns, func() error {
			content, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
			text = strings.TrimSpace(string(content))
			return err
		})
	}
	if err != nil {
		return "", fmt.Errorf("read %s of network namespace %d: %w", name, netns, err)
	}
	return text, nil
}

// parsePorts reads a list such as 8080,9148-9150 (proc_do_large_bitmap in kernel/sysctl.c).
func parsePorts(text string) (ports [][2]uint16, err error) {
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		low, high, is := strings.Cut(part, "-")
		if !is {
			high = low
		}
		first, err1 := strconv.ParseUint(low, 10, 16)
		last, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("%q is not a list of ports", text)
		}
		ports = append(ports, [2]uint16{uint16(first), uint16(last)})
	}
	return ports, nil
}
