"""The agent as a program, until a signal ends it: settings, identity, link, log.

Kept apart from :mod:`edgeops_runtime.commands`, so that a process that lives for months has neither the command line nor the
library of an enrolment in its memory.
"""

import gc
import logging
import os
import platform
import signal
import sys
from functools import partial
from pathlib import Path

from edgeops.errors import ConfigError
from edgeops.link import Link
from edgeops.selection import Attribute
from edgeops_runtime.agent import Agent
from edgeops_runtime.config import Config, load_config
from edgeops_runtime.engines import available_engines
from edgeops_runtime.identity import Identity, enrol, is_enrolled, load_identity

logger = logging.getLogger(__name__)


def run(config_path: Path) -> None:
    """Run in the foreground, until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: The settings are wrong, or the device is not enrolled and they do not say where.
        ConflictError: Another agent runs on the same data directory, or something else has the address.
        RefusedError: The enrolment was refused; likewise ``TransientError``, where the server cannot be reached.
    """
    config = load_config(config_path)
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if not is_enrolled(config.directory) and config.server:
        _enrol(config, config_path)
        # Once in the life of a device, so what only that needs is not kept in memory until the next boot.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very program
    identity = load_identity(config.directory)
    agent = Agent(config, identity, partial(link_of, identity))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: agent.stop())
    logger.info("%s serves at %s", identity.device, agent.address)
    gc.collect()
    gc.freeze()  # What the start has made stays, and need not be looked through again.
    gc.enable()
    agent.run()


def link_of(identity: Identity) -> Link:
    """The link to the broker that the enrolment names."""
    from edgeops.mqtt import MqttLink  # noqa: PLC0415 - while the worker starts already

    enrolment = identity.enrolment
    return MqttLink(
        enrolment.broker_host,
        enrolment.broker_port,
        client_id=f"edgeops-{identity.fleet}-{identity.device}",
        username=enrolment.username,
        password=enrolment.password,
    )


def machine_attributes(config: Config) -> dict[str, Attribute]:
    """What the device says of itself at its enrolment: the machine, and over that the configuration."""
    engines = available_engines()
    usable = [engine for engine in config.engines or engines if engine in engines]
    attributes: dict[str, Attribute] = {"arch": platform.machine(), "cpus": os.cpu_count() or 1}
    if usable:
        attributes["engine"] = usable[0]
    return attributes | config.attributes


def _enrol(config: Config, config_path: Path) -> None:
    if not (config.token and config.device):
        raise ConfigError(f"{config_path}: device, token: expected both beside server, for the enrolment")
    enrol(
        config.directory,
        server=config.server,
        token=config.token,
        device=config.device,
        attributes=machine_attributes(config),
    )
