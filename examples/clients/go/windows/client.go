// A client in Go, on Windows, with github.com/Microsoft/go-winio: go run client.go \\.\pipe\NAME MESSAGE...
//
// Sends each MESSAGE and prints its reply.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/Microsoft/go-winio"
)

// The server's limit, pipe-server's --max-message-size.
const maxMessageSize = 65536

func run(address string, messages []string) error {
	// Waits for a busy pipe.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// By default go-winio connects anonymously, and a server that asks who its clients are refuses it.
	access := uint32(syscall.GENERIC_READ | syscall.GENERIC_WRITE)
	pipe, err := winio.DialPipeAccessImpLevel(ctx, address, access, winio.PipeImpLevelIdentification)
	if err != nil {
		return err
	}
	defer pipe.Close()
	// One byte more, to see a reply that is too long.
	reply := make([]byte, maxMessageSize+1)
	for _, message := range messages {
		// One call sends one message.
		if _, err := pipe.Write([]byte(message)); err != nil {
			return err
		}
		// A read returns bytes, not messages: with one request at a time, what arrives belongs to its reply.
		// io.EOF if the server closed the pipe instead.
		length, err := pipe.Read(reply)
		if err != nil {
			return err
		}
		if length > maxMessageSize {
			return errors.New("the reply is too long")
		}
		fmt.Printf("%s\n", reply[:length])
	}
	return nil
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: client ADDRESS MESSAGE...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
