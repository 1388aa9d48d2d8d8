"""Puts a running server together: database, blobs, broker, ingest, controller, HTTP; starts it, and stops it in good order.

A kill at any time is fine too: everything that matters is in the database, and the next start goes on from there.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
import time
from functools import partial
from urllib.parse import urlsplit

import msgspec
import uvicorn

from edgeops.enrolment import Enrolment
from edgeops.errors import ConfigError, EdgeOpsError
from edgeops.files import write_durably
from edgeops.link import Link
from edgeops.mqtt import MqttLink
from edgeops.sealing import SealingKey
from edgeops.signing import PublicKey, SigningKey
from edgeops.topics import Topics
from edgeops_fleet.address import SERVER_FILE, TOKEN_FILE, ServerAddress, claim, read_token
from edgeops_fleet.api import Services, create_app
from edgeops_fleet.blobs import Blobs
from edgeops_fleet.broker import EmbeddedBroker, free_port
from edgeops_fleet.catalog import Catalog
from edgeops_fleet.dashboard import Snapshot, create_router, read_snapshot
from edgeops_fleet.devices import Devices
from edgeops_fleet.enrolments import Enrolled, Enrolments
from edgeops_fleet.ingest import Ingest
from edgeops_fleet.retention import Retention
from edgeops_fleet.retraining.policy import Retraining
from edgeops_fleet.retraining.samples import Samples
from edgeops_fleet.rollouts.controller import Controller
from edgeops_fleet.rollouts.desired import Director
from edgeops_fleet.rollouts.records import Rollouts
from edgeops_fleet.settings import Settings, split_address
from edgeops_fleet.store import Clock, Store, StoreError, get_setting, set_setting
from edgeops_fleet.watch import Watch

logger = logging.getLogger(__name__)

DIRECTOR_KEY_FILE = "director.key"
SEALING_KEY_FILE = "sealing.key"
"""Opens captured rows; whoever loses it cannot read those that are on the way."""
RELEASE_KEY_FILE = "release.key"
_WINDOW = 2000
"""Messages to the broker that may be under way at once."""
_READY_S = 30.0
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - recognised, not bound to


class FleetServer:
    """A server in this process.

    Args:
        settings: What it is told.
        link: To a broker that is there already; by default the one of the settings.
        clock: Unix time in seconds.
        steady: Seconds on a clock that nobody sets.

    Raises:
        ConfigError: A setting cannot work, the data folder cannot be written, or another server has it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        link: Link | None = None,
        clock: Clock = time.time,
        steady: Clock = time.monotonic,
    ) -> None:
        self.settings = settings
        self._given_link = link
        self._steady = steady
        self._data = settings.data
        self._claim = claim(self._data)
        try:
            self._build(clock)
        except OSError as error:
            self._claim.close()
            raise ConfigError(f"data folder {self._data}: {error}") from error
        except BaseException:
            self._claim.close()
            raise

    def _build(self, clock: Clock) -> None:
        settings = self.settings
        (self._data / SERVER_FILE).unlink(missing_ok=True)
        self.director_key = SigningKey.load_or_generate(self._data / DIRECTOR_KEY_FILE)
        self.sealing_key = SealingKey.load_or_generate(self._data / SEALING_KEY_FILE)
        self.release_keys = self._load_release_keys()
        self.operator_token = self._load_operator_token()
        self.store = Store(self._data / "fleet.db", clock=clock)
        self.blobs = Blobs(settings.blobs or str(self._data / "blobs"))
        self.catalog = Catalog(self.store, self.blobs, keys=self.release_keys, scratch=self._data / "scratch")
        self.watch = Watch(settings.drift, self.catalog)
        self.samples = Samples(self.store, self.catalog, self._data / "datasets")
        self.retraining = Retraining(
            self.store,
            settings.retrain,
            catalog=self.catalog,
            samples=self.samples,
            verdicts=self.watch.verdicts,
            fleet=settings.fleet,
            directory=self._data / "retrains",
        )
        self.retention = Retention(self.store, settings.retention)
        self._broker: EmbeddedBroker | None = None
        self._http: _HttpThread | None = None
        self._started: list[str] = []

    def start(self) -> None:
        """Start everything; returns when the server answers and is connected to the broker.

        Raises:
            ConfigError: A port is taken.
            LinkError: The broker does not start.
        """
        try:
            self._start()
        except OSError as error:
            self.stop()
            raise ConfigError(f"data folder {self._data}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        topics = Topics(self.settings.fleet)
        listener = self._bind()
        self.broker_host, self.broker_port = self._start_broker()
        self.link: Link = self._given_link or self._new_link()
        director = Director(self.settings.fleet, self.director_key, ttl_s=self.settings.controller.desired_ttl_s)
        self.controller = Controller(
            self.store,
            self.catalog,
            director,
            self.link,
            topics,
            tick_s=self.settings.controller.tick_s,
            duties=(self.retraining.look, self.retention.look),
            steady=self._steady,
        )
        self.ingest = Ingest(
            self.store,
            self.link,
            topics,
            observe=self.watch.observe,
            sealing_key=self.sealing_key,
            settled=partial(self.watch.settled, self.store),
        )
        count = self.watch.rebuild(self.store)
        self.watch.keep(self.store)
        logger.info("drift monitor: %d windows since its state was kept", count)
        self.ingest.start()
        self._started.append("ingest")
        connected = threading.Event()

        def on_connect() -> None:
            self.controller.republish()
            connected.set()

        self.link.open(on_connect=on_connect)
        self._started.append("link")
        self.controller.start()
        self._started.append("controller")
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{'127.0.0.1' if host in _WILDCARDS else shown}:{port}"
        self._http = _HttpThread(self, listener)
        self._http.start()
        if not connected.wait(_READY_S):
            logger.warning("broker %s:%s is away; devices are served when it comes", self.broker_host, self.broker_port)
        address = ServerAddress(url=self.url, broker_host=self.broker_host, broker_port=self.broker_port)
        write_durably(self._data / SERVER_FILE, msgspec.json.encode(address) + b"\n")

    def stop(self) -> None:
        """Stop in good order; may be called twice."""
        (self._data / SERVER_FILE).unlink(missing_ok=True)
        if self._http is not None:
            self._http.stop()
            self._http = None
        if "controller" in self._started:
            self.controller.stop()
        self.retraining.stop()
        if "ingest" in self._started:
            self.ingest.stop()
            with contextlib.suppress(StoreError):
                self.watch.keep(self.store)
        if "link" in self._started:
            self.link.close()
        self._started.clear()
        if self._broker is not None:
            self._broker.stop()
            self._broker = None
        self.store.close()
        self._claim.close()

    def services(self, closing: asyncio.Event) -> Services:
        """The parts, as the API sees them."""
        return Services(
            store=self.store,
            blobs=self.blobs,
            catalog=self.catalog,
            enrolments=Enrolments(self.store),
            devices=Devices(self.store),
            rollouts=Rollouts(self.store),
            controller=self.controller,
            ingest=self.ingest,
            watch=self.watch,
            samples=self.samples,
            retraining=self.retraining,
            operator_token=self.operator_token,
            identity=self._identity,
            is_connected=lambda: self.link.connected,
            closing=closing,
            fleet=self.settings.fleet,
            open_reads=self.settings.open_reads,
            max_bundle_bytes=self.settings.max_bundle_bytes,
        )

    def snapshot(self) -> Snapshot:
        """The fleet as it is now, for the dashboard."""
        return read_snapshot(
            self.store,
            fleet=self.settings.fleet,
            broker=f"{self.broker_host}:{self.broker_port}",
            connected=self.link.connected,
            verdicts=self.watch.verdicts(),
            cohort_attribute=self.settings.drift.attribute,
        )

    def _identity(self, enrolled: Enrolled, came_by: str) -> Enrolment:
        """The answer to an enrolment, with the addresses that the device can reach."""
        address = urlsplit(self.url)
        listen_host, _ = split_address(self.settings.listen)
        is_embedded = self.settings.broker == "embedded"
        url, broker_host = self.url, self.broker_host
        host = self.settings.advertise or (came_by if listen_host in _WILDCARDS else "")
        if host:
            url = f"http://{f'[{host}]' if ':' in host else host}:{address.port}"
        if is_embedded and (self.settings.advertise or self.settings.mqtt_host in _WILDCARDS):
            broker_host = self.settings.advertise or came_by
        username, password = self._broker_credentials()
        return Enrolment(
            fleet=self.settings.fleet,
            group=enrolled.group,
            device=enrolled.device,
            attributes=enrolled.attributes,
            director_key=self.director_key.public.text,
            release_keys=tuple(key.text for key in self.release_keys),
            broker_host=broker_host,
            broker_port=self.broker_port,
            username=username,
            password=password,
            sealing_key=self.sealing_key.public,
            url=url,
        )

    def _start_broker(self) -> tuple[str, int]:
        if self._given_link is not None:
            return "given", 0
        if self.settings.broker != "embedded":
            parts = urlsplit(self.settings.broker)
            if not parts.hostname:
                raise ConfigError(f"broker {self.settings.broker!r}: expected mqtt://host:port")
            return parts.hostname, parts.port or 1883
        host = self.settings.mqtt_host
        port = self.settings.mqtt_port or self._remembered_port("mqtt_port", host)
        self._broker = EmbeddedBroker(self._data, host=host, port=port)
        self._broker.start()
        return "127.0.0.1" if host in _WILDCARDS else host, port

    def _broker_credentials(self) -> tuple[str | None, str | None]:
        parts = urlsplit(self.settings.broker) if self.settings.broker != "embedded" else urlsplit("")
        return parts.username, parts.password

    def _new_link(self) -> MqttLink:
        username, password = self._broker_credentials()
        return MqttLink(
            self.broker_host,
            self.broker_port,
            client_id=f"edgeops-{self.settings.fleet}-{secrets.token_hex(4)}",
            username=username,
            password=password,
            max_backoff_s=5.0,
            window=_WINDOW,
        )

    def _bind(self) -> socket.socket:
        """The listening socket; port 0 is the one of last time, when it is free."""
        host, wanted = split_address(self.settings.listen)
        port = wanted or self._remembered_port("http_port", host)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise ConfigError(f"listen {host}:{port}: {error.strerror}; choose another with --listen") from error
        return listener

    def _remembered_port(self, key: str, host: str) -> int:
        """Port 0 means any, and the same again after a restart, because devices have it in their identity."""
        with self.store.write() as connection:
            known = get_setting(connection, key)
            if known is not None:
                return int(known)
            port = free_port(host)
            set_setting(connection, key, str(port))
        return port

    def _load_release_keys(self) -> tuple[PublicKey, ...]:
        if self.settings.release_keys:
            return tuple(PublicKey(key) for key in self.settings.release_keys)
        path = self._data / RELEASE_KEY_FILE
        if not path.exists():
            logger.warning(
                "%s: a release key for development was made; in production the release key is elsewhere", path
            )
        return (SigningKey.load_or_generate(path).public,)

    def _load_operator_token(self) -> str:
        path = self._data / TOKEN_FILE
        if not path.exists():
            write_durably(path, secrets.token_urlsafe(32).encode() + b"\n", mode=0o600)
        return read_token(path)


class _HttpThread:
    """uvicorn on a thread of its own, on a socket that is bound already."""

    def __init__(self, server: FleetServer, listener: socket.socket) -> None:
        self._server = server
        self._listener = listener
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._uvicorn: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(_READY_S)

    def stop(self) -> None:
        if self._loop is not None and self._closing is not None and self._uvicorn is not None:
            self._uvicorn.should_exit = True
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(timeout=20)
        self._listener.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except EdgeOpsError:
            logger.exception("http: ended")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        app = create_app(self._server.services(self._closing), pages=[create_router(self._server.snapshot)])
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
            timeout_keep_alive=30,
        )
        self._uvicorn = uvicorn.Server(config)
        self._listener.listen(2048)
        self._ready.set()
        await self._uvicorn.serve(sockets=[self._listener])
