"""URLs where a file is expected. They are not fetched, which an error has to say: nothing else here does."""

from __future__ import annotations

import re
from pathlib import Path


def url_of(path: str | Path) -> str | None:
    """The http or https URL that was given in place of a path; None if it is none. `Path` makes one slash of two."""
    text = str(path)
    found = re.match(r"(https?:)/+", text, re.IGNORECASE)
    return None if found is None else f"{found[1]}//{text[found.end() :]}"


def missing_path(path: str | Path, message: str) -> str:
    """The message for a path at which nothing is, unless it is a URL, about which another is returned."""
    url = url_of(path)
    return message if url is None else f"{url} is a URL, which is not fetched: download it and give the file"
