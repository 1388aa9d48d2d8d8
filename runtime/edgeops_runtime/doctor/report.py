"""The doctor's whole report: the engines, then the machine; and whether a model could be served."""

import os
from pathlib import Path

import msgspec

from edgeops_runtime.config import Config
from edgeops_runtime.doctor import machine
from edgeops_runtime.doctor.examiner import Examiner
from edgeops_runtime.doctor.machine import Level, Line
from edgeops_runtime.doctor.verdicts import EngineVerdict, Outcome
from edgeops_runtime.engines import ENGINES, available_engines
from edgeops_runtime.ladder import HOT_C
from edgeops_runtime.slots import SlotStore


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        verdicts: On the installed engines.
    """

    lines: tuple[Line, ...]
    verdicts: tuple[EngineVerdict, ...]

    @property
    def can_serve(self) -> bool:
        """Whether nothing was found that would keep a model from being served."""
        return all(line.level is not Level.FAILURE for line in self.lines)


def diagnose(config: Config | None, examiner: Examiner) -> Report:
    """Look at everything; takes a few seconds.

    Args:
        config: Of the agent, for its data directory and engines; ``None``: only the machine and the engines.
        examiner: Tries the engines; one without a memory, so that each is tried now.
    """
    installed = available_engines()
    verdicts = tuple(examiner.examine(engine, version) for engine, version in installed.items())
    preference = config.engines if config is not None else ()
    lines = engine_lines(verdicts, preference=preference, current=_current_engine(config))
    lines += [
        machine.cpu_line(),
        machine.memory_line(),
        machine.heat_line(hot_c=config.hot_c if config is not None else HOT_C),
    ]
    if config is not None:
        lines += [
            machine.disk_line(config.directory),
            machine.clock_line(config.directory),
            *machine.network_lines(config.directory),
        ]
    else:
        lines.append(
            Line("agent", Level.INFO, "without --config: no data directory, clock, broker or server was looked at")
        )
    if (service := machine.systemd_line()) is not None:
        lines.append(service)
    return Report(lines=tuple(lines), verdicts=verdicts)


def engine_lines(
    verdicts: tuple[EngineVerdict, ...], *, preference: tuple[str, ...] = (), current: str | None = None
) -> list[Line]:
    """One line for each engine that there is, and one more where none may serve.

    Args:
        verdicts: On the installed ones.
        preference: Engines that the agent may use; empty: all.
        current: The engine of the version that serves here.
    """
    found = {verdict.engine: verdict for verdict in verdicts}
    lines = []
    for engine, entry in ENGINES.items():
        verdict = found.get(engine)
        if verdict is None:
            is_missed = engine in preference
            text = (
                f"{Outcome.NOT_INSTALLED}; pip install 'edgeops[{entry.extra}]'" if is_missed else Outcome.NOT_INSTALLED
            )
            lines.append(Line(engine, Level.WARNING if is_missed else Level.INFO, text))
            continue
        level = Level.OK if verdict.outcome is Outcome.OK else Level.WARNING
        if engine == current and not verdict.may_serve:
            level = Level.FAILURE
        lines.append(Line(engine, level, f"{verdict.version} {verdict.outcome}: {verdict.reason}"))
    if not any(verdict.may_serve for verdict in verdicts if not preference or verdict.engine in preference):
        among = f" among {', '.join(preference)}" if preference else ""
        lines.append(Line("engines", Level.FAILURE, f"none{among} can serve a model here"))
    return lines


def _current_engine(config: Config | None) -> str | None:
    if config is None or not os.access(config.directory, os.R_OK):
        return None
    current = SlotStore(Path(config.directory)).slots.current
    return current.engine if current is not None else None
