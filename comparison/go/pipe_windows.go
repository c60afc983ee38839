package main

import (
	"net"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

// The same as pipe-server's.
const bufferSize = 64 << 10

func listen(name string) (net.Listener, error) {
	path := `\\.\pipe\` + name
	listener, err := winio.ListenPipe(path, &winio.PipeConfig{
		MessageMode:      true,
		InputBufferSize:  bufferSize,
		OutputBufferSize: bufferSize,
	})
	if err == nil {
		occupyFirstInstance(path)
	}
	return listener, err
}

// occupyFirstInstance connects to the instance that go-winio creates to keep the name and never serves. On Windows this
// fails, because nobody can connect to that instance. Under Wine the first client can, and would wait forever.
func occupyFirstInstance(path string) {
	if name, err := windows.UTF16PtrFromString(path); err == nil {
		// The handle stays open.
		windows.CreateFile(name, windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING, 0, 0)
	}
}

// setUp makes each read return one message. go-winio's message mode is about writes only: it reads all pipes as bytes,
// so that a read returns part of a message, or several if the client pipelines.
func setUp(client net.Conn) error {
	var mode uint32 = windows.PIPE_READMODE_MESSAGE
	handle := windows.Handle(client.(interface{ Fd() uintptr }).Fd())
	return windows.SetNamedPipeHandleState(handle, &mode, nil, nil)
}
