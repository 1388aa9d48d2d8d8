"""Changes to inputs, drawn: what a short run tries around its corpus, and what a long one does where atheris is not installed."""

import random
from collections.abc import Iterator

_WORDS = (
    *(b"\r\n", b"\r\n\r\n", b"\0", b"\xff" * 8, b"0", b"-1", b"18446744073709551616", b"1e999", b"null", b"[]", b"{}"),
    *(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n"),
    *(
        b"EoR1",
        b"../",
        b"/",
        b"|split|",
        b'"sequence":',
        b'"first":',
        b'"data":',
        b'"shape":[',
        b"PK\x03\x04",
        b"PK\x01\x02",
    ),
)


def mutations(inputs: list[bytes], rng: random.Random) -> Iterator[bytes]:
    """Inputs with one to six changes each, without end."""
    while True:
        data = bytearray(rng.choice(inputs))
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            _change(data, rng, rng.choice(inputs))
        yield bytes(data)


def _change(data: bytearray, rng: random.Random, other: bytes) -> None:
    place = rng.randrange(len(data) + 1)
    size = rng.choice((1, 1, 2, 4, 8, 40))
    match rng.randrange(7):
        case 0 if place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        case 1 if place < len(data):
            data[place] = rng.randrange(256)
        case 2:
            del data[place : place + size]
        case 3:
            data[place:place] = rng.choice(_WORDS)
        case 4:
            data[place:place] = data[place : place + size]
        case 5:
            begin = rng.randrange(len(other) + 1)
            data[place : place + size] = other[begin : begin + size]
        case _:
            del data[place:]
