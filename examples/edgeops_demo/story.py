"""Telling what happens as it happens: with colours and a spinner on a terminal, as plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from edgeops_demo.report import Report


class Story:
    """Prints steps and remembers how long they took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """A step of the demo; its duration is kept under ``name``."""
        number = len(self.seconds) + 1
        self.console.print(f"[bold]{number}. {title}[/bold]  [dim]{time.monotonic() - self._began:.0f} s[/dim]")
        begun = time.monotonic()
        self.seconds[name] = 0.0
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - begun, 2)

    def tell(self, text: str) -> None:
        """One line of what happens."""
        self.console.print(f"   {text}", highlight=False, soft_wrap=True)

    def show(self, report: Report) -> None:
        """The table of the whole run."""
        self.console.print()
        self.console.print(_accuracy_table(report))
        self.console.print(_rollout_table(report))
        self.console.print(_drift_table(report))
        self.console.print(
            f"Requests: {report.requests}, failed: {report.failed_requests}.  "
            f"Time: {sum(report.seconds.values()):.0f} s "
            f"({', '.join(f'{name} {seconds:.0f}' for name, seconds in report.seconds.items())})"
        )
        for check, holds in report.checks.items():
            mark = "[green]yes[/green]" if holds else "[bold red]NO[/bold red]"
            self.console.print(f"  {mark:>4}  {check}", highlight=False)


def _accuracy_table(report: Report) -> Table:
    table = Table(title="Exam accuracy, and what each variant costs", title_justify="left")
    for heading in ("variant", "size", "latency", "1.0.0 clean", "1.0.0 drifted", "1.2.0 clean", "1.2.0 drifted"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    before, after = report.accuracy.get("before"), report.accuracy.get("after")
    for variant in before.clean if before else ():
        shares = [
            figures.get(variant) for moment in (before, after) if moment for figures in (moment.clean, moment.drifted)
        ]
        size, latency = report.size_bytes.get(variant), report.latency_ms.get(variant)
        table.add_row(
            variant,
            f"{size / 1000:.1f} kB" if size is not None else "-",
            f"{latency * 1000:.0f} µs" if latency is not None else "-",
            *(f"{share:.1%}" if share is not None else "-" for share in shares),
        )
    return table


def _rollout_table(report: Report) -> Table:
    table = Table(title="Rollouts", title_justify="left")
    for heading in ("version", "state", "waves", "committed", "rolled back", "seconds", "why"):
        table.add_column(heading)
    for version, rollout in report.rollouts.items():
        waves = ", ".join(f"{wave['devices']}: {wave['state']}" for wave in rollout.waves)
        table.add_row(
            version,
            rollout.state,
            waves,
            str(rollout.devices_committed),
            str(rollout.devices_rolled_back),
            f"{rollout.seconds:.0f}",
            rollout.why,
        )
    return table


def _drift_table(report: Report) -> Table:
    table = Table(title="Drift by site", title_justify="left")
    for heading in ("site", "before", "with smeared lenses", "signal", "windows to detect", "after retraining"):
        table.add_column(heading)
    for site, drift in report.drift.items():
        windows = "-" if drift.windows_to_detect is None else str(drift.windows_to_detect)
        table.add_row(site, drift.before, drift.verdict, drift.signal or "-", windows, drift.after)
    return table
