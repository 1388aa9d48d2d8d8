"""The log, as a list and as a stream, and the health check."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse

from edgeops import __version__
from edgeops_fleet.api.answers import answer
from edgeops_fleet.api.bodies import gives
from edgeops_fleet.api.services import Services
from edgeops_fleet.store import LogEntry, Store

_KEEP_ALIVE_S = 15.0


def add_record_routes(app: FastAPI, services: Services) -> None:
    """Add the routes."""

    @app.get("/api/v1/log", tags=["records"], openapi_extra=gives(LogEntry, key="log"))
    def log(
        after: int = 0, limit: Annotated[int, Query(ge=1, le=10_000)] = 500, rollout: str | None = None
    ) -> Response:
        """What happened and why, the newest last; without ``after``, the last lines."""
        return answer({"log": services.store.log(after=after, limit=limit, rollout=rollout)})

    @app.get("/api/v1/stream", tags=["records"], response_class=StreamingResponse)
    async def stream(request: Request, after: int | None = None) -> Response:
        """The log as server-sent events, from now on, or from a line on (``Last-Event-ID``, or ``after``)."""
        last = request.headers.get("Last-Event-ID", "")
        start = int(last) if last.isdecimal() else after
        return StreamingResponse(
            _follow_log(services, request, after=start),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    @app.get("/healthz", tags=["records"])
    def health() -> Response:
        """Whether the server can do its work: the database answers, the broker is there."""
        with services.store.read() as connection:
            connection.exec_driver_sql("SELECT 1")
        counters = services.ingest.counters
        is_connected = services.is_connected()
        body = {
            "status": "ok" if is_connected else "broker away",
            "fleet": services.fleet,
            "version": __version__,
            "broker": is_connected,
            "ingest": counters,
        }
        return answer(body, status=200 if is_connected else 503)


async def _follow_log(services: Services, request: Request, *, after: int | None) -> AsyncIterator[bytes]:
    """Lines of the log as they are written, with a comment now and then so that a dead connection is noticed."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(news.set)

    services.store.add_listener(tell)
    try:
        if after is None:
            newest = await asyncio.to_thread(services.store.log, limit=1)
            after = newest[-1].id if newest else 0
        yield b": edgeops\n\n"
        while not services.closing.is_set() and not await request.is_disconnected():
            news.clear()
            # A look at what comes after line 0 would be the last lines; lines count from 1.
            for entry in await asyncio.to_thread(_lines_after, services.store, after):
                after = entry.id
                yield f"id: {entry.id}\nevent: log\ndata: {msgspec.json.encode(entry).decode()}\n\n".encode()
            if await _waited_in_vain(news, services.closing):
                yield b": still here\n\n"
    finally:
        services.store.remove_listener(tell)


def _lines_after(store: Store, after: int) -> tuple[LogEntry, ...]:
    return store.log(after=after) if after else store.log(limit=500)


async def _waited_in_vain(*events: asyncio.Event) -> bool:
    """Wait for one of the events; ``True`` when none came for a while."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    done, pending = await asyncio.wait(waits, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    return not done
