"""Standard streams and arguments as shells hand them over: printing never fails when the work is done."""

from __future__ import annotations

import atexit
import io
import os
import select
import sys


def settle_streams() -> None:
    """Print what the terminal's encoding lacks as escapes, and nothing where a stream is closed (`2>&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Python gives no stream for a closed descriptor
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, open to the end
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    # Python's own flush at exit would report a reader that has gone; once, however often this is called
    atexit.unregister(reader_is_gone)
    atexit.register(reader_is_gone)


def reader_is_gone() -> bool:
    """Whether what stdout or stderr is piped to has ended (`| head`, a `tee` that got the same Ctrl-C).

    What is printed there from then on is dropped.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):  # not a file of the system's, or closed: as in a test
            continue
        # Not by flushing: a write that failed may have left nothing in the buffer
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            # Where Python's flush at exit will write what is still buffered
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
            gone = True
    return gone


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
