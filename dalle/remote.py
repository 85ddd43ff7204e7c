"""What may be asked of the Hugging Face hub, how long, and how it fails. Knows nothing of what is fetched."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

SHIPPED = ("models", "tokenizers", "configs")
"""Folders of the checkout that recipes name."""
PATIENCE = 10.0
"""Seconds that a single request may take."""
_FOLDERS = (*SHIPPED, "runs", "data", "examples", "docs")  # what paths begin with here


def may_be_an_id(parts: Sequence[str]) -> bool:
    """Whether `owner/name` or `owner/name/.../file` can be meant to be on the hub, and not a path with a slip."""
    return (
        parts[0] not in _FOLDERS
        and not parts[0].startswith((".", "~"))
        and "\\" not in "".join(parts)
        and not Path(parts[0]).is_dir()
        and (len(parts) == 2 or "." in parts[-1])
    )


def failures() -> tuple[type[Exception], ...]:
    """What the hub's client raises: with httpx no connection is no OSError."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    found: list[type[Exception]] = [HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError]
    for name in ("httpx", "httpx2"):  # whichever it stands on
        client = sys.modules.get(name)
        if client is not None:
            found.append(client.HTTPError)
    return tuple(found)
