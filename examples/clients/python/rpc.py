"""A JSON-RPC client in Python, on Linux: python rpc.py ADDRESS METHOD [PARAMETER]...

Each PARAMETER is JSON. Prints the result. Needs jsonrpcclient from PyPI.
"""

import json
import socket
import sys

from jsonrpcclient import Ok, parse_json, request_json

# The server's limit, max_message_size of its listener.
MAX_MESSAGE_SIZE = 65536


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: rpc.py ADDRESS METHOD [PARAMETER]...")
    address, method, *parameters = sys.argv[1:]
    request = request_json(method, params=[json.loads(text) for text in parameters])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as pipe:
        pipe.connect(address)
        # One call sends one message, and one receives one.
        pipe.send(request.encode())
        answer = parse_json(pipe.recv(MAX_MESSAGE_SIZE))
    if not isinstance(answer, Ok):
        sys.exit(f"{method}: error {answer.code}: {answer.message}")
    print(json.dumps(answer.result))


main()
