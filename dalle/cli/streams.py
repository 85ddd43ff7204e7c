"""Standard streams and arguments as shells hand them over: printing never fails when the work is done."""

from __future__ import annotations

import io
import os
import sys


def settle_streams() -> None:
    """Print what the terminal's encoding lacks as escapes, and nothing where a stream is closed (`2>&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Python gives no stream for a closed descriptor
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, open to the end
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def utf8_argument(text: str) -> str:
    """An argument that is no path, such as a prompt, read as UTF-8 where the locale (`LC_ALL=C`) is not.

    Python keeps bytes that the locale's encoding lacks as lone surrogates. What is no UTF-8 either stays as it is.
    """
    try:
        decoded = os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text
    # The very same object if nothing changed: argparse passes defaults through here too, and knows SUPPRESS by identity
    return text if decoded == text else decoded
