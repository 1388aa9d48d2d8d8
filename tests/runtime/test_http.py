import contextlib
import itertools
import random
import re
import socket
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops.errors import ConfigError
from edgeops_runtime.serving.http import KnownHeads, Limits, Request, Response, _Reader
from edgeops_runtime.serving.listener import Listener, address_of, bind

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import eventually

LIMITS = Limits(header_bytes=4000, body_bytes=100_000, idle_s=5.0, request_s=0.3, send_s=5.0)


class Desk:
    """A handler that tells what it was asked; ``/wait`` waits until the test lets it go."""

    def __init__(self):
        self.seen = []
        self.waits = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, request: Request) -> Response:
        self.seen.append(request)
        if request.path == b"/wait":
            self.waits.release()
            self.go.wait(20)
        text = msgspec.json.encode({"path": request.path.decode(), "size": len(request.body)})
        return Response(200, (text[:3], text[3:]))


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def make_listener(desk):
    with contextlib.ExitStack() as stack:

        def make(address="127.0.0.1:0", *, limits=LIMITS, max_connections=64):
            listening = stack.enter_context(bind(address))
            listener = Listener(listening, desk, limits=limits, max_connections=max_connections)
            listener.start()
            stack.callback(listener.drain, 0.0)
            stack.callback(desk.go.set)
            return listener, listening

        yield make


@pytest.fixture
def address(make_listener):
    return make_listener()[1].getsockname()


def send(address, data, *, then_shut=False):
    """Send bytes on a new connection and return all that comes back."""
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(data)
        if then_shut:
            client.shutdown(socket.SHUT_WR)
        return read_all(client)


def read_all(client):
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def statuses(data):
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


CLOSE = b"Connection: close\r\n\r\n"


def test_requests_on_one_connection_are_answered(address, desk):
    client = HTTPConnection(*address, timeout=20)
    for size in (0, 1, 99_999):
        client.request("POST", "/a?query=1", b"x" * size, headers={"X-Name": "value"})
        answer = client.getresponse()
        assert (answer.status, msgspec.json.decode(answer.read())) == (200, {"path": "/a", "size": size})
        assert answer.headers["Connection"] == "keep-alive"
    client.close()
    assert desk.seen[-1].headers[b"x-name"] == b"value"


def test_pipelined_requests_are_answered_in_order(address):
    requests = b"".join(b"POST /%d HTTP/1.1\r\nContent-Length: 2\r\n\r\nab" % index for index in range(50))
    answer = send(address, requests + b"GET /last HTTP/1.1\r\n" + CLOSE)
    assert statuses(answer) == [200] * 51
    paths = [part.split(b'"')[0].decode() for part in answer.split(b'"path":"')[1:]]
    assert paths == [f"/{index}" for index in range(50)] + ["/last"]


