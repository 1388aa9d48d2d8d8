"""The command ``edgeops-agent``: join a fleet, run, show the state, look for what is wrong.

What happens then is :mod:`edgeops_runtime.service`'s and :mod:`edgeops_runtime.doctor`'s.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from edgeops import __version__
from edgeops.__main__ import run as run_command
from edgeops.bundle import Bundle, open_bundle
from edgeops.errors import ConfigError, EngineError, InputError
from edgeops.files import write_durably
from edgeops.selection import Attribute
from edgeops.topics import check_name
from edgeops_runtime import host, service
from edgeops_runtime.agent import ADDRESS_FILE, TUNING_FILE
from edgeops_runtime.blobs import BlobStore
from edgeops_runtime.config import Config, load_config
from edgeops_runtime.desired import DesiredState
from edgeops_runtime.doctor.examiner import Examiner
from edgeops_runtime.doctor.report import diagnose
from edgeops_runtime.engines import available_engines, choose_variant
from edgeops_runtime.identity import enrol, load_identity
from edgeops_runtime.lifetimes import is_locked, read_boot
from edgeops_runtime.slots import SlotStore
from edgeops_runtime.tuning.choice import BATCH_ROWS, Measured, Setting
from edgeops_runtime.tuning.idle import IDLE_LOAD
from edgeops_runtime.tuning.tuner import Board, Remembered, Tuner, TuningStore

logger = logging.getLogger(__name__)

_CONFIG_OPTION = click.option(
    "--config", "config_path", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The agent.toml."
)


@click.group()
@click.version_option(__version__, prog_name="edgeops-agent")
def edgeops_agent() -> None:
    """Keep a model serving on this device, as the fleet wants it."""


@edgeops_agent.command("enrol")
@click.option("--server", required=True, help="Base URL of the fleet's server.")
@click.option("--token", required=True, help="One-time token from `edgeops fleet token`.")
@click.option("--device", required=True, help="The id that this device is to have.")
@click.option("--data", required=True, type=click.Path(path_type=Path, file_okay=False), help="The agent's directory.")
@click.option(
    "--attribute", "attributes", multiple=True, metavar="KEY=VALUE", help="Something that rollouts can ask for."
)
@click.option(
    "--listen",
    default="",
    show_default="a Unix socket, DATA/serve.sock",
    help="Where inferences will be served: address:port or unix:/path.",
)
def enrol_command(
    *, server: str, token: str, device: str, data: Path, attributes: tuple[str, ...], listen: str
) -> None:
    """Join a fleet: make a key pair, use up the token, write identity.json and, where there is none, agent.toml."""
    config = Config(data=str(data), listen=listen)
    identity = enrol(
        config.directory, server=server, token=token, device=device, attributes=_attributes(attributes, config)
    )
    path = config.directory / "agent.toml"
    if not path.exists():
        # A JSON string is a TOML string.
        lines = [f"data = {json.dumps(str(config.directory))}", *([f"listen = {json.dumps(listen)}"] if listen else [])]
        write_durably(path, ("\n".join(lines) + "\n").encode())
    click.echo(f"{identity.device} is in fleet {identity.fleet}, group {identity.group}")
    click.echo(f"start it with: edgeops-agent run --config {path}")


@edgeops_agent.command("run")
@_CONFIG_OPTION
def run_agent(*, config_path: Path) -> None:
    """Run in the foreground, until SIGTERM or Ctrl-C."""
    service.run(config_path)


@edgeops_agent.command("status")
@_CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def status_command(*, config_path: Path, as_json: bool) -> None:
    """Show the state on disk; the agent need not run."""
    state = read_status(load_config(config_path))
    if as_json:
        click.echo(json.dumps(state, indent=2))
        return
    for key, value in state.items():
        click.echo(f"{key:<12} {_in_words(value)}")


@edgeops_agent.command("doctor")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The agent.toml; without it, only the engines and the machine are looked at.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def doctor_command(*, config_path: Path | None, as_json: bool) -> int:
    """Look for what would keep a model from being served here; try each engine. Exit code 1 when there is something."""
    config = load_config(config_path) if config_path is not None else None
    report = diagnose(config, Examiner())
    if as_json:
        click.echo(json.dumps({"can_serve": report.can_serve, **msgspec.to_builtins(report)}, indent=2))
    else:
        for line in report.lines:
            click.echo(f"{line.subject:<12} {line.level:<8} {line.text}")
        click.echo(
            "a model can be served here" if report.can_serve else "a model cannot be served here: see each failure"
        )
    return 0 if report.can_serve else 1


@edgeops_agent.command("tune")
@_CONFIG_OPTION
@click.option(
    "--bundle",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="A bundle, all of whose variants in the directory are tried; without it, the version that serves.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def tune_command(*, config_path: Path, directory: Path | None, as_json: bool) -> int:
    """Measure which threads and engine options suit a model here, and remember it for its worker's next start."""
    config = load_config(config_path)
    bundle, usual, engines = _to_tune(config, directory)
    load = host.load_average()
    if load is not None and load > IDLE_LOAD * Board.here().cores:
        click.echo(f"the board is busy (load {load:.1f}): what is measured now may say little", err=True)
    if not as_json:
        click.echo(_ROW.format("ms", f"ms, {BATCH_ROWS} rows", "CPU ms", "RSS MB", "load ms", "setting"))
    threads = (config.threads,) if config.threads is not None else None
    tell = (lambda _: None) if as_json else (lambda each: click.echo(_row(each)))
    choice = Tuner().tune(bundle, usual, threads=threads, tell=tell)
    if choice is None:
        raise EngineError(f"{bundle.path}: no setting answers the golden inputs rightly here")
    engine_version = engines[choice.setting.engine]
    TuningStore(config.directory / TUNING_FILE).add(
        Remembered(
            digest=bundle.digest,
            engine_version=engine_version,
            board=Board.here(),
            setting=choice.setting,
            reason=choice.reason,
            at=time.time(),
        )
    )
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(choice), indent=2))
    else:
        click.echo(f"chosen: {choice.setting.words}")
        click.echo(f"because of {choice.reason}" if choice.setting != usual[0] else choice.reason)
    return 0


