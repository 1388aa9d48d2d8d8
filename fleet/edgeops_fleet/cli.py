"""``edgeops fleet``: start a server, and everything that its API offers, from a terminal."""

import json
import logging
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgeops.bundle import open_bundle, pack
from edgeops.errors import ConfigError
from edgeops_fleet.client import SERVER_VARIABLE, TOKEN_VARIABLE, Client
from edgeops_fleet.settings import load_settings
from edgeops_fleet.terminal import Terminal, ago, clock, size

_FOLLOW_S = 0.5


def _server_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which server is meant, and how the answer is written."""
    options = [
        click.option("--server", help=f"URL of the server; or {SERVER_VARIABLE} in the environment."),
        click.option("--token", help=f"Operator's token; or {TOKEN_VARIABLE}; with --data it is read from there."),
        click.option("--data", type=click.Path(path_type=Path), help="Data folder of a server on this machine."),
        click.option("--json", "as_json", is_flag=True, help="The answer as JSON."),
    ]

    def run(server: str | None, token: str | None, data: Path | None, as_json: bool, **rest: Any) -> None:  # noqa: ANN401 - click's values
        command(Client.find(server=server, data=data, token=token), Terminal(as_json=as_json), **rest)

    run.__doc__ = command.__doc__
    wrapped: Callable[..., None] = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


@click.group("fleet")
def fleet_group() -> None:
    """Run the server, roll out, watch."""


@fleet_group.command("up")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of the database, blobs and keys.")
@click.option("--listen", help="host:port of the API and the dashboard; default 127.0.0.1:8080, port 0: any.")
@click.option("--broker", help="'embedded' (default), or mqtt://host:port.")
@click.option("--mqtt-port", type=int, help="Port of the embedded broker; default 1883, 0: any.")
@click.option("--mqtt-host", help="Address that the embedded broker binds to; default 127.0.0.1.")
@click.option("--advertise", help="Host name that devices are told.")
@click.option("--fleet", help="Name of the fleet; default edgeops.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings, a TOML file; options win.")
def up_command(config: Path | None, **options: Any) -> None:  # noqa: ANN401 - options by name
    """Run a server until it is interrupted: API, dashboard, controller, ingest, broker."""
    from edgeops_fleet.server import FleetServer  # noqa: PLC0415 - a second of imports that the other commands do not need

    logging.getLogger("edgeops_fleet").setLevel(logging.INFO)
    server = FleetServer(load_settings(config, **options))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    try:
        click.echo(f"EdgeOps fleet {server.settings.fleet}: {server.url} (dashboard, API; its documentation at /docs)")
        click.echo(f"broker {server.broker_host}:{server.broker_port}, data in {server.settings.data.resolve()}")
        # A wait without end would not be woken by the signal's handler on every platform.
        while not stop.wait(3600):
            pass
        click.echo("stopping")
    finally:
        server.stop()


@fleet_group.command("token")
@click.option("--group", default="default", show_default=True, help="Group that the devices join.")
@click.option("--attribute", "attributes", multiple=True, help="name=value; the server's word on the devices. Several.")
@click.option(
    "--uses",
    type=click.IntRange(1, 1_000_000),
    default=1,
    show_default=True,
    help="How many devices may enrol with it.",
)
@click.option(
    "--ttl",
    "ttl_s",
    type=click.FloatRange(0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Valid for so many seconds.",
)
@_server_options
def token_command(
    client: Client, terminal: Terminal, *, group: str, attributes: tuple[str, ...], uses: int, ttl_s: float
) -> None:
    """Make a one-time token for new devices."""
    body = {
        "group": group,
        "attributes": dict(_attribute(text) for text in attributes),
        "uses": uses,
        "ttl_s": ttl_s,
    }
    answer = client.post("/api/v1/tokens", body)
    terminal.show(answer, lambda out: out.say(answer["token"]))


@fleet_group.command("publish")
@click.argument("bundle_dir", type=click.Path(path_type=Path))
@_server_options
def publish_command(client: Client, terminal: Terminal, bundle_dir: Path) -> None:
    """Release the bundle in BUNDLE_DIR."""
    bundle = open_bundle(bundle_dir)
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "bundle.tar"
        pack(bundle, archive)
        with archive.open("rb") as stream:
            answer = client.upload("/api/v1/bundles", stream, size_bytes=archive.stat().st_size)
    terminal.show(answer, lambda out: out.say(f"published {answer['model']} {answer['version']}  {answer['digest']}"))


@fleet_group.command("devices")
@_server_options
def devices_command(client: Client, terminal: Terminal) -> None:
    """List devices, what they run and how they are; requests and errors are sums over the telemetry that is kept."""
    found = client.get("/api/v1/devices")["devices"]
    columns = ("device", "group", "online", "model", "version", "requests", "errors", "seen", "attributes")
    rows = [
        (
            device["id"],
            device["group"],
            "yes" if device["online"] else "no",
            device["model"],
            device["version"],
            device["requests"],
            device["errors"],
            ago(device["last_seen"]),
            " ".join(f"{key}={value}" for key, value in sorted(device["attributes"].items())),
        )
        for device in found
    ]
    empty = "no device has enrolled yet; `edgeops fleet token` makes a token for one"
    terminal.show(found, lambda out: out.table(columns, rows, empty=empty))


@fleet_group.command("drift")
@click.option("--all", "everything", is_flag=True, help="Single devices too.")
@_server_options
def drift_command(client: Client, terminal: Terminal, *, everything: bool) -> None:
    """What the detector says, for the fleet, for cohorts, and with --all for devices."""
    found = [each for each in client.get("/api/v1/drift")["verdicts"] if everything or each["scope"] != "device"]
    columns = ("scope", "of", "model", "version", "verdict", "signal", "rows", "since")
    rows = [
        (
            each["scope"],
            each["cohort"],
            each["model"],
            each["version"],
            each["state"].upper().replace("_", " "),
            each["signal"],
            each["rows"],
            clock(each["since"]),
        )
        for each in found
    ]
    empty = "nothing to judge yet: no device has reported a profile of a bundle with a reference"
    terminal.show(found, lambda out: out.table(columns, rows, empty=empty))


@fleet_group.command("label")
@click.argument("file", type=click.File("rb"))
@_server_options
def label_command(client: Client, terminal: Terminal, file: Any) -> None:  # noqa: ANN401 - an open file
    """Send labels from FILE: JSON, [{"sample": id, "label": index or name}, …]; '-' is standard input."""
    try:
        labels = json.load(file)
    except ValueError as error:
        raise ConfigError(f"{file.name}: expected JSON: {error}") from error
    answer = client.post("/api/v1/labels", labels)
    terminal.show(answer, lambda out: out.say(f"{answer['labelled']} samples labelled"))


@fleet_group.command("log")
@click.option("--after", type=click.IntRange(0, 2**62), default=0, help="Only lines above this number.")
@_server_options
def log_command(client: Client, terminal: Terminal, after: int) -> None:
    """What happened and why."""
    found = client.get(f"/api/v1/log?after={after}")["log"]

    def write(out: Terminal) -> None:
        if not found:
            out.say("nothing happened" + (f" after line {after}" if after else " yet"))
        for entry in found:
            out.say(f"{clock(entry['time'])}  {entry['kind']:<22} {entry['text']}")

    terminal.show(found, write)


@fleet_group.group("rollout")
def rollout_group() -> None:
    """Order rollouts, and act on them."""


def _order_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of an order."""
    options = [
        click.argument("model"),
        click.argument("version"),
        click.option("--group", default="default", show_default=True),
        click.option("--where", default="", help="Predicate on attributes, for example \"site == 'north'\"."),
        click.option("--waves", default="5,25,100", show_default=True, help="Percents; '3d' is a number of devices."),
        click.option("--soak", "soak_s", type=float, help="Shortest soak of a wave, in seconds."),
        click.option(
            "--when-unproven",
            type=click.Choice(["ask", "unanimous"]),
            help="What a wave does that is too small to prove the limit.",
        ),
        click.option("--spec", type=click.File("rb"), help="The whole order as JSON; options win."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@rollout_group.command("plan")
@_order_options
@_server_options
def plan_command(client: Client, terminal: Terminal, **order: Any) -> None:  # noqa: ANN401 - likewise - options by name
    """What a rollout of MODEL VERSION would do."""
    plan = client.post("/api/v1/rollouts/plan", _order(**order))
    terminal.show(plan, lambda out: _write_plan(out, plan))


@rollout_group.command("start")
@_order_options
@click.option("--draft", is_flag=True, help="Create it, and do not start it.")
@click.option("--follow", is_flag=True, help="Tell what happens until it ends or asks.")
@_server_options
def start_command(client: Client, terminal: Terminal, *, draft: bool, follow: bool, **order: Any) -> None:  # noqa: ANN401 - likewise
    """Roll out MODEL VERSION; or start a draft: MODEL is then 'draft' and VERSION its id."""
    if order["model"] == "draft":
        rollout = client.post(f"/api/v1/rollouts/{order['version']}/start")
    else:
        rollout = client.post("/api/v1/rollouts", {**_order(**order), "draft": draft})
    if follow:
        rollout = _follow(client, rollout["id"], terminal)
    terminal.show(rollout, lambda out: out.say(f"{rollout['id']} {rollout['state']}"))


@rollout_group.command("status")
@click.argument("rollout", required=False)
@_server_options
def status_command(client: Client, terminal: Terminal, rollout: str | None) -> None:
    """All rollouts, or one with its waves and what happened."""
    if rollout is None:
        found = client.get("/api/v1/rollouts")["rollouts"]
        columns = ("rollout", "group", "model", "version", "state", "wave", "devices", "why")
        rows = [
            (
                each["id"],
                each["group"],
                each["model"],
                f"{each['from_version'] or '-'} → {each['version']}",
                each["state"],
                f"{each['wave'] + 1}/{each['planned_waves']}",
                _counts(each["counts"]),
                each["reason"],
            )
            for each in found
        ]
        empty = "no rollout yet; `edgeops fleet rollout plan MODEL VERSION` shows what one would do"
        terminal.show(found, lambda out: out.table(columns, rows, empty=empty))
        return
    one = client.get(f"/api/v1/rollouts/{rollout}")
    terminal.show(one, lambda out: _write_rollout(out, one))


def _add_actions() -> None:
    helps = {
        "pause": "Let nobody begin; who has begun finishes.",
        "resume": "Go on; also the answer yes to an inconclusive gate.",
        "rollback": "Take it back everywhere.",
        "abort": "End it; devices return to the group's version.",
    }
    for name, text in helps.items():
        rollout_group.command(name, help=text)(click.argument("rollout")(_server_options(_action(name))))


def _action(name: str) -> Callable[..., None]:
    def act(client: Client, terminal: Terminal, rollout: str) -> None:
        answer = client.post(f"/api/v1/rollouts/{rollout}/{name}")
        terminal.show(answer, lambda out: out.say(f"{answer['id']} {answer['state']}: {answer['reason']}"))

    return act


_add_actions()


def _order(
    *,
    model: str,
    version: str,
    group: str,
    where: str,
    waves: str,
    soak_s: float | None,
    when_unproven: str | None,
    spec: Any,  # noqa: ANN401 - an open file
) -> dict[str, Any]:
    try:
        order: dict[str, Any] = json.load(spec) if spec is not None else {}
    except ValueError as error:
        raise ConfigError(f"{spec.name}: expected JSON: {error}") from error
    order.update(model=model, version=version)
    order.setdefault("group", group)
    order.setdefault("waves", [_wave(text) for text in waves.split(",")])
    if where:
        order["where"] = where
    if soak_s is not None:
        order["soak_s"] = soak_s
    if when_unproven is not None:
        order["gate"] = {**order.get("gate", {}), "when_unproven": when_unproven}
    return order


def _wave(text: str) -> dict[str, float | int]:
    text = text.strip()
    try:
        return {"devices": int(text[:-1])} if text.endswith("d") else {"percent": float(text.removesuffix("%"))}
    except ValueError:
        raise click.UsageError(f"--waves: expected percents such as 25, or devices such as 3d; got {text!r}") from None


def _attribute(text: str) -> tuple[str, str | int | float | bool]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.UsageError(f"--attribute: expected name=value, got {text!r}")
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    return name, parsed if isinstance(parsed, int | float | bool) else value


def _follow(client: Client, rollout: str, terminal: Terminal) -> dict[str, Any]:
    """Write what happens to a rollout until nothing more happens by itself."""
    told = 0
    pause = threading.Event()
    while True:
        view: dict[str, Any] = client.get(f"/api/v1/rollouts/{rollout}")
        for entry in view["transitions"][told:]:
            terminal.tell(f"{clock(entry['time'])}  {entry['text']}")
        told = len(view["transitions"])
        if view["state"] in {"completed", "rolled_back", "aborted", "paused", "draft"}:
            return view
        pause.wait(_FOLLOW_S)


def _write_plan(out: Terminal, plan: dict[str, Any]) -> None:
    devices, download = f"{plan['matched']} devices", f"{size(plan['bytes_total'])} to download"
    out.say(f"{plan['model']} {plan['version']} to group {plan['group']}: {devices}, {download}")
    columns = ("wave", "devices", "new", "gate")
    out.table(columns, [(wave["index"] + 1, wave["devices"], wave["added"], wave["gate"]) for wave in plan["waves"]])
    if plan["excluded"]:
        out.table(("not taking part", "because"), sorted(plan["excluded"].items()))
    for note in plan["notes"]:
        out.say(f"note: {note}")
    if plan["conflict"]:
        out.say(f"in the way: {plan['conflict']}")


def _write_rollout(out: Terminal, rollout: dict[str, Any]) -> None:
    origin = rollout["from_version"] or "nothing"
    out.say(
        f"{rollout['id']}: {rollout['model']} {origin} → {rollout['version']}, group {rollout['group']}: {rollout['state']}"
    )
    if rollout["reason"]:
        out.say(rollout["reason"])
    if rollout["paused_by"] == "auto":
        out.say(f"next: edgeops fleet rollout resume {rollout['id']} (go on), or rollback {rollout['id']}")
    if not rollout["waves"]:
        return
    out.table(
        ("wave", "devices", "state", "why"),
        [(wave["index"] + 1, wave["devices"], wave["state"], wave["reason"]) for wave in rollout["waves"]],
    )
    out.table(
        ("device", "state", "why"),
        [
            (each["device"], each["state"], ": ".join(filter(None, (each["reason_class"], each["reason"]))))
            for each in rollout["deployments"]
        ],
    )
    for entry in rollout["transitions"]:
        out.say(f"{clock(entry['time'])}  {entry['text']}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
