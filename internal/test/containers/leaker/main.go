// Leaker is what the containers of the tests run, one static file without a shell.
//
//	leaker serve PORT          accepts connections and never closes them
//	leaker visit ADDRESS       connects again and again, and closes at once
//	leaker once ADDRESS        connects, closes, and ends
//	leaker decoy PID COMMAND   runs COMMAND beside a process that has that PID here
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("leaker: give serve, visit or decoy")
	}
	switch os.Args[1] {
	case "serve":
		log.Fatal(serve(os.Args[2]))
	case "visit":
		log.Fatal(visit(os.Args[2]))
	case "once":
		if err := once(os.Args[2]); err != nil {
			log.Fatal(err)
		}
	case "decoy":
		log.Fatal(decoy(os.Args[2], os.Args[3:]))
	case "wait":
		log.Fatal(wait())
	}
}

func serve(port string) error {
	l, err := net.Listen("tcp4", ":"+port)
	if err != nil {
		return err
	}
	var kept []net.Conn
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		kept = append(kept, conn)
		fmt.Println(len(kept))
	}
}

func once(address string) error {
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func visit(address string) error {
	for {
		conn, err := net.Dial("tcp4", address)
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// wait is what an innocent process does, with a limit that shows whose it is.
func wait() error {
	limit := syscall.Rlimit{Cur: 77, Max: 77}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	time.Sleep(time.Hour)
	return nil
}

// decoy gives a PID to an innocent process, and becomes the command.
func decoy(pid string, command []string) error {
	number, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	// Threads take PIDs as well, so the next one may be gone by then.
	for range 100 {
		last := []byte(strconv.Itoa(number - 1))
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", last, 0); err != nil {
			return err
		}
		innocent := exec.Command(exe, "wait")
		if err := innocent.Start(); err != nil {
			return err
		}
		if innocent.Process.Pid == number {
			return syscall.Exec(command[0], command, os.Environ())
		}
		if err := innocent.Process.Kill(); err != nil {
			return err
		}
		_ = innocent.Wait() // it was killed
	}
	return fmt.Errorf("no process got the PID %d", number)
}
