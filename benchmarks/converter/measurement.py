"""Every file of a subject asked the same rows on its engine, timed in turns with the others, and audited."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.converter.bars import BOTH, MIXED, OURS, Measure, Place, Reading
from benchmarks.converter.ours import FORMATS, make
from benchmarks.converter.ranking import area, paired_area_drop
from benchmarks.converter.stock import NNCF_FULL, RIVALS
from benchmarks.converter.subjects import LeftOutError, Rows, Subject, Task
from edgeops.errors import EngineError
from edgeops.processing import Tensors
from edgeops_converters.artifact import Artifact
from edgeops_converters.audit import audit
from edgeops_converters.fidelity import Drop, agreement, paired_drop, sqnr_db
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model
from edgeops_converters.timing import interleaved_medians

FLOAT = "float"
_TIMED_ROWS = 16
_TIMING_S = 12.0
_TINY_BYTES = 1_000_000


@dataclass(frozen=True)
class Line:
    """One file in the table.

    Attributes:
        tool: What made it.
        value: Accuracy or area under the curve; ``None`` without labels.
        drop: Against the source, on the same rows.
        agreement: Share of the rows with the source's top class; ``None`` where outputs are no classes.
        sqnr_db: Of the outputs against the source; ``None`` when there is no difference.
        speedup: Median latency of float in the same format over this one's; one thread, one row, interleaved.
        integer: Convolutions and matrix products in integers, of ``products``.
        seconds: What making it took; ``None`` for float.
    """

    format: str
    tool: str
    value: float | None
    drop: Drop | None
    agreement: float | None
    sqnr_db: float | None
    p50_ms: float
    speedup: float
    integer: int
    products: int
    size_bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Finding:
    """What was found for a subject.

    Attributes:
        value: The source's accuracy or area under the curve; ``None`` without labels.
        weights: Entries of its weight matrices and kernels.
        parity: Share of the test rows on which our ONNX and TFLite files give the same class; ``None`` where there are none.
        failures: File → why there is none.
        left_out: Tool → how to install it.
    """

    subject: str
    title: str
    origin: str
    rows: int
    value: float | None
    weights: int
    lines: tuple[Line, ...]
    parity: float | None
    failures: Mapping[str, str]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class _File:
    artifact: Artifact
    tool: str
    seconds: float | None


def examine(subject: Subject, scratch: Path, *, with_stock: bool) -> Finding:
    """Convert with everything, then read the test rows once.

    Args:
        subject: What to measure.
        scratch: An existing directory for the files.
        with_stock: Whether the stock tools take part.
    """
    model = open_model(subject.module, {name: rows[:4] for name, rows in subject.calibration.items()})
    click.echo(f"{subject.name}: {OURS} …", err=True)
    made = make(model, subject.calibration, subject.search, scratch)
    failures = {f"{form} {OURS}": why for form, why in made.refused.items()}
    left_out: dict[str, str] = {}
    files: list[_File] = []
    for form, exported in made.floats.items():
        files.append(_File(exported, FLOAT, None))
        if form in made.int8:
            files.append(_File(made.int8[form], OURS, made.seconds[form]))
        if form in made.mixed:
            files.append(_File(made.mixed[form], MIXED, None))
        for index, (name, rival) in enumerate(RIVALS[form].items() if with_stock else ()):
            click.echo(f"{subject.name}: {form}, {name} …", err=True)
            begun = time.perf_counter()
            try:
                artifact, told = rival(exported, subject.calibration, scratch / f"stock-{index}.{form}")
                seconds = told if told is not None else time.perf_counter() - begun
                files.append(_File(artifact, name, seconds))
            except LeftOutError as error:
                left_out[name] = str(error)
            except Exception as error:  # noqa: BLE001 - a tool that fails on a model is a finding
                failures[f"{form} {name}"] = f"{type(error).__name__}: {error}".splitlines()[0]
    click.echo(f"{subject.name}: measuring {len(files)} files …", err=True)
    source = run_rows(model.answer, subject.test.inputs, batch=None)
    files, answers = _answered(files, subject.test, failures)
    latency = _latency(files, subject.test)
    lines = tuple(
        _line(one, subject, source, answered, p50_ms=taken, float_ms=latency[_floats(files, one)])
        for one, answered, taken in zip(files, answers, latency, strict=True)
    )
    ours = [_classes(answered) for one, answered in zip(files, answers, strict=True) if one.tool == OURS]
    has_classes = subject.task is not Task.ANOMALIES
    return Finding(
        subject=subject.name,
        title=subject.title,
        origin=subject.origin,
        rows=len(subject.test),
        value=_value(subject, source),
        weights=subject.weights,
        lines=lines,
        parity=agreement(*ours) if has_classes and len(ours) == len(FORMATS) else None,
        failures=failures,
        left_out=left_out,
    )


def figures(finding: Finding, *, is_convolutional: bool) -> dict[Place, dict[Measure, Reading]]:
    """The lines as the bars want them.

    Args:
        finding: What was found.
        is_convolutional: Whether the bar for size applies, if the model is not tiny.
    """
    found: dict[Place, dict[Measure, Reading]] = {}
    rival = next((line.seconds for line in finding.lines if line.tool == NNCF_FULL), None)
    for line in finding.lines:
        if line.tool == FLOAT:
            continue
        float_bytes = next(
            one.size_bytes for one in finding.lines if (one.format, one.tool) == (line.format, FLOAT)
        )  # fmt: skip
        readings = {
            Measure.SPEED: Reading(line.speedup),
            Measure.INTEGER: Reading(100 * line.integer / line.products),
        }
        if line.sqnr_db is not None:
            readings[Measure.SQNR] = Reading(line.sqnr_db)
        if line.agreement is not None:
            readings[Measure.AGREEMENT] = Reading(line.agreement)
        if line.drop is not None:
            readings[Measure.DROP] = Reading(line.drop.points, line.drop.low, line.drop.high)
        if is_convolutional and float_bytes > _TINY_BYTES:
            readings[Measure.SIZE] = Reading(line.size_bytes / float_bytes)
        if rival is not None and line.seconds is not None and (line.format, line.tool) == ("onnx", OURS):
            readings[Measure.SECONDS] = Reading(line.seconds / rival)
        found[Place(finding.subject, line.format, line.tool)] = readings
    if finding.parity is not None:
        found[Place(finding.subject, BOTH, OURS)] = {Measure.PARITY: Reading(100 * finding.parity)}
    return found


def _answered(files: list[_File], rows: Rows, failures: dict[str, str]) -> tuple[list[_File], list[Tensors]]:
    """What each file says to the rows; those that their engine does not load or run become failures."""
    running, answers = [], []
    for one in files:
        try:
            answers.append(run_rows(one.artifact.open().run, rows.inputs, batch=one.artifact.batch))
            running.append(one)
        except EngineError as error:
            if one.tool == FLOAT:
                raise
            failures[f"{one.artifact.format} {one.tool}"] = str(error)
    return running, answers


def _latency(files: list[_File], rows: Rows) -> list[float]:
    """Median milliseconds of each, one row and one thread, in turns."""
    sessions = [one.artifact.open(threads=1) for one in files]
    given = [{name: part[index : index + 1] for name, part in rows.inputs.items()} for index in range(_TIMED_ROWS)]
    found = interleaved_medians(
        {
            str(position): lambda index, session=session: session.run(given[index % len(given)])
            for position, session in enumerate(sessions)
        },
        clock=time.perf_counter,
        budget_s=_TIMING_S,
    )
    return list(found.values())


def _floats(files: list[_File], one: _File) -> int:
    """Where float in the same format is."""
    return next(
        position
        for position, other in enumerate(files)
        if other.tool == FLOAT and other.artifact.format == one.artifact.format
    )


def _line(file: _File, subject: Subject, source: Tensors, answers: Tensors, *, p50_ms: float, float_ms: float) -> Line:
    audited = audit(file.artifact)
    return Line(
        format=file.artifact.format,
        tool=file.tool,
        value=_value(subject, answers),
        drop=_drop(subject, source, answers),
        agreement=None if subject.task is Task.ANOMALIES else agreement(_classes(source), _classes(answers)),
        sqnr_db=sqnr_db(source, answers),
        p50_ms=p50_ms,
        speedup=float_ms / p50_ms,
        integer=audited.integer,
        products=audited.total,
        size_bytes=file.artifact.size_bytes,
        seconds=file.seconds,
    )


def _value(subject: Subject, answers: Tensors) -> float | None:
    labels = subject.test.labels
    if labels is None:
        return None
    if subject.task is Task.ANOMALIES:
        return area(_errors(subject, answers), labels)
    return float((_classes(answers) == labels).mean())


def _drop(subject: Subject, source: Tensors, answers: Tensors) -> Drop | None:
    labels = subject.test.labels
    if labels is None:
        return None
    if subject.task is Task.ANOMALIES:
        return paired_area_drop(_errors(subject, source), _errors(subject, answers), labels)
    return paired_drop(_classes(source), _classes(answers), labels)


def _errors(subject: Subject, answers: Tensors) -> NDArray[np.float64]:
    """Mean squared error of each row's reconstruction."""
    (given,), (made,) = subject.test.inputs.values(), answers.values()
    return np.square(made.astype(np.float64) - given).mean(axis=1)


def _classes(answers: Tensors) -> NDArray[np.int64]:
    (logits,) = answers.values()
    return logits.argmax(1)
