"""Windows added up: every sum stays what it was, and every sequence is stood for once."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.latency import merge_buckets
from edgeops.messages import HostMetrics, Notice, Telemetry, decode_record, encode_record
from edgeops.signals import Profile
from edgeops_runtime.coarsening import SPANS_S, coarsen
from edgeops_runtime.frames import Kept, encode_pack, encode_single, scan, unpack

MODEL = {"model": "m", "version": "1.0.0", "digest": "a", "variant": "v", "engine": "e"}
SUMMED = ("requests", "rows", "errors", "not_finite", "windows")


def window(sequence: int, *, length_s: float = 60.0, **changes) -> Telemetry:
    rng = random.Random(sequence)
    requests = rng.randrange(1, 50)
    usual = {
        "epoch": "e1",
        "stream": "telemetry",
        "sequence": sequence,
        "boot": 1,
        "machine_boot": "m1",
        "time": 1e9 + sequence * length_s,
        "uptime_s": sequence * length_s,
        "start": 1e9 + (sequence - 1) * length_s,
        "end": 1e9 + sequence * length_s,
        "requests": requests,
        "rows": 2 * requests,
        "errors": rng.randrange(3),
        "latency": {rng.randrange(100, 110): requests},
        "profile": Profile(reference="r", rows=requests, counts={"s": (requests, 0), "t": (0, requests)}),
        "host": HostMetrics(load=float(sequence)),
    }
    return Telemetry(**MODEL | usual | changes)


def kept(record) -> Kept:
    return Kept(record.first_sequence, record.sequence, encode_record(record))


def coarse(records, span_s: float = SPANS_S[0]) -> list[Telemetry]:
    summed = list(coarsen(map(kept, records), span_s=span_s))
    decoded = [decode_record(each.payload, where="test") for each in summed]
    assert [(each.first, each.sequence) for each in summed] == [
        (each.first_sequence, each.sequence) for each in decoded
    ]
    return decoded


def totals(records) -> dict:
    by_version: dict = {}
    for record in records:
        known = by_version.setdefault((record.digest, record.profile.reference if record.profile else ""), [])
        known.append(record)
    return {
        key: (
            [sum(getattr(each, name) for each in group) for name in SUMMED],
            merge_buckets(each.latency for each in group),
            sum(each.profile.rows for each in group if each.profile),
        )
        for key, group in by_version.items()
    }


def test_an_hour_of_minutes_becomes_quarters_of_an_hour():
    records = [window(sequence) for sequence in range(1, 61)]
    summed = coarse(records)
    assert [(each.first_sequence, each.sequence) for each in summed] == [(1, 15), (16, 30), (31, 45), (46, 60)]
    assert totals(summed) == totals(records)
    assert (summed[0].start, summed[0].end, summed[0].time) == (records[0].start, records[14].end, records[14].time)
    assert summed[0].host == records[14].host
    (hour,) = coarse(summed, SPANS_S[1])
    assert (hour.first_sequence, hour.sequence, hour.windows) == (1, 60, 60)
    assert totals([hour]) == totals(records)


def test_versions_that_take_turns_share_the_sequences_between_them():
    records = [window(sequence, digest="ab"[sequence % 2]) for sequence in range(1, 11)]
    summed = coarse(records)
    assert [(each.digest, each.first_sequence, each.sequence) for each in summed] == [("b", 1, 9), ("a", 10, 10)]
    assert totals(summed) == totals(records)


def test_window_without_requests_goes_with_those_that_have_some():
    records = [window(1, requests=0, profile=None), window(2), window(3, requests=0, profile=None)]
    (summed,) = coarse(records)
    assert summed.profile == records[1].profile


@pytest.mark.parametrize(
    "change",
    [
        {"boot": 2},
        {"machine_boot": "m2"},
        {"clock_trusted": False},
        {"time": 5e9, "start": 5e9 - 60, "end": 5e9},
        {"time": 1e9 + 150},
        {"sequence": 4},
    ],
)
def test_what_lies_beyond_a_restart_a_set_clock_or_a_hole_is_not_added(change):
    records = [window(1), window(2), msgspec.structs.replace(window(3), **change)]
    assert [each.windows for each in coarse(records)] == [2, 1]


@pytest.mark.parametrize("change", [{"digest": "b"}, {"variant": "w"}, {"engine": "f"}, {"version": "1.1.0"}])
def test_what_was_counted_by_something_else_stays_apart(change):
    assert [each.windows for each in coarse([window(1), window(2, **change)])] == [1, 1]
    other = Profile(reference="other", rows=1, counts={"s": (1, 0)})
    assert [each.windows for each in coarse([window(1), window(2, profile=other)])] == [1, 1]


def test_what_is_no_telemetry_is_handed_on_as_it_is():
    notice = Notice(epoch="e1", stream="event", sequence=2, boot=1, time=0.0, uptime_s=0.0, kind="k", text="t")
    damaged = Kept(3, 3, b"damage")
    given = [kept(window(1)), kept(notice), damaged, kept(window(4))]
    assert list(coarsen(given, span_s=900)) == given


def test_every_field_of_a_window_is_either_summed_or_known_here():
    """A new field has to be thought of in :mod:`edgeops_runtime.coarsening` too."""
    stamp = {"epoch", "stream", "sequence", "first", "boot", "machine_boot", "time", "uptime_s", "clock_trusted"}
    known = {*stamp, *MODEL, *SUMMED, "start", "end", "latency", "profile", "host"}
    assert set(Telemetry.__struct_fields__) == known


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([1.0, 60.0, 600.0]), st.booleans(), st.integers(1, 3)),
        max_size=40,
    ),
    st.sampled_from(SPANS_S),
)
def test_sums_and_sequences_are_kept_whatever_comes(pieces, span_s):
    records, sequence, moment = [], 0, 1e9
    for digest, length_s, has_profile, boot in pieces:
        sequence, moment = sequence + 1, moment + length_s
        profile = {} if has_profile else {"profile": None}
        times = {"time": moment, "uptime_s": moment - 9e8, "start": moment - length_s, "end": moment}
        records.append(window(sequence, digest=digest, boot=boot, **times, **profile))
    summed = coarse(records, span_s)
    covered = [number for each in summed for number in range(each.first_sequence, each.sequence + 1)]
    assert covered == list(range(1, sequence + 1))
    assert sum(each.requests for each in summed) == sum(each.requests for each in records)
    for digest in "ab":
        mine = [each for each in records if each.digest == digest]
        ours = [each for each in summed if each.digest == digest]
        for name in SUMMED:
            assert sum(getattr(each, name) for each in ours) == sum(getattr(each, name) for each in mine)
        assert merge_buckets(each.latency for each in ours) == merge_buckets(each.latency for each in mine)
        rows = [sum(each.profile.rows for each in some if each.profile) for some in (ours, mine)]
        assert rows[0] == rows[1]
    assert all(each.end - each.start <= max(span_s, 600.0) for each in summed)


def test_pack_gives_back_what_it_was_given_and_takes_a_fraction():
    records = [kept(window(sequence)) for sequence in range(1, 65)]
    data = encode_pack(records)
    (frame,) = scan(data)
    again = unpack(data, frame)
    assert [(each.first, each.sequence) for each in again] == [(each.first, each.sequence) for each in records]
    assert [decode_record(each.payload, where="t") for each in again] == [window(number) for number in range(1, 65)]
    assert len(data) < sum(len(encode_single(each)) for each in records) / 3


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_damaged_segment_never_gives_what_was_not_written(noise, place, value):
    given = [Kept(1, 4, b"sum"), Kept(5, 5, b"five")]
    data = bytearray(encode_pack(given) + noise + encode_single(Kept(6, 6, b"six")))
    data[place % len(data)] = value
    found = [record for frame in scan(bytes(data)) for record in unpack(bytes(data), frame)]
    assert all(record in [*given, Kept(6, 6, b"six")] for record in found)
