"""Checks signatures in a short-lived process, so that the agent never loads the library behind them.

It takes 7 MB for good, and is needed for a few documents a month. ``python -m edgeops_runtime.notary`` reads one request from its
stdin and writes one answer, which is believed for exactly the bytes that it was given; the payload is taken out of them here.
"""

import logging
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from edgeops.errors import EdgeOpsError, TransientError, UntrustedError
from edgeops.files import digest_bytes
from edgeops.signing import PublicKey, open_envelope, unseal

logger = logging.getLogger(__name__)

NOTARY_COMMAND = (sys.executable, "-m", "edgeops_runtime.notary")

LIMIT_S = 20.0
"""Of one check, which takes a tenth of a second here and about one on a small board."""

_REMEMBERED = 16
_TAIL = 300


class Request(msgspec.Struct, frozen=True):
    """What the process is asked: has one of these keys signed this envelope?"""

    envelope: bytes
    kind: str
    keys: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True):
    """What it answers.

    Attributes:
        request: Digest of the request that was read.
        objection: Why the envelope is not to be trusted; empty: it is.
    """

    request: str
    objection: str = ""


class Notary:
    """Takes payloads out of envelopes like :func:`edgeops.signing.unseal`; may be used from several threads.

    Where no process can be had, the check is made here, and costs the memory after all: what a device is to run must not depend
    on whether there was room for a check.

    Args:
        command: How to start the process.
        limit_s: When it is taken to hang, in seconds.
    """

    def __init__(self, command: Sequence[str] = NOTARY_COMMAND, *, limit_s: float = LIMIT_S) -> None:
        self._command = tuple(command)
        self._limit_s = limit_s
        # A broker sends what it retains with every connection: the same bytes again.
        self._trusted: deque[str] = deque(maxlen=_REMEMBERED)

    def __call__(self, envelope: bytes, *, kind: str, keys: Iterable[PublicKey] | None) -> bytes:
        """Take the payload out of an envelope.

        Raises:
            UntrustedError: It is not an envelope, none of the keys signed it, or the check died of it.
        """
        opened = open_envelope(envelope, kind=kind)
        if keys is None:
            return bytes(opened.payload)
        keys = tuple(keys)
        if not {signature.key for signature in opened.signatures} & {key.id for key in keys}:
            return unseal(envelope, kind=kind, keys=keys)  # Raises, and needs no library for that.
        request = msgspec.json.encode(Request(envelope, kind, tuple(key.text for key in keys)))
        digest = digest_bytes(request)
        if digest not in self._trusted:
            try:
                objection = self._ask(request, digest, kind)
            except TransientError as error:
                logger.warning("%s; checked in the agent", error)
                return unseal(envelope, kind=kind, keys=keys)
            if objection:
                raise UntrustedError(objection)
            self._trusted.append(digest)
        return bytes(opened.payload)

    def _ask(self, request: bytes, digest: str, kind: str) -> str:
        """The objection; empty when there is none.

        Raises:
            TransientError: There is no answer, and that is not the envelope's fault.
        """
        try:
            done = subprocess.run(  # noqa: S603 - our own module without arguments
                self._command, input=request, capture_output=True, timeout=self._limit_s, check=False
            )
        except subprocess.TimeoutExpired as late:
            raise TransientError(f"{kind}: no answer of the notary within {self._limit_s:g} s") from late
        except OSError as error:
            raise TransientError(f"{kind}: the notary cannot be started: {error}") from error
        if done.returncode < 0 and -done.returncode != signal.SIGKILL:
            return f"{kind}: the check of its signature was ended by signal {-done.returncode}"
        try:
            answer = msgspec.json.decode(done.stdout, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = None
        if done.returncode != 0 or answer is None or answer.request != digest:
            words = done.stderr[-_TAIL:].decode(errors="replace").strip()
            raise TransientError(
                f"{kind}: the notary ended with {done.returncode}: {words or 'no answer to this request'}"
            )
        return answer.objection


def answer(data: bytes) -> Answer:
    """Check what a request asks.

    Raises:
        msgspec.DecodeError: It is none.
    """
    request = msgspec.json.decode(data, type=Request)
    objection = ""
    try:
        unseal(request.envelope, kind=request.kind, keys=[PublicKey(text) for text in request.keys])
    except EdgeOpsError as error:
        objection = str(error) or "not trusted"
    return Answer(request=digest_bytes(data), objection=objection)


def main() -> None:
    """One request in, one answer out."""
    sys.stdout.buffer.write(msgspec.json.encode(answer(sys.stdin.buffer.read())))


if __name__ == "__main__":
    main()