_ROW = "{:>9} {:>11} {:>8} {:>8} {:>8}  {}"


def _row(each: Measured) -> str:
    if each.objection:
        return _ROW.format("-", "-", "-", "-", "-", f"{each.setting.words}: {each.objection}")
    batch = "-" if each.batch_ms is None else f"{each.batch_ms:.3f}"
    figures = (
        f"{each.latency_ms:.3f}",
        batch,
        f"{each.cpu_ms:.3f}",
        f"{each.rss_bytes / 1e6:.1f}",
        f"{each.load_ms:.0f}",
    )
    return _ROW.format(*figures, each.setting.words)


def _to_tune(config: Config, directory: Path | None) -> tuple[Bundle, list[Setting], dict[str, str]]:
    """The bundle, its settings as usual, and the engines that there are.

    Raises:
        ConfigError: Nothing serves, and no bundle was given.
        EngineError: Nothing in the bundle can run here.
    """
    engines, threads = available_engines(), config.threads or 1
    if directory is None:
        current = SlotStore(config.directory).slots.current
        if current is None:
            raise ConfigError(f"{config.directory}: no version serves here yet; name one with --bundle")
        bundle = open_bundle(BlobStore(config.directory).bundle_path(current.digest), partial=True)
        return bundle, [Setting(variant=current.variant, engine=current.engine, threads=threads)], engines
    bundle = open_bundle(directory, partial=True)
    fitting, objections = choose_variant(
        bundle.manifest,
        engines,
        preference=config.engines,
        cpu=host.cpu_flags(),
        memory_bytes=host.available_memory_bytes(),
    )
    usual = [
        Setting(variant=variant.name, engine=engine, threads=threads)
        for variant, engine in fitting
        if bundle.file(variant.file).exists()
    ]
    if not usual:
        raise EngineError(f"{directory}: nothing in it can run here: {objections or 'its model files are missing'}")
    return bundle, usual, engines


def read_status(config: Config) -> dict[str, Any]:
    """The state of an agent from its files, as JSON values.

    Raises:
        ConfigError: The device is not enrolled.
    """
    directory = config.directory
    identity = load_identity(directory)
    slots = SlotStore(directory).slots
    desired = DesiredState(directory, identity)
    return {
        "device": identity.device,
        "fleet": identity.fleet,
        "group": identity.group,
        "running": is_locked(directory),
        "address": _read(directory / ADDRESS_FILE),
        "boot": read_boot(directory),
        "engines": available_engines(),
        "generation": desired.generation,
        "model": slots.model or None,
        "current": msgspec.to_builtins(slots.current),
        "previous": msgspec.to_builtins(slots.previous),
        "candidate": msgspec.to_builtins(slots.candidate),
        "quarantine": slots.quarantine,
        "outbox_bytes": sum(path.stat().st_size for path in (directory / "outbox").glob("*.log")),
    }


def _attributes(pairs: tuple[str, ...], config: Config) -> dict[str, Attribute]:
    """What the device says of itself: the machine, then the configuration, then the command line."""
    attributes = service.machine_attributes(config)
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise InputError(f"--attribute: expected KEY=VALUE, got {pair!r}")
        attributes[check_name("attribute", key)] = value
    return attributes


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner not in ("", None)) or "-"
    return "-" if value is None else str(value)


def main() -> None:
    """Entry point of ``edgeops-agent``."""
    run_command(edgeops_agent, "edgeops-agent")
