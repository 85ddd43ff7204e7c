"""The page at / and that of the API at /docs: files of the package, which ask no other host for anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_PAGES = {"/": "index.html", "/docs": "docs.html"}
_KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_router() -> APIRouter:
    """The routes of the pages and their files."""
    router = APIRouter(include_in_schema=False)
    kinds = [(path, name, "text/html; charset=utf-8") for path, name in _PAGES.items()]
    files = [file for file in _FOLDER.iterdir() if file.suffix in _KINDS]
    kinds += [(f"/static/{file.name}", file.name, _KINDS[file.suffix]) for file in files]
    for path, name, kind in kinds:
        router.add_api_route(path, _sender((_FOLDER / name).read_bytes(), kind), methods=["GET"], response_model=None)
    return router


def _sender(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return send
