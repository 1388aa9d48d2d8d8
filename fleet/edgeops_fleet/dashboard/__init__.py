"""The dashboard: one page, rendered on the server, that a person can follow a rollout and the drift on.

The page polls its own content; there is no build step, and nothing comes from elsewhere. Reading the database is
:mod:`.snapshot`'s, the wording :mod:`.view`'s; acting on the fleet is left to the command line and the API.
"""

from collections.abc import Callable
from importlib import resources

import jinja2
from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from edgeops_fleet.dashboard.snapshot import Snapshot, read_snapshot
from edgeops_fleet.dashboard.view import build_view

__all__ = ["Snapshot", "build_view", "create_router", "read_snapshot", "render"]

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STATIC = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("edgeops_fleet.dashboard"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(snapshot: Snapshot, *, fragment: bool = False) -> str:
    """The page as HTML, or only the part of it that changes."""
    template = _environment.get_template("fragment.html" if fragment else "page.html")
    return template.render(page=build_view(snapshot))


def create_router(snapshot: Callable[[], Snapshot]) -> APIRouter:
    """The page at ``/``, its changing part at ``/fragment``, its files below ``/static``.

    Args:
        snapshot: Reads the fleet as it is now; it may block, and is called on a thread of the server's pool.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(render(snapshot()), headers=_HEADERS)

    @router.get("/fragment")
    def fragment() -> HTMLResponse:
        return HTMLResponse(render(snapshot(), fragment=True), headers=_HEADERS)

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            return Response(status_code=404)
        content = resources.files("edgeops_fleet.dashboard").joinpath("static", name).read_bytes()
        return Response(content, media_type=_STATIC[name], headers={"Cache-Control": "max-age=300"})

    return router
