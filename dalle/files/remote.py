"""Access to the Hugging Face Hub: which names can be repository ids, timeouts, and the client's exceptions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

SHIPPED = ("models", "tokenizers", "configs")
"""Folders of this repository that recipes refer to."""
PATIENCE = 10.0
"""Timeout of a single request, in seconds."""
_FOLDERS = (*SHIPPED, "runs", "data", "examples", "docs")  # a path that begins with one of these is never a hub id


def may_be_an_id(parts: Sequence[str]) -> bool:
    """Return whether `owner/name` or `owner/name/.../file` can be a hub id, rather than a mistyped local path."""
    return (
        parts[0] not in _FOLDERS
        and not parts[0].startswith((".", "~"))
        and "\\" not in "".join(parts)
        and not Path(parts[0]).is_dir()
        and (len(parts) == 2 or "." in parts[-1])
    )


def failures() -> tuple[type[Exception], ...]:
    """List the exceptions that the hub client raises; with httpx, connection errors are not OSErrors."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    found: list[type[Exception]] = [HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError]
    for name in ("httpx", "httpx2"):  # whichever the installed version uses
        client = sys.modules.get(name)
        if client is not None:
            found.append(client.HTTPError)
    return tuple(found)
