package tcp

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Ports says which ports the user asked for: those in Only, or all if it is empty, without
// those in Except. The zero Ports has every port.
type Ports struct{ Only, Except []PortRange }

// Port returns the Ports that have one port.
func Port(port uint16) Ports { return Ports{Only: []PortRange{{port, port}}} }

// All reports whether every port is among them because nothing was asked for.
func (p Ports) All() bool { return len(p.Only) == 0 && len(p.Except) == 0 }

// Has reports whether a port is among them.
func (p Ports) Has(port uint16) bool {
	return (len(p.Only) == 0 || inRange(p.Only, port)) && !inRange(p.Except, port)
}

// List returns the ports one by one, nil if they are more than most or all but some.
func (p Ports) List(most int) (list []uint16) {
	if len(p.Only) == 0 {
		return nil
	}
	for port := range 1 << 16 {
		if !p.Has(uint16(port)) {
			continue
		}
		if len(list) == most {
			return nil
		}
		list = append(list, uint16(port))
	}
	return list
}

func inRange(ranges []PortRange, port uint16) bool {
	for _, r := range ranges {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

// either judges a socket by both its ports: one of them must be in Only, and none in
// Except. The local one is 0, and may become any, before connect() has picked one.
func (p Ports) either(local, remote uint16) verdict {
	switch {
	case inRange(p.Except, local), inRange(p.Except, remote):
		return never
	case local == 0 && len(p.Except) > 0:
		return undecided
	case len(p.Only) == 0, inRange(p.Only, local), inRange(p.Only, remote):
		return match
	case local == 0:
		return undecided
	}
	return never
}
