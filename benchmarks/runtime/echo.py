"""The other end of a socket pair that answers so many bytes with so many.

    python echo.py DESCRIPTOR REQUEST_BYTES REPLY_BYTES [MODEL]

What a round trip to another process costs before anybody has looked at what was sent. With an ONNX model, it also runs that on
the last bytes of the request, which is the least that any server in Python does: nothing is parsed, checked or counted.
"""

import socket
import sys
from collections.abc import Callable


def main(descriptor: int, request_bytes: int, reply_bytes: int, model: str = "") -> None:
    """Answer until the other end is closed."""
    end, buffer = socket.socket(fileno=descriptor), bytearray(request_bytes)
    view = memoryview(buffer)
    answer = _runner(model, buffer, reply_bytes) if model else bytes(reply_bytes).__bytes__
    while True:
        received = 0
        while received < request_bytes:
            count = end.recv_into(view[received:])
            if not count:
                return
            received += count
        end.sendall(answer())


def _runner(model: str, buffer: bytearray, reply_bytes: int) -> Callable[[], bytes]:
    import numpy as np  # noqa: PLC0415 - the bare echo needs neither
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    values = int(np.prod(shape))

    def answer() -> bytes:
        row = np.frombuffer(bytes(buffer[-4 * values :]), np.float32).reshape(shape)
        output = session.run(None, {entry.name: row})[0].tobytes()
        return bytes(reply_bytes - len(output)) + output

    return answer


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
