"""Ask a device about every row of an ``.npz`` file, and count how often it is right: Open Inference Protocol, binary tensors.

``python ask.py http://127.0.0.1:8101/v2/models/quarters eval.npz``; with the standard library and numpy alone.
"""

import http.client
import json
import sys
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

PROTOCOL_NAMES = {"float32": "FP32", "uint8": "UINT8"}


def ask(connection: http.client.HTTPConnection, path: str, name: str, row: NDArray[np.generic]) -> NDArray[np.float32]:
    """The first output for one row of shape ``(1, …)``."""
    tensor = {
        "name": name,
        "datatype": PROTOCOL_NAMES[str(row.dtype)],
        "shape": list(row.shape),
        "parameters": {"binary_data_size": row.nbytes},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    connection.request(
        "POST",
        f"{path}/infer",
        body=header + row.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    response = connection.getresponse()
    body = response.read()
    if response.status != http.client.OK:
        raise SystemExit(f"HTTP {response.status}: {body.decode(errors='replace')}")
    size = int(response.headers["Inference-Header-Content-Length"])
    first = json.loads(body[:size])["outputs"][0]
    return np.frombuffer(body, "<f4", count=int(np.prod(first["shape"])), offset=size)


def main(url: str, file: str) -> None:
    """Ask about every row of the file's one input."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=10)
    with np.load(file) as arrays:
        (name,) = set(arrays.files) - {"labels"}
        rows, labels = arrays[name], arrays["labels"]
    right = sum(
        int(ask(connection, address.path, name, rows[index : index + 1]).argmax() == label)
        for index, label in enumerate(labels)
    )
    sys.stdout.write(f"{right} of {len(labels)} right\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
