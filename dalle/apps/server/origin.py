"""Which web pages may have a browser send requests: the server's own, and those of --cors.

A browser sends forms of any page to any server (CSRF), and takes a name that its owner points at 127.0.0.1 for that of
one site (DNS rebinding). Clients that are no browsers send neither `Sec-Fetch-Site` nor `Origin`.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request

from dalle.apps.server.errors import ApiError
from dalle.apps.server.settings import ServeConfig

_SAFE = ("GET", "HEAD", "OPTIONS")
_OWN = ("same-origin", "none")  # none: the address bar


def check_origin(request: Request, settings: ServeConfig) -> None:
    """Refuse what a page of another site makes a browser send.

    Raises:
        ApiError: 403, it is such a request.
    """
    host = request.headers.get("host", "")
    if _only_local(settings) and not _is_local(host):
        message = f"host is {host[:100]!r}: this server is for 127.0.0.1 and localhost, or behind a proxy --trust-proxy"
        raise ApiError(message, status=403, code="wrong_host")
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if request.method in _SAFE or origin in settings.cors or "*" in settings.cors:
        return
    if site in _OWN or (site is None and (origin is None or _same(origin, host))):
        return
    message = f"a page of {(origin or 'another site')[:100]} sent this: start the server with --cors to allow it"
    raise ApiError(message, status=403, code="cross_origin")


def _only_local(settings: ServeConfig) -> bool:
    """Whether all that keeps strangers out is the address; a token would, and a proxy has a name of its own."""
    return settings.token_file is None and not settings.trust_proxy and _is_local(settings.host)


def _is_local(host: str) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _same(origin: str, host: str) -> bool:
    """Whether an origin is that of a Host header, in which a proxy may leave the port out."""
    try:
        given, own = urlsplit(origin), urlsplit(f"//{host}")
        return given.netloc == own.netloc or (own.port is None and given.hostname == own.hostname)
    except ValueError:
        return False
