package tcp

import (
	"slices"
	"testing"
)

func TestPorts(t *testing.T) {
	ranges := Ports{Only: []PortRange{{80, 82}, {443, 443}}, Except: []PortRange{{81, 81}}}
	if got := ranges.List(8); !slices.Equal(got, []uint16{80, 82, 443}) {
		t.Errorf("List is %v", got)
	}
	if got := ranges.List(2); got != nil {
		t.Errorf("three ports do not fit into two: %v", got)
	}
	if got := (Ports{Except: ranges.Only}).List(8); got != nil {
		t.Errorf("all but some cannot be listed: %v", got)
	}
	for port, want := range map[uint16]bool{79: false, 80: true, 81: false, 82: true, 443: true, 0: false} {
		if ranges.Has(port) != want {
			t.Errorf("Has(%d) is %v", port, !want)
		}
	}
}

func TestEitherPort(t *testing.T) {
	web, not := []PortRange{{80, 80}, {443, 443}}, []PortRange{{22, 22}}
	for _, test := range []struct {
		ports         Ports
		local, remote uint16
		want          verdict
	}{
		{Ports{}, 0, 1, match},
		{Ports{Only: web}, 80, 1, match},
		{Ports{Only: web}, 1, 443, match},
		{Ports{Only: web}, 1, 2, never},
		{Ports{Only: web}, 0, 2, undecided},
		{Ports{Only: web}, 0, 80, match},
		{Ports{Except: not}, 1, 2, match},
		{Ports{Except: not}, 22, 2, never},
		{Ports{Except: not}, 0, 22, never},
		{Ports{Except: not}, 0, 2, undecided}, // it may become 22
		{Ports{Only: web, Except: not}, 0, 80, undecided},
		{Ports{Only: web, Except: not}, 22, 80, never},
	} {
		if got := test.ports.either(test.local, test.remote); got != test.want {
			t.Errorf("%+v: %d and %d give %d, want %d", test.ports, test.local, test.remote, got, test.want)
		}
	}
}
