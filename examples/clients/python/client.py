"""A client in Python, on Windows and Linux: python client.py ADDRESS MESSAGE...

Sends each MESSAGE as UTF-8 and prints its reply. Only the standard library is needed.
"""

import socket
import sys

# The server's limit, pipe-server's --max-message-size.
MAX_MESSAGE_SIZE = 65536


class LinuxPipe:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(path)

    def call(self, request):
        # One call sends one message, and one receives one.
        self.socket.send(request)
        reply, _, flags, _ = self.socket.recvmsg(MAX_MESSAGE_SIZE)
        if flags & socket.MSG_TRUNC:
            raise ValueError(f"the reply has more than {MAX_MESSAGE_SIZE} bytes")
        if not reply:
            raise EOFError("the server closed the pipe instead of replying")
        return reply

    def close(self):
        self.socket.close()


class WindowsPipe:
    def __init__(self, address):
        # It waits for a busy pipe, and reads in message mode. Without an authkey it sends nothing of its own.
        from multiprocessing.connection import Client

        self.connection = Client(address, family="AF_PIPE")

    def call(self, request):
        self.connection.send_bytes(request)
        # EOFError if the server closed the pipe, OSError if the reply is longer.
        return self.connection.recv_bytes(MAX_MESSAGE_SIZE)

    def close(self):
        self.connection.close()


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: client.py ADDRESS MESSAGE...")
    pipe = (WindowsPipe if sys.platform == "win32" else LinuxPipe)(sys.argv[1])
    for message in sys.argv[2:]:
        sys.stdout.buffer.write(pipe.call(message.encode()) + b"\n")
    pipe.close()


main()
