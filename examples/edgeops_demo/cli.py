"""The command ``edgeops demo``."""

import sys
import threading
from pathlib import Path

import click
import msgspec
from rich.console import Console

from edgeops.errors import EdgeOpsError
from edgeops.files import write_durably
from edgeops_demo.demo import Demo, Options, prepare
from edgeops_demo.processes import Programs
from edgeops_demo.story import Story

_WIDTH_WITHOUT_TERMINAL = 160


@click.command("demo")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    help="Where everything of the run is written; an earlier run there is removed.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of the whole Fashion-MNIST (four .gz files); by default where Debian's package puts it, else a subset.",
)
@click.option("--port", type=int, default=0, help="Port of the dashboard; by default a free one.")
@click.option("--seed", type=int, default=20, show_default=True, help="Of training.")
@click.option("--stay", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
def demo_command(directory: Path, images: Path | None, port: int, seed: int, stay: bool) -> None:
    """Run the whole loop on this machine: train, convert, deploy, break, drift, retrain, roll out again."""
    directory = directory.absolute()
    prepare(directory)
    story = Story(Console() if sys.stdout.isatty() else Console(width=_WIDTH_WITHOUT_TERMINAL))
    with Programs(directory / "logs") as programs:
        demo = Demo(Options(directory=directory, images=images, port=port, seed=seed), story, programs)
        failure: EdgeOpsError | None = None
        try:
            demo.run()
        except EdgeOpsError as error:
            failure = error
        report = demo.report
        report.seconds = story.seconds
        write_durably(directory / "report.json", msgspec.json.format(msgspec.json.encode(report), indent=2))
        story.show(report)
        story.console.print(f"Report: {directory / 'report.json'}", highlight=False)
        if report.dashboard:
            stays = "stays up until Ctrl-C" if stay and failure is None else "ends now; --stay leaves it up"
            story.console.print(f"Dashboard: {report.dashboard}  ({stays})", highlight=False)
        if stay and failure is None:
            threading.Event().wait()
    if failure is not None:
        raise failure
    if not all(report.checks.values()):
        raise EdgeOpsError("some checks do not hold; see above")
