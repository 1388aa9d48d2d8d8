"""The other end of a socket pair that answers so many bytes with so many.

    python echo.py DESCRIPTOR REQUEST_BYTES REPLY_BYTES

What a round trip to another process costs before anybody has looked at what was sent.
"""

import socket
import sys


def main(descriptor: int, request_bytes: int, reply_bytes: int) -> None:
    """Answer until the other end is closed."""
    end, buffer, reply = socket.socket(fileno=descriptor), bytearray(request_bytes), bytes(reply_bytes)
    view = memoryview(buffer)
    while True:
        received = 0
        while received < request_bytes:
            count = end.recv_into(view[received:])
            if not count:
                return
            received += count
        end.sendall(reply)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
