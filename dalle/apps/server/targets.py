"""Request targets that are whole URLs, as they are sent to proxies, and which a server must answer, too."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import Scope

_WHOLE = re.compile(rb"https?://([^/]*)(/.*)?", re.IGNORECASE)


def origin_form(scope: Scope) -> Scope:
    """A request for `http://host/path` as one for `/path` of that host, which replaces the header (RFC 9112, 3.2.2)."""
    whole = None if scope["path"].startswith("/") else _WHOLE.fullmatch(scope["raw_path"])
    if whole is None:
        return scope
    host, path = whole[1].rpartition(b"@")[2], whole[2] or b"/"
    headers = [(b"host", host), *((name, value) for name, value in scope["headers"] if name != b"host")]
    return {**scope, "path": unquote(path.decode("ascii")), "raw_path": path, "headers": headers}
