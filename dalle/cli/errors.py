"""How a command ends when it fails: a user's error is a line on stderr and exit code 2, a bug keeps its traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from dalle.cli.streams import reader_is_gone
from dalle.files import printable

_LONGEST = 2000  # characters of a line
# What to do about errors of the operating system
_ADVICE = {
    errno.ENOSPC: "make room there, or write to another place",
    errno.EDQUOT: "make room there, or write to another place",
    errno.EFBIG: "a file reached the limit on its size (ulimit -f, or that of the file system)",
    errno.EROFS: "write to another place",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or use fewer workers",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk, or the connection to it, fails",
}


def print_error(program: str, error: object) -> int:
    """Print an error to stderr, each line prefixed by the program's name; returns the exit code 2."""
    lines = (_shortened(printable(line)) for line in str(error).splitlines())
    print("\n".join(f"{program}: {line}" for line in lines), file=sys.stderr)
    return 2


def describe_os_error(error: OSError) -> str:
    """An error of the operating system without its number: the file, what is wrong, and what to do."""
    if error.errno is None or not error.strerror:  # of a library, with a message of its own
        return str(error)
    name = "" if error.filename is None else f"{error.filename}: "
    advice = _ADVICE.get(error.errno)
    return f"{name}{error.strerror}" + ("" if advice is None else f": {advice}")


def _shortened(line: str) -> str:
    """A line that quotes a value of many kilobytes, with its middle left out."""
    return (
        line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... [{len(line):,} characters] ... {line[-100:]}"
    )


def report_error(program: str, error: Exception, memory_hint: Callable[[], str], kept: str = "") -> int:
    """Print an error that a user can cause, or raise it again.

    Args:
        program: name of the command.
        error: a ValueError, OSError or MemoryError is the user's; a RuntimeError only if memory ran out.
        memory_hint: says what to do if it did; called only then.
        kept: added to an error of the file system: what is finished, and where.

    Returns:
        The exit code: 2, or 141 without a line if what reads the output has gone, which is no error.
    """
    if isinstance(error, BrokenPipeError) and reader_is_gone():
        return 141  # as of a program that SIGPIPE ends
    from dalle.device import out_of_memory  # importing torch takes a second: not for --help

    shortage = out_of_memory(error)
    if shortage is not None:
        return print_error(program, f"{shortage}: {memory_hint()}")
    if isinstance(error, RuntimeError):
        raise error
    return print_error(program, describe_os_error(error) + kept if isinstance(error, OSError) else error)
