"""Middleware of every request: tokens, limits, time, a line in the log. Plain ASGI, so that streams stay streams."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dalle.apps.server.errors import ApiError
from dalle.apps.server.metrics import Metrics
from dalle.apps.server.origin import check_origin
from dalle.apps.server.settings import ServeConfig
from dalle.apps.server.targets import origin_form

log = logging.getLogger("dalle.server")

_OPEN = ("/", "/docs", "/healthz", "/readyz")  # without a token; and the files of the pages
_STATIC = "/static/"
GONE = 499  # nginx's status in the log for a client that has hung up
SLOWEST = 10_000  # bytes a second that a client must send and read: else a byte now and then would hold a place


def read_tokens(path: Path) -> list[str]:
    """The bearer tokens of a file, one a line.

    Raises:
        ValueError: it cannot be read, or has no token, or a short one.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ValueError(f"{path}: the tokens cannot be read ({reason})") from error
    tokens = [text for line in lines if (text := line.partition("#")[0].strip())]
    if not tokens:
        raise ValueError(f"{path} has no token: write one a line")
    short = [number for number, token in enumerate(tokens, 1) if len(token) < 16 or " " in token]
    if short:
        raise ValueError(
            f"{path}: token {short[0]} has fewer than 16 characters, or a space; try `openssl rand -hex 24`"
        )
    return tokens


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServeConfig, tokens: Sequence[str], metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.tokens = [token.encode() for token in tokens]
        self.running: Counter[str] = Counter()  # requests by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, unread = time.perf_counter(), 0, False
        scope = origin_form(scope)
        request = Request(scope)
        # RFC 9110: HEAD wherever GET is, with the same head; uvicorn sends no body, as it reads the outer scope
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        path: str = scope["path"]
        scope.setdefault("state", {})
        guarded = not (path in _OPEN or path.startswith(_STATIC))

        async def sending(message: Message) -> None:
            nonlocal status, unread
            if message["type"] == "http.response.start":
                status = message["status"]
            try:
                await asyncio.wait_for(send(message), self.settings.send_timeout)
            except asyncio.TimeoutError:
                unread = True
                raise OSError(f"the client has not read for {self.settings.send_timeout:g} s") from None

        client: str | None = None
        try:
            if guarded:
                check_origin(request, self.settings)
                client = scope["state"]["client"] = self._client(request)
                self.running[client] += 1
                self._check(request, client)
            await self.app(inner, self._limited(receive), sending)
        except ApiError as error:
            await error.response()(scope, receive, sending)
        except ClientDisconnect:  # while its body was coming: nobody reads an answer
            status = GONE
        except Exception as error:
            if not (unread or isinstance(error, OSError)):
                raise
            log.info("%s", json.dumps({"event": "client gone", "path": path, "why": str(error)}))
            if not unread:  # a traceback of what is only a slow client would be its way to fill the log
                raise
        finally:
            if client is not None:
                self.running[client] -= 1
                self.running += Counter()  # drops those without a request
            route = inner.get("route")
            name = getattr(route, "path", "other")
            seconds = time.perf_counter() - started
            if guarded:
                self.metrics.add("dalle_requests_total", path=name, status=str(status))
                self.metrics.observe("dalle_request_seconds", seconds, path=name)
            if guarded or status >= 400:
                self._log(scope, status, seconds)

    def _client(self, request: Request) -> str:
        """The client of a request, by token or address.

        Raises:
            ApiError: a token is wanted, and this is none.
        """
        if not self.tokens:
            # The last entry is what our own proxy has added; those before it are the client's word
            forwarded = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
            if self.settings.trust_proxy and forwarded:
                return forwarded[:64]
            return request.client.host if request.client else "unknown"
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip().encode("latin-1", "replace")
        fits = [
            hmac.compare_digest(given, own) for own in self.tokens
        ]  # no early exit, whose timing would leak which token is close
        if kind.lower() != "bearer" or not any(fits):
            message = "no token given" if not token else "the token is wrong"
            raise ApiError(f"{message}: send Authorization: Bearer TOKEN", status=401, code="invalid_api_key")
        return "token " + hashlib.sha256(given).hexdigest()[:12]  # the log must not hold tokens

    def _check(self, request: Request, client: str) -> None:
        limit, running = self.settings.max_requests, self.running.total()
        own, half = self.running[client], (limit + 1) // 2
        if running > limit or own > half:
            full = f"{limit} requests are" if running > limit else f"{half} requests of yours are"
            raise ApiError(f"{full} running: try again later", status=429, retry_after=2, code="rate_limit_exceeded")
        # A length that is announced is refused at once; otherwise `_limited` counts what comes
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.settings.max_body:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(f"the body has more than {self.settings.max_body:,} bytes", status=413)

    def _limited(self, receive: Receive) -> Receive:
        """Refuses a body that is too long or does not arrive."""
        size, whole = 0, False
        wait, began = self.settings.body_timeout, time.monotonic()

        async def receiving() -> Message:
            nonlocal size, whole
            if whole:  # what comes now is that the client hangs up
                return await receive()
            left = began + wait + size / SLOWEST - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(wait, max(0.0, left)))
            except asyncio.TimeoutError:
                raise ApiError(f"the body did not come within {wait:g} s, or too slowly", status=408) from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self.settings.max_body:
                raise self._too_large()
            return message

        return receiving

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        line = {
            "event": "request",
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 3),
            "client": state.get("client"),
            **state.get("log", {}),
        }
        log.info("%s", json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False))
