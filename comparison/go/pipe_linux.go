package main

import "net"

const (
	// The kernel's default, net.core.wmem_default.
	sendBuffer = 208 << 10
	// What the kernel reserves of the send buffer.
	sendOverhead = 32
)

func listen(name string) (net.Listener, error) {
	return net.Listen("unixpacket", name)
}

// setUp grows the send buffer to fit the longest message, if the default is smaller.
func setUp(client net.Conn) error {
	if wanted := longest + sendOverhead; wanted > sendBuffer {
		return client.(*net.UnixConn).SetWriteBuffer(wanted)
	}
	return nil
}
