package systemd

import (
	"net"
	"os"
	"testing"
)

// listenNotify is the socket of a service manager, to which everybody may write.
func listenNotify(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	return socket
}
