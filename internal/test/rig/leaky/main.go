// Leaky is an HTTP client with the most common of all leaks: it never closes the
// body of a response. Its server, which it starts itself, closes each connection
// after the answer, so the client's sockets pile up in CLOSE_WAIT. Run it, and look
// at it with tcptrace leaks:
//
//	go run ./internal/test/rig/leaky &
//	sudo tcptrace leaks
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

func main() {
	rate := flag.Float64("rate", 2, "requests per second")
	serving := flag.Bool("serve", false, "be the server")
	flag.Parse()
	if *serving {
		log.Fatal(serve())
	}
	url, err := startServer()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d leaks a socket to %s %g times a second\n", os.Getpid(), url, *rate)
	for range time.Tick(time.Duration(float64(time.Second) / *rate)) {
		if err := fetch(url); err != nil {
			log.Fatal(err)
		}
	}
}

var client = http.Client{Transport: &http.Transport{DialContext: dial}}

// dial opens the sockets that fetch leaks.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, address)
}

func fetch(url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	// Here it is: no response.Body.Close().
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// startServer runs this program once more, as the server, for as long as we live.
func startServer() (url string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	server := exec.Command(self, "-serve")
	server.Stderr = os.Stderr
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := server.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := server.Start(); err != nil {
		return "", err
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	return "http://" + strings.TrimSpace(address) + "/", err
}

func serve() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	body := make([]byte, 16<<10)
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		_, _ = w.Write(body) // the client may be gone
	}))
}
