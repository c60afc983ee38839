// Go's server: one goroutine per client, which reads requests and writes replies until the client closes. Each read
// returns one message. This one echoes.
//
// usage: echo NAME LONGEST, where NAME is a path on Linux
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
)

// longest is the length of the longest message.
var longest int

func echo(client net.Conn) {
	defer client.Close()
	if err := setUp(client); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	message := make([]byte, longest)
	for {
		length, err := client.Read(message)
		if err != nil {
			return
		}
		if _, err := client.Write(message[:length]); err != nil {
			return
		}
	}
}

func serve(name string) error {
	listener, err := listen(name)
	if err != nil {
		return err
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go echo(client)
	}
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: echo NAME LONGEST")
		os.Exit(2)
	}
	var err error
	if longest, err = strconv.Atoi(os.Args[2]); err == nil {
		err = serve(os.Args[1])
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
