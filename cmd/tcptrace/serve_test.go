package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/internal/serve"
	"github.com/tcptrace/tcptrace/internal/terminal"
)

// refused runs a daemon that is not to begin.
func refused(t *testing.T, args ...string) (status int, said string) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	status = run(&env{t.Context(), nil, terminal.NewWriter(os.Stdout), terminal.NewWriter(file)}, append([]string{"serve"}, args...))
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text)
}

// An address that is taken is said before anything is traced, and the others are given back.
func TestServePortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	status, said := refused(t, "--listen", free.Addr().String(), "--listen", taken.Addr().String())
	if status != exitFailure || !strings.Contains(said, "tcptrace: cannot listen: listen tcp "+taken.Addr().String()+": bind: address already in use\n") {
		t.Errorf("got %d: %s", status, said)
	}
	if again, err := net.Listen("tcp", free.Addr().String()); err != nil {
		t.Error(err)
	} else {
		again.Close()
	}
}

// A web configuration that is none is refused, and nothing of it is shown.
func TestServeWebConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("root:SECRET:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unknown := path + ".yml"
	if err := os.WriteFile(unknown, []byte("users: {a: b}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		unknown:       "field users not found",
		path:          "is no web configuration of prometheus/exporter-toolkit",
		path + "none": "cannot read the web configuration",
	} {
		status, said := refused(t, "--listen", "127.0.0.1:0", "--web-config", file)
		if status != exitFailure || !strings.Contains(said, want) || strings.Contains(said, "SECRET") {
			t.Errorf("%s: got %d: %s", file, status, said)
		}
	}
}

// The formula of the manual is that of the code.
func TestManPageSaysWorstSeries(t *testing.T) {
	if want := fmt.Sprintf("%d * (max-services + 2)", serve.SeriesPerService); !strings.Contains(manPage, want) {
		t.Errorf("the manual does not say %s", want)
	}
}
