"""What devices send: from the broker into the database, each record once, acknowledged when it is on disk.

The link's thread only puts messages into a queue; one writer takes all that wait, commits them together, and then tells each
device how far its streams are stored. What cannot be decoded, and what comes from strangers, is logged and counted.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import msgspec
import sqlalchemy as sa

from edgeops.errors import LinkError, MessageError, UntrustedError
from edgeops.link import Link, Received
from edgeops.messages import (
    Ack,
    Anchor,
    Birth,
    Death,
    Gap,
    Notice,
    Record,
    Sample,
    SampleContent,
    StoredRecord,
    Telemetry,
    Transition,
    about_sample,
    decode_json,
    decode_record,
    encode_json,
)
from edgeops.sealing import SealingKey
from edgeops.selection import Attribute
from edgeops.topics import Topics, Upstream
from edgeops_fleet.dating import apply_anchor, date, dated, dating_columns, known_clock
from edgeops_fleet.devices import apply_birth, apply_death, apply_transition
from edgeops_fleet.drift import WindowObservation
from edgeops_fleet.retraining.samples import insert_sample
from edgeops_fleet.rollouts.records import record_transition
from edgeops_fleet.schema import devices, events, streams
from edgeops_fleet.sequences import Stored
from edgeops_fleet.store import Store, upsert
from edgeops_fleet.telemetry import insert_window, observation_of

logger = logging.getLogger(__name__)

_QUEUE_LENGTH = 20_000
_BATCH = 500
_GATHER_S = 0.02
"""How long the writer waits for company before it commits, in seconds."""
_RETRY_S = 1.0
_AFTERLIFE_S = 5.0
"""Records that come so soon after a death were sent before it."""
_MAX_AHEAD = 10_000
"""More separate ranges ahead of a stream's mark than this are not kept; the device sends them again."""

_MAX_SEQUENCE = 2**62
"""What a database can hold, and no device ever counts to."""

_StreamKey = tuple[str, str, str]


@dataclass
class Counters:
    """What the ingest has seen since the server started."""

    messages: int = 0
    records: int = 0
    duplicates: int = 0
    bad: int = 0
    strangers: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class _Message:
    device: str
    content: Birth | Death | StoredRecord


@dataclass
class _Batch:
    """What a transaction changes beyond its rows; taken over when it is committed."""

    marks: dict[_StreamKey, Stored] = field(default_factory=dict)
    observations: list[WindowObservation] = field(default_factory=list)
    touched: set[_StreamKey] = field(default_factory=set)
    newest: int = 0
    records: int = 0
    duplicates: int = 0
    strangers: int = 0


