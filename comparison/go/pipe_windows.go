package main

import (
	"net"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

// The same as pipe-server's.
const bufferSize = 64 << 10

func listen(name string) (net.Listener, error) {
	return winio.ListenPipe(`\\.\pipe\`+name, &winio.PipeConfig{
		MessageMode:      true,
		InputBufferSize:  bufferSize,
		OutputBufferSize: bufferSize,
	})
}

// setUp makes each read return one message. go-winio's message mode is about writes only: it reads all pipes as bytes,
// so that a read returns part of a message, or several if the client pipelines.
func setUp(client net.Conn) error {
	var mode uint32 = windows.PIPE_READMODE_MESSAGE
	handle := windows.Handle(client.(interface{ Fd() uintptr }).Fd())
	return windows.SetNamedPipeHandleState(handle, &mode, nil, nil)
}
