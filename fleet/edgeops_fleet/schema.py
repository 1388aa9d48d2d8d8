"""The tables. SQLite by default; nothing here is particular to it.

Times are Unix seconds (UTC). A rollout is a handful of rows, whatever the size of the fleet: a deployment gets its row when its
device first reports.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

settings = sa.Table(
    "settings",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)
"""What the server remembers of itself: the schema's version, the generation counter, chosen ports."""

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("group", sa.String, nullable=False),
    sa.Column("attributes", sa.JSON, nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("used", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("group", sa.String, nullable=False),
    sa.Column("public_key", sa.String, nullable=False),
    sa.Column("token", sa.String, nullable=False),
    sa.Column("attributes", sa.JSON, nullable=False),
    sa.Column("bucket", sa.Integer, nullable=False),
    sa.Column("enrolled", sa.Float, nullable=False),
    sa.Column("online", sa.Boolean, nullable=False),
    sa.Column("last_seen", sa.Float),
    sa.Column("boot", sa.Integer, nullable=False),
    sa.Column("session", sa.Integer, nullable=False),
    sa.Column("epoch", sa.String),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("address", sa.String, nullable=False),
    sa.Column("agent_version", sa.String, nullable=False),
    sa.Column("engines", sa.JSON, nullable=False),
    sa.Column("clock_trusted", sa.Boolean, nullable=False),
    sa.Index("devices_by_bucket", "group", "bucket"),
)

device_models = sa.Table(
    "device_models",
    metadata,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("version", sa.String),
    sa.Column("digest", sa.String),
    sa.Column("previous", sa.String),
    sa.Column("candidate", sa.String),
    sa.Column("variant", sa.String),
    sa.Column("state", sa.String),
    sa.Column("quarantined", sa.JSON, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Index("device_models_by_digest", "digest"),
)

bundles = sa.Table(
    "bundles",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("uploaded", sa.Float, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("model", "version"),
)

targets = sa.Table(
    "targets",
    metadata,
    sa.Column("group", sa.String, primary_key=True),
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("version", sa.String),
    sa.Column("digest", sa.String),
    sa.Column("floor", sa.String, nullable=False),
    sa.Column("quarantine", sa.JSON, nullable=False),
)

pins = sa.Table(
    "pins",
    metadata,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("topic", sa.String, primary_key=True),
    sa.Column("group", sa.String, nullable=False),
    sa.Column("device", sa.String),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("published", sa.Boolean, nullable=False),
)
"""Signed desired documents. ``content`` is what they want, without generation and times, to see whether anything changed."""

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("group", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("from_version", sa.String),
    sa.Column("from_digest", sa.String),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("rotation", sa.Integer, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("paused_by", sa.String),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("phase_since", sa.Float, nullable=False),
    sa.Column("extended", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Index("rollouts_by_state", "state"),
)

waves = sa.Table(
    "waves",
    metadata,
    sa.Column("rollout", sa.String, primary_key=True),
    sa.Column("index", sa.Integer, primary_key=True),
    sa.Column("percent", sa.Float, nullable=False),
    sa.Column("selected", sa.Integer, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("result", sa.String),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("checks", sa.JSON, nullable=False),
)
"""A wave that was started; ``percent`` is the share of hash space that it reaches to."""

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("rollout", sa.String, primary_key=True),
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason_class", sa.String),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("variant", sa.String),
    sa.Column("states", sa.JSON, nullable=False),
    sa.Column("epoch", sa.String, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("first", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
)

streams = sa.Table(
    "streams",
    metadata,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("epoch", sa.String, primary_key=True),
    sa.Column("stream", sa.String, primary_key=True),
    sa.Column("contiguous", sa.Integer, nullable=False),
    sa.Column("ahead", sa.JSON, nullable=False),
)
"""What is stored of each stream: everything up to ``contiguous``, and ``ahead`` of it the ranges ``[first, last]``."""

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device", sa.String, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Index("events_by_device", "device", "id"),
)
"""Transitions, notices and gaps as they came."""

windows = sa.Table(
    "windows",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("start", sa.Float, nullable=False),
    sa.Column("end", sa.Float, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("requests", sa.Integer, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False),
    sa.Column("not_finite", sa.Integer, nullable=False),
    sa.Column("latency", sa.LargeBinary, nullable=False),
    sa.Column("profile", sa.LargeBinary),
    sa.Column("host", sa.JSON, nullable=False),
    sa.Column("machine_boot", sa.String, nullable=False, server_default=sa.text("''")),
    sa.Column("uptime_s", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("machine_started", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("clock_trusted", sa.Boolean, nullable=False, server_default=sa.text("1")),
    sa.Index("windows_by_model", "model", "received"),
    sa.Index("windows_by_device", "device", "id"),
    sa.Index("windows_by_machine", "device", "machine_boot"),
)
"""``start`` and ``end`` are by a clock after which the machine started at ``machine_started`` (:mod:`edgeops_fleet.dating`)."""

machine_clocks = sa.Table(
    "machine_clocks",
    metadata,
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("machine_boot", sa.String, primary_key=True),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("uptime_s", sa.Float, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
)
"""When a start of a machine was, by the clock that was right last, up to the monotonic time ``uptime_s``."""

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("window", sa.Integer, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
)
"""What follows from all windows up to an id, so that those need not be kept."""

samples = sa.Table(
    "samples",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("device", sa.String, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("request", sa.String, nullable=False),
    sa.Column("probability", sa.Float, nullable=False),
    sa.Column("predicted", sa.Integer),
    sa.Column("confidence", sa.Float),
    sa.Column("inputs", sa.LargeBinary, nullable=False),
    sa.Column("label", sa.Integer),
    sa.Column("labelled", sa.Float),
    sa.Column("machine_boot", sa.String, nullable=False, server_default=sa.text("''")),
    sa.Column("uptime_s", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("machine_started", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("clock_trusted", sa.Boolean, nullable=False, server_default=sa.text("1")),
    sa.Index("samples_by_command", "command"),
    sa.Index("samples_by_model", "model", "received"),
    sa.Index("samples_by_machine", "device", "machine_boot"),
)

commands = sa.Table(
    "commands",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("device", sa.String, nullable=False),
    sa.Column("retrain", sa.String),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("published", sa.Boolean, nullable=False),
    sa.Index("commands_by_retrain", "retrain"),
)

retrains = sa.Table(
    "retrains",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("cause", sa.String, nullable=False, unique=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("cohort", sa.String, nullable=False),
    sa.Column("signal", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("verdict", sa.JSON, nullable=False),
    sa.Column("assessed", sa.Integer, nullable=False),
    sa.Column("assessment", sa.JSON),
    sa.Column("dataset", sa.String),
    sa.Column("event", sa.LargeBinary),
    sa.Column("pid", sa.Integer),
    sa.Column("exit_code", sa.Integer),
    sa.Column("opened", sa.Float, nullable=False),
    sa.Column("closed", sa.Float),
    sa.Column("updated", sa.Float, nullable=False),
)
"""One row for each cause: a cohort that drifted on one version. Its ``state`` is moved on before each act."""

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("path", sa.String, nullable=False),
)

log = sa.Table(
    "log",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("rollout", sa.String),
    sa.Column("device", sa.String),
    sa.Column("model", sa.String),
    sa.Column("text", sa.String, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Index("log_by_rollout", "rollout", "id"),
)
"""What happened and why; only added to."""
