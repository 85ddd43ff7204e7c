"""The page at /: three files of the package, which ask no other host for anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_KINDS = {"style.css": "text/css; charset=utf-8", "app.js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_router() -> APIRouter:
    """The routes of the page and its files."""
    router = APIRouter(include_in_schema=False)
    for path, name, kind in (
        ("/", "index.html", "text/html; charset=utf-8"),
        *((f"/static/{name}", name, kind) for name, kind in _KINDS.items()),
    ):
        router.add_api_route(path, _sender((_FOLDER / name).read_bytes(), kind), methods=["GET"], response_model=None)
    return router


def _sender(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return send