class Ingest:
    """Stores what comes.

    Args:
        store: The database.
        link: To the broker; not opened here.
        topics: Of the fleet.
        observe: Called once for every stored telemetry window that has a profile, after the commit, in the order of the rows.
        sealing_key: Opens captured rows.
        settled: Called when all windows up to a row's id are stored and were shown to ``observe``.
    """

    def __init__(
        self,
        store: Store,
        link: Link,
        topics: Topics,
        *,
        observe: Callable[[WindowObservation], object],
        sealing_key: SealingKey,
        settled: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._store = store
        self._link = link
        self._topics = topics
        self._observe = observe
        self._sealing_key = sealing_key
        self._settled = settled
        self.counters = Counters()
        self._queue: queue.Queue[Received | None] = queue.Queue(_QUEUE_LENGTH)
        self._marks: dict[_StreamKey, Stored] = {}
        self._strangers: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Subscribe, and begin to store."""
        for kind in Upstream:
            self._link.subscribe(self._topics.upstream_filter(kind), self._enqueue)
        self._thread.start()

    def stop(self) -> None:
        """Store what waits, and end."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _enqueue(self, message: Received) -> None:
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            # Not acknowledged, so its device sends it again.
            self.counters.dropped += 1

    def _run(self) -> None:
        while True:
            batch = self._gather()
            if batch is None:
                return
            try:
                messages = [message for received in batch if (message := self._decode(received)) is not None]
                if messages:
                    self._store_all(messages)
            except Exception:  # not acknowledged, so the devices send it again; a writer that ended would lose it all
                logger.exception("ingest: a group of %d messages failed", len(batch))

    def _gather(self) -> list[Received] | None:
        """The next messages, as many as wait; ``None`` at the end."""
        first = self._queue.get()
        if first is None:
            return None
        batch = [first]
        self._stopping.wait(_GATHER_S)
        while len(batch) < _BATCH:
            try:
                message = self._queue.get_nowait()
            except queue.Empty:
                break
            if message is None:
                self._queue.put(None)
                break
            batch.append(message)
        return batch

    def _decode(self, received: Received) -> _Message | None:
        self.counters.messages += 1
        try:
            device, kind = self._topics.parse_upstream(received.topic)
            content: Birth | Death | StoredRecord
            if kind is Upstream.BIRTH:
                content = decode_json(received.payload, Birth, where=received.topic)
            elif kind is Upstream.DEATH:
                content = decode_json(received.payload, Death, where=received.topic)
            else:
                content = decode_record(received.payload, where=received.topic)
            if isinstance(content, Birth | Death) and content.device != device:
                _refuse(f"{received.topic}: says that it is of device {content.device!r}")
            if isinstance(content, Record):
                _check_record(content, where=received.topic)
        except MessageError as error:
            self.counters.bad += 1
            logger.warning("message not understood: %s", error)
            return None
        return _Message(device, content)

    def _store_all(self, messages: list[_Message]) -> None:
        """Commit together; where that fails, one by one, so that one bad record does not hold up the others."""
        try:
            self._commit(messages)
        except Exception as error:  # noqa: BLE001 - whatever one hostile record causes, the others are stored
            logger.warning("ingest: a group of %d messages was not stored (%s); one by one", len(messages), error)
            for message in messages:
                self._store_one(message)

    def _store_one(self, message: _Message) -> None:
        while not self._stopping.is_set():
            try:
                self._commit([message])
            except Exception as error:  # noqa: BLE001 - a record that cannot be stored must not end the writer
                if isinstance(error.__cause__, sa.exc.OperationalError):
                    logger.warning("ingest: waiting for the database: %s", error)
                    self._stopping.wait(_RETRY_S)
                    continue
                self.counters.bad += 1
                logger.warning("ingest: a message of %s cannot be stored: %s", message.device, error)
                if isinstance(message.content, Record):
                    self._pass_over(message.device, message.content, str(error))
            return

    def _commit(self, messages: list[_Message]) -> None:
        batch = _Batch()
        now = self._store.clock()
        with self._store.write() as connection:
            known = _known_devices(connection, {message.device for message in messages})
            for message in messages:
                if message.device in known:
                    self._apply(connection, message, known[message.device], batch, now=now)
                else:
                    self._ignore_stranger(message.device, batch)
            _write_marks(connection, batch)
        self._take_over(batch)

    def _pass_over(self, device: str, record: StoredRecord, reason: str) -> None:
        """A record that no database takes: say so in the log, and count it as stored, so that what follows is not held up."""
        batch = _Batch()
        key = (device, record.epoch, record.stream)
        with self._store.write() as connection:
            if device not in _known_devices(connection, {device}):
                return
            mark = self._mark(connection, key, batch)
            batch.marks[key] = mark.with_range(record.first_sequence, record.sequence)
            batch.touched.add(key)
            _write_marks(connection, batch)
            text = f"{device}: record {record.sequence} of {record.stream} cannot be stored and is left out: {reason}"
            self._store.note(connection, "device.bad_record", text, actor=device, device=device)
        self._take_over(batch)

    def _take_over(self, batch: _Batch) -> None:
        """The transaction is on disk: remember, acknowledge, watch."""
        self._marks.update(batch.marks)
        self.counters.records += batch.records
        self.counters.duplicates += batch.duplicates
        self.counters.strangers += batch.strangers
        self._acknowledge(batch.touched)
        for observation in batch.observations:
            self._observe(observation)
        if batch.newest:
            self._settled(batch.newest)

    def _acknowledge(self, touched: Iterable[_StreamKey]) -> None:
        acks: dict[tuple[str, str], dict[str, int]] = {}
        for key in touched:
            device, epoch, stream = key
            acks.setdefault((device, epoch), {})[stream] = self._marks[key].contiguous
        for (device, epoch), sequences in acks.items():
            try:
                self._link.publish(self._topics.ack(device), encode_json(Ack(epoch=epoch, sequences=sequences)))
            except LinkError as error:
                # The device sends again what was not acknowledged, and is then told.
                logger.debug("acknowledgement to %s: %s", device, error)

    def _apply(
        self,
        connection: sa.Connection,
        message: _Message,
        attributes: dict[str, Attribute],
        batch: _Batch,
        *,
        now: float,
    ) -> None:
        device, content = message.device, message.content
        match content:
            case Birth():
                self._apply_birth(connection, content, batch, now=now)
            case Death():
                if apply_death(connection, content, now=now):
                    self._store.note(connection, "device.offline", f"{device} is gone", actor=device, device=device)
            case _:
                mark = self._mark(connection, (device, content.epoch, content.stream), batch)
                self._apply_record(connection, device, content, mark, batch, attributes=attributes, now=now)

    def _apply_birth(self, connection: sa.Connection, birth: Birth, batch: _Batch, *, now: float) -> None:
        was_online = connection.execute(sa.select(devices.c.online).where(devices.c.id == birth.device)).scalar()
        if apply_birth(connection, birth, now=now) and not was_online:
            runs = (
                ", ".join(f"{model.model} {model.version}" for model in birth.models if model.version) or "nothing yet"
            )
            text = f"{birth.device} is there, runs {runs}"
            self._store.note(connection, "device.online", text, actor=birth.device, device=birth.device)
        # An acknowledgement may have been lost with the connection before.
        for row in connection.execute(
            sa.select(streams.c.stream).where(streams.c.device == birth.device, streams.c.epoch == birth.epoch)
        ):
            key = (birth.device, birth.epoch, row[0])
            batch.marks.setdefault(key, self._mark(connection, key, batch))
            batch.touched.add(key)

    def _apply_record(
        self,
        connection: sa.Connection,
        device: str,
        record: StoredRecord,
        mark: Stored,
        batch: _Batch,
        *,
        attributes: dict[str, Attribute],
        now: float,
    ) -> None:
        key = (device, record.epoch, record.stream)
        batch.touched.add(key)
        batch.marks.setdefault(key, mark)
        first = record.first_sequence
        missing = mark.missing(first, record.sequence)
        if not missing:
            batch.duplicates += 1
            return
        after = mark.with_range(first, record.sequence)
        if len(after.ahead) > _MAX_AHEAD:
            return
        if isinstance(record, Telemetry) and missing < record.sequence - first + 1:
            self._note_overlap(connection, device, record, missing=missing)
        else:
            is_latest = record.sequence > (mark.ahead[-1][1] if mark.ahead else mark.contiguous)
            if isinstance(record, Gap):
                # What it stands for may have come before the device gave it up.
                record = msgspec.structs.replace(record, count=missing)
            self._insert(connection, device, record, batch, attributes=attributes, is_latest=is_latest, now=now)
        batch.marks[key] = after
        batch.records += 1

    def _insert(
        self,
        connection: sa.Connection,
        device: str,
        record: StoredRecord,
        batch: _Batch,
        *,
        attributes: dict[str, Attribute],
        is_latest: bool,
        now: float,
    ) -> None:
        match record:
            case Sample() if record.sealed:
                opened = self._open(connection, device, record)
                if opened is not None:
                    self._insert_dated(connection, device, opened, batch, attributes=attributes, now=now)
            case Telemetry() | Sample():
                self._insert_dated(connection, device, record, batch, attributes=attributes, now=now)
            case Anchor():
                self._insert_event(connection, device, record, now=now)
                self._apply_anchor(connection, device, record, now=now)
            case Transition():
                self._insert_event(connection, device, record, now=now)
                record_transition(connection, device, record, now=now)
                if is_latest:
                    apply_transition(connection, device, record, now=now)
                self._note_transition(connection, device, record)
            case Gap():
                self._insert_event(connection, device, record, now=now)
                text = f"{device} dropped {record.count} records of {record.stream}: {record.reason}"
                self._store.note(connection, "device.gap", text, actor=device, device=device)
            case Notice():
                self._insert_event(connection, device, record, now=now)
                kind = f"device.{record.kind}"
                self._store.note(connection, kind, f"{device}: {record.text}", actor=device, device=device)
        _mark_seen(connection, device, now=now)

    def _open(self, connection: sa.Connection, device: str, record: Sample) -> Sample | None:
        """The sample with its content; ``None``, noted, where it was sealed to another fleet, or damaged."""
        try:
            content = self._sealing_key.open(record.sealed, about=about_sample(record.command))
            opened = msgspec.msgpack.decode(content, type=SampleContent)
        except (UntrustedError, msgspec.DecodeError) as error:
            text = f"{device}: sample {record.id} cannot be opened: {error}"
            self._store.note(connection, "device.bad_record", text, actor=device, device=device)
            return None
        return msgspec.structs.replace(
            record, sealed=b"", inputs=opened.inputs, predicted=opened.predicted, confidence=opened.confidence
        )

    @staticmethod
    def _insert_dated(
        connection: sa.Connection,
        device: str,
        record: Telemetry | Sample,
        batch: _Batch,
        *,
        attributes: dict[str, Attribute],
        now: float,
    ) -> None:
        clock = known_clock(connection, device, record.machine_boot)
        dating = date(record, clock, now=now)
        columns = dating_columns(record, dating)
        record = dated(record, dating)
        if isinstance(record, Sample):
            insert_sample(connection, device, record, dating=columns, now=now)
            return
        batch.newest = insert_window(connection, device, record, dating=columns, now=now)
        if record.profile is not None:
            batch.observations.append(observation_of(device, record, attributes, now=now))

    def _apply_anchor(self, connection: sa.Connection, device: str, anchor: Anchor, *, now: float) -> None:
        rows = apply_anchor(connection, device, anchor, now=now)
        if anchor.before_s is None and not rows:
            return
        shift_s = anchor.time - anchor.uptime_s - (anchor.before_s or 0.0)
        by = f"was set by {shift_s:+,.0f} s" if anchor.before_s is not None else "is right"
        text = f"{device}: its clock {by}" + (f"; {rows} windows and samples are dated anew" if rows else "")
        self._store.note(connection, "device.clock", text, actor=device, device=device)

    def _note_overlap(self, connection: sa.Connection, device: str, record: Telemetry, *, missing: int) -> None:
        """No device adds up what it has sent; should one, nothing of it may count twice."""
        text = (
            f"{device}: telemetry {record.first_sequence} to {record.sequence} was added up after"
            f" {record.sequence - record.first_sequence + 1 - missing} of it had come; it is left out"
        )
        self._store.note(connection, "device.bad_record", text, actor=device, device=device)

    @staticmethod
    def _insert_event(connection: sa.Connection, device: str, record: StoredRecord, *, now: float) -> None:
        connection.execute(events.insert().values(device=device, received=now, record=msgspec.json.encode(record)))

    def _note_transition(self, connection: sa.Connection, device: str, record: Transition) -> None:
        words = [each for each in (record.reason_class, record.reason) if each]
        text = f"{device}: {record.model} {record.version} {record.state}" + (f": {': '.join(words)}" if words else "")
        details: dict[str, Any] = {"state": record.state.value, "version": record.version, "figures": record.figures}
        self._store.note(
            connection,
            f"deployment.{record.state}",
            text,
            actor=device,
            device=device,
            rollout=record.rollout,
            model=record.model,
            details=details,
        )

    def _mark(self, connection: sa.Connection, key: _StreamKey, batch: _Batch) -> Stored:
        """What is stored of a stream: in this transaction, in memory, or on disk."""
        if key in batch.marks:
            return batch.marks[key]
        if key not in self._marks:
            device, epoch, stream = key
            row = connection.execute(
                sa.select(streams.c.contiguous, streams.c.ahead).where(
                    streams.c.device == device, streams.c.epoch == epoch, streams.c.stream == stream
                )
            ).first()
            ahead = tuple((first, last) for first, last in row.ahead) if row is not None else ()
            self._marks[key] = Stored(contiguous=row.contiguous if row is not None else 0, ahead=ahead)
        return self._marks[key]

    def _ignore_stranger(self, device: str, batch: _Batch) -> None:
        batch.strangers += 1
        if device not in self._strangers and len(self._strangers) < _QUEUE_LENGTH:
            self._strangers.add(device)
            logger.warning("messages of %s are ignored: it is not enrolled", device)


def _refuse(reason: str) -> NoReturn:
    raise MessageError(reason)


def _check_record(record: Record, *, where: str) -> None:
    """Refuse sequences that make no sense, before they reach the marks."""
    first = record.first_sequence
    if not 1 <= first <= record.sequence <= _MAX_SEQUENCE or not record.stream or not record.epoch:
        raise MessageError(
            f"{where}: sequence {first} to {record.sequence} of stream {record.stream!r}: expected 1 to {_MAX_SEQUENCE}"
        )


def _known_devices(connection: sa.Connection, names: set[str]) -> dict[str, dict[str, Attribute]]:
    query = sa.select(devices.c.id, devices.c.attributes).where(devices.c.id.in_(names))
    return {row.id: row.attributes for row in connection.execute(query)}


def _write_marks(connection: sa.Connection, batch: _Batch) -> None:
    for (device, epoch, stream), mark in batch.marks.items():
        key = {"device": device, "epoch": epoch, "stream": stream}
        upsert(connection, streams, key, {"contiguous": mark.contiguous, "ahead": mark.ahead})


def _mark_seen(connection: sa.Connection, device: str, *, now: float) -> None:
    """Note that something came. A device that sends is there, even if its birth was lost."""
    was_gone = sa.and_(devices.c.id == device, sa.not_(devices.c.online), devices.c.last_seen < now - _AFTERLIFE_S)
    connection.execute(devices.update().where(was_gone).values(online=True))
    connection.execute(devices.update().where(devices.c.id == device).values(last_seen=now))
