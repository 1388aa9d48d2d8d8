"""Messages on the wire: they survive it, newer ones are understood, and garbage is refused by name."""

import json
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.errors import MessageError
from edgeops.messages import (
    Ack,
    Birth,
    Command,
    CommandKind,
    Death,
    DeploymentState,
    Desired,
    Gap,
    Notice,
    ReasonClass,
    RolloutOrder,
    Sample,
    SampledTensor,
    Target,
    Telemetry,
    Transition,
    decode_json,
    decode_record,
    encode_json,
    encode_record,
)
from edgeops.signals import Profile

COMMON = {"epoch": "e1", "boot": 3, "time": 1_790_000_000.5, "uptime_s": 12.25}
MODEL = {"model": "fashion", "version": "1.2.0", "digest": "sha256:" + "a" * 64}

RECORDS = [
    Transition(
        **COMMON,
        **MODEL,
        stream="event",
        sequence=1,
        state=DeploymentState.ROLLED_BACK,
        reason_class=ReasonClass.DEFECT,
        reason="answers NaN",
        figures={"p95_ms": 3.5},
    ),
    Gap(**COMMON, stream="telemetry", sequence=9, first=4, count=6, reason="quota"),
    Notice(**COMMON, stream="event", sequence=2, kind="worker_died", text="signal 9"),
    Telemetry(
        **COMMON,
        **MODEL,
        stream="telemetry",
        sequence=3,
        variant="onnx-int8",
        engine="onnxruntime",
        start=1.0,
        end=2.0,
        requests=4,
        latency={10: 3, 300: 1},
        profile=Profile(reference="r", rows=4, counts={"s": (1, 3)}),
    ),
    Sample(
        **COMMON,
        **MODEL,
        stream="sample",
        sequence=1,
        id="x",
        request="17",
        predicted=3,
        inputs={"image": SampledTensor(dtype="UINT8", shape=(1, 2), data=b"\x00\xff")},
    ),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_record_survives_the_wire(record: Transition) -> None:
    assert decode_record(encode_record(record), where="test") == record


def test_control_records_are_readable_by_a_person() -> None:
    assert json.loads(encode_record(RECORDS[0]))["reason"] == "answers NaN"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_truncation_is_refused(record: Transition) -> None:
    data = encode_record(record)
    for size in range(len(data)):
        with pytest.raises(MessageError, match="topic x"):
            decode_record(data[:size], where="topic x")


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_anything_else(data: bytes) -> None:
    for where in (data, b"{" + data, zlib.compress(data)):
        with pytest.raises(MessageError):
            decode_record(where, where="fuzz")


def test_compressed_bomb_is_refused_before_it_fills_memory() -> None:
    with pytest.raises(MessageError, match="inflated"):
        decode_record(zlib.compress(b"\0" * (64 << 20), 9), where="bomb")


def test_message_too_large_for_a_broker_is_refused() -> None:
    tensor = SampledTensor(dtype="UINT8", shape=(200_000,), data=msgspec.msgpack.encode(list(range(100_000))))
    with pytest.raises(MessageError, match="at most 128000"):
        encode_record(msgspec.structs.replace(RECORDS[4], inputs={"image": tensor}))


CONTROL = [
    Desired(
        fleet="f",
        group="g",
        generation=4,
        issued=1.0,
        expires=2.0,
        targets=(
            Target(model="m", url="/blobs", rollout=RolloutOrder(id="r", version="1.0.0", digest="d", percent=5.0)),
        ),
    ),
    Command(id="c", kind=CommandKind.COLLECT, expires=9.0, model="m", count=10),
    Ack(epoch="e", sequences={"event": 3}),
    Birth(
        device="d",
        boot=1,
        session=2,
        epoch="e",
        time=1.0,
        clock_trusted=True,
        agent_version="0",
        attributes={"site": "n"},
        engines={"onnxruntime": "1.30"},
        generation=0,
        models=(),
        address="127.0.0.1:1",
    ),
    Death(device="d", boot=1, session=2),
]


@pytest.mark.parametrize("message", CONTROL, ids=lambda message: type(message).__name__)
def test_control_message_survives_and_a_newer_writers_keys_are_ignored(message: Ack) -> None:
    document = json.loads(encode_json(message))
    document["from_the_future"] = {"x": 1}
    assert decode_json(json.dumps(document).encode(), type(message), where="t") == message


@pytest.mark.parametrize("message", CONTROL, ids=lambda message: type(message).__name__)
def test_control_message_without_a_key_is_refused_by_name(message: Ack) -> None:
    document = json.loads(encode_json(message))
    key = next(iter(document))
    del document[key]
    with pytest.raises(MessageError, match=key):
        decode_json(json.dumps(document).encode(), type(message), where="t")


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_deeply_nested_document_is_refused_like_any_other_garbage(depth: int) -> None:
    nested = b'{"type": "transition", "model": ' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(MessageError):
        decode_record(nested, where="t")
    with pytest.raises(MessageError):
        decode_record(zlib.compress(b"\x91" * depth + b"\x00"), where="t")
    with pytest.raises(MessageError):
        decode_json(b'{"epoch": ' + b"[" * depth + b"]" * depth + b"}", Ack, where="t")


@pytest.mark.parametrize(
    "spoiled",
    [
        {"latency": {10**9: 1}},
        {"latency": {-1: 1}},
        {"latency": {5: -1}},
        {"requests": -1},
        {"profile": {"reference": "r", "rows": 1, "counts": {"s": (-1, 2)}}},
        {"profile": {"reference": "r", "rows": -1, "counts": {}}},
    ],
)
def test_counts_that_no_device_can_have_counted_are_refused(spoiled: dict[str, object]) -> None:
    document = msgspec.to_builtins(RECORDS[3]) | spoiled
    with pytest.raises(MessageError):
        decode_record(zlib.compress(msgspec.msgpack.encode(document)), where="t")
