"""How the scripts of benchmarks/ and docs/ end: as `dalle` does, a user's error is one line and exit code 2."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dalle.cli.errors import print_error, report_error
from dalle.cli.interrupt import exit_code, sigterm_raises
from dalle.cli.streams import settle_streams


def run_tool(main: Callable[[], int | None]) -> int:
    """Run the main function of a script; returns the exit code.

    Args:
        main: parses the command line, and returns an exit code or None for 0.
    """
    program = Path(sys.argv[0]).name
    settle_streams()
    try:
        with sigterm_raises():
            return main() or 0
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        return report_error(program, error, lambda: "give smaller sizes, or take a machine with more memory")
    except subprocess.CalledProcessError as error:  # which has said why
        return print_error(program, error)
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped", file=sys.stderr)
        return exit_code(stop)


def positive_number(text: str) -> float:
    """Read a finite number above 0, as the `type` of an option."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def count(text: str) -> int:
    """Read a whole number of at least 1, as the `type` of an option."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