def test_a_request_may_come_byte_by_byte(address):
    with socket.create_connection(address, timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"POST /slow HTTP/1.1\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc":
            client.sendall(bytes([byte]))
        assert b'"path":"/slow","size":3' in read_all(client)


def test_a_chunked_body_is_put_together(address):
    answer = send(
        address, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    assert b'"size":5' in answer


def test_head_is_answered_without_a_body(address):
    answer = send(address, b"HEAD /a HTTP/1.1\r\n" + CLOSE)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert statuses(head) == [200]
    assert b"Content-Length: 22" in head
    assert body == b""


def test_http_1_0_closes_unless_it_is_asked_to_stay(address):
    assert statuses(send(address, b"GET / HTTP/1.0\r\n\r\n")) == [200]
    stayed = send(address, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n")
    assert statuses(stayed) == [200, 200]


def test_a_client_that_asks_first_is_told_to_continue(address):
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n" + CLOSE)
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abcd")
        assert b'"size":4' in read_all(client)


def test_an_upgrade_is_declined_by_answering(address):
    assert statuses(send(address, b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")) == [200]


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"garbage\x00\xff\r\n\r\n", 400, b"not a valid HTTP/1.1 request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, b"not a valid"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, b"not a valid"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, b"not a valid"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, b"not a valid"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 5000 + b"\r\n\r\n", 431, b"at most 4000 bytes"),
        (b"GET /" + b"y" * 5000 + b" HTTP/1.1\r\n\r\n", 431, b"at most 4000 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n", 431, b"at most 4000 bytes"),
        (b"POST / HTTP/1.1\r\nContent-Length: 100001\r\n\r\n", 413, b"at most 100000 bytes"),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 100001\r\n\r\n", 413, b"at most 100000 bytes"),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"ffff\r\n" + b"x" * 65535 + b"\r\nffff\r\n" + b"x" * 65535,
            413,
            b"at most 100000 bytes",
        ),
    ],
)
def test_a_broken_rule_is_named_and_ends_the_connection(address, desk, data, status, message):
    answer = send(address, data)
    assert statuses(answer) == [status]
    assert message in answer
    assert b"Connection: close" in answer
    assert desk.seen == []
    assert statuses(send(address, b"GET / HTTP/1.1\r\n" + CLOSE)) == [200]


def test_a_header_without_end_is_cut_off(address):
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                client.sendall(b"y" * 1000)
        assert statuses(read_all(client)) == [431]


def test_a_large_body_is_refused_while_the_client_still_sends(address):
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 20000000\r\n\r\n")
        client.sendall(b"x" * 20_000_000)
        assert statuses(read_all(client)) == [413]


@pytest.mark.parametrize(
    "start", [b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc", b"GET / HT", b"GET / HTTP/1.1\r\nA: b\r\n"]
)
def test_half_a_request_is_timed_out(address, start):
    answer = send(address, start)
    assert statuses(answer) == [408]
    assert b"within 0.3 s" in answer


def test_a_client_that_trickles_is_timed_out(address):
    with socket.create_connection(address, timeout=0.05) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                client.sendall(b"x")
                try:
                    answer += client.recv(1000)
                except TimeoutError:
                    continue
                break
        assert statuses(answer) == [408]


def test_an_idle_connection_is_closed_without_a_word(make_listener):
    _, listening = make_listener(limits=Limits(idle_s=0.2))
    assert send(listening.getsockname(), b"") == b""
    assert statuses(send(listening.getsockname(), b"GET / HTTP/1.1\r\n\r\n")) == [200]


def test_a_client_that_leaves_in_the_middle_of_a_body_harms_nobody(address, desk):
    for _ in range(20):
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc")
    assert statuses(send(address, b"GET / HTTP/1.1\r\n" + CLOSE)) == [200]
    assert len(desk.seen) == 1


def test_more_connections_than_the_limit_are_told_to_come_again(make_listener, desk):
    _, listening = make_listener(max_connections=20)
    answers = []

    def ask():
        answers.append(send(listening.getsockname(), b"GET /wait HTTP/1.1\r\n" + CLOSE))

    threads = [threading.Thread(target=ask) for _ in range(100)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert desk.waits.acquire(timeout=20)
    while sum(thread.is_alive() for thread in threads) > 20:
        next(thread for thread in threads if thread.is_alive() and thread.join(0.05) is None)
    desk.go.set()
    for thread in threads:
        thread.join(20)
    codes = [code for answer in answers for code in statuses(answer)]
    assert sorted(codes) == [200] * 20 + [503] * 80
    assert all(b"Retry-After: 1" in answer for answer in answers if b"503" in answer)
    assert statuses(send(listening.getsockname(), b"GET / HTTP/1.1\r\n" + CLOSE)) == [200]


def test_clients_that_only_hold_their_connections_do_not_lock_out_the_others(make_listener):
    _, listening = make_listener(max_connections=3)
    idle = [socket.create_connection(listening.getsockname(), timeout=20) for _ in range(3)]
    for each in idle:
        each.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert statuses(each.recv(1000)) == [200]

    def ask() -> list[int]:
        return statuses(send(listening.getsockname(), b"GET / HTTP/1.1\r\n" + CLOSE))

    assert ask() == [503]
    eventually(lambda: ask() == [200])
    for each in idle:
        each.close()


def test_random_bytes_never_stop_it(address):
    rng = random.Random(5)
    valid = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789"
    for _ in range(150):
        data = bytearray(valid)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with contextlib.suppress(ConnectionError):
            send(address, bytes(data), then_shut=True)
    assert statuses(send(address, b"GET / HTTP/1.1\r\n" + CLOSE)) == [200]


def test_a_drain_finishes_the_request_that_is_running_and_closes_the_idle(make_listener, desk):
    listener, listening = make_listener()
    busy, idle = (HTTPConnection(*listening.getsockname(), timeout=20) for _ in range(2))
    idle.request("GET", "/a")
    assert idle.getresponse().read()
    busy.request("GET", "/wait")
    assert desk.waits.acquire(timeout=20)
    drain = threading.Thread(target=listener.drain, args=(0.0,))
    drain.start()
    assert idle.sock.recv(10) == b""  # closed, nothing was asked
    desk.go.set()
    answer = busy.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    drain.join(20)
    assert not drain.is_alive()
    for client in (busy, idle):
        client.close()


def test_the_next_answer_on_an_open_connection_is_the_last_while_it_drains(make_listener):
    listener, listening = make_listener()
    client = HTTPConnection(*listening.getsockname(), timeout=20)
    client.request("GET", "/a")
    assert client.getresponse().read()
    drain = threading.Thread(target=listener.drain, args=(20.0,))
    drain.start()
    client.request("GET", "/b")
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"path":"/b","size":0}')
    drain.join(20)
    assert not drain.is_alive()
    client.close()


def test_a_second_call_cuts_a_drain_short(make_listener):
    listener, listening = make_listener()
    with socket.create_connection(listening.getsockname(), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(1000)
        drain = threading.Thread(target=listener.drain, args=(1000.0,))
        drain.start()
        listener.hang_up()
        assert client.recv(10) == b""
        drain.join(20)
        assert not drain.is_alive()


def test_a_pause_leaves_connections_to_others_and_can_be_taken_back(make_listener):
    listener, listening = make_listener()
    client = HTTPConnection(*listening.getsockname(), timeout=20)
    client.request("GET", "/a")
    assert client.getresponse().read()
    listener.pause()
    client.request("GET", "/b")
    answer = client.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert answer.read()
    client.request("GET", "/c")  # a new connection, which waits in the backlog
    listener.start()
    assert client.getresponse().status == 200
    client.close()


def test_a_unix_socket_serves_and_a_stale_file_is_replaced(make_listener, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    _, listening = make_listener(f"unix:{path}")
    assert address_of(listening) == f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\n" + CLOSE)
        assert statuses(read_all(client)) == [200]
    with pytest.raises(ConfigError, match="somebody listens on"):
        bind(f"unix:{path}")


def test_an_address_that_cannot_be_had_is_a_config_error(address, tmp_path):
    for wrong in ("nonsense", "127.0.0.1:port", f"{address[0]}:{address[1]}", "127.0.0.1:99999", "203.0.113.1:80"):
        with pytest.raises(ConfigError, match="address"):
            bind(wrong)
    file = Path(tmp_path / "file")
    file.write_text("kept")
    with pytest.raises(ConfigError, match="is no socket"):
        bind(f"unix:{file}")
    assert file.read_text() == "kept"


def reader_finds(wire, splits, heads):
    """What a reader makes of some bytes that arrive in pieces: the requests, and the rule that was broken."""
    reader = _Reader(Limits(body_bytes=200, header_bytes=300), heads, None)
    found = []
    pieces = [wire[start:end] for start, end in itertools.pairwise((0, *sorted(splits), len(wire)))]
    for piece in filter(None, pieces):
        while piece:
            if reader.room is not None:
                taken = min(len(piece), len(reader.room))
                reader.room[:taken] = piece[:taken]
                reader.fill(taken)
                piece = piece[taken:]  # noqa: PLW2901 - as a socket gives it
            elif reader.problem is None and not reader.feed(piece):
                piece = b""  # noqa: PLW2901
            else:
                break
        found += [(r.method, r.path, r.headers, bytes(r.body), r.keep_alive) for r in reader.requests]
        reader.requests.clear()
    return found, reader.problem


HEADS = (
    b"POST /infer HTTP/1.1\r\nContent-Length: 20\r\nInference-Header-Content-Length: 7\r\n\r\n",
    b"POST /infer HTTP/1.1\r\ncontent-length: 20\r\nConnection: close\r\n\r\n",
    b"POST /infer HTTP/1.0\r\nContent-Length:20\r\n\r\n",
    b"GET /v2?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n\r\nPOST /early HTTP/1.1\r\nContent-Length: 4\r\n\r\n",
    b"POST /bare HTTP/1.1\nContent-Length: 4\n\n",
    b"POST /two HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 9\r\n\r\n",
    b"POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
    b"POST /both HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /expect HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
    b"POST /zero HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"POST /large HTTP/1.1\r\nContent-Length: 201\r\n\r\n",
    b"POST /fold HTTP/1.1\r\nX: a\r\n b\r\nContent-Length: 4\r\n\r\n",
    b"NONSENSE\r\n\r\n",
)
BODIES = (b"", b"abcd", b"\r\n\r\nwxyz", b"x" * 20, b"\r\n\r\n" * 5, b"POST /x HTTP/1.1\r\n\r\n", b"y" * 201)


@settings(max_examples=100, deadline=None)
@given(
    wire=st.lists(st.tuples(st.sampled_from(HEADS), st.sampled_from(BODIES)), min_size=1, max_size=3),
    splits=st.lists(st.integers(0, 400), max_size=3),
    others=st.lists(st.tuples(st.sampled_from(HEADS), st.sampled_from(BODIES)), max_size=6),
)
def test_a_head_that_is_recognised_means_what_it_means_when_parsed(wire, splits, others):
    """Whatever other clients have sent before, and however the bytes arrive."""
    heads = KnownHeads()
    for head, body in (*others, *wire):
        reader_finds(head + body, [], heads)
    data = b"".join(head + body for head, body in wire)
    splits = [split for split in splits if split < len(data)]
    fresh, problem = reader_finds(data, splits, KnownHeads())
    known, known_problem = reader_finds(data, splits, heads)
    assert known == fresh
    assert (known_problem and known_problem[0]) == (problem and problem[0])


def test_a_large_body_behind_a_known_head_is_received_in_place(desk, make_listener):
    head = b"POST /x HTTP/1.1\r\nContent-Length: 90000\r\nInference-Header-Content-Length: 37\r\n\r\n"
    _, listening = make_listener()
    with socket.create_connection(listening.getsockname(), timeout=20) as client:
        for number in range(3):
            client.sendall(head + b"z" * 89_997 + b"%03d" % number)
            assert client.recv(1 << 16).endswith(b'"size":90000}')
    assert [type(request.body) for request in desk.seen] == [bytes, memoryview, memoryview]
    assert [bytes(request.body[-4:]) for request in desk.seen] == [b"z000", b"z001", b"z002"]
    assert np.frombuffer(desk.seen[2].body, np.uint8)[37:].ctypes.data % 64 == 0
