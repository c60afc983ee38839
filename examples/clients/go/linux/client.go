// A client in Go, on Linux: go run client.go PATH MESSAGE...
//
// Sends each MESSAGE and prints its reply. Only the standard library is needed.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// The server's limit, pipe-server's --max-message-size.
const maxMessageSize = 65536

func run(path string, messages []string) error {
	pipe, err := net.Dial("unixpacket", path)
	if err != nil {
		return err
	}
	defer pipe.Close()
	// One byte more, to see a reply that is too long. The kernel would drop its rest without saying so.
	reply := make([]byte, maxMessageSize+1)
	for _, message := range messages {
		// One call sends one message, and one receives one.
		if _, err := pipe.Write([]byte(message)); err != nil {
			return err
		}
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
		fmt.Fprintln(os.Stderr, "usage: client PATH MESSAGE...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
