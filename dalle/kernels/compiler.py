"""Finds a C++ compiler on this machine."""

from __future__ import annotations

import os
import shlex
import shutil


def cpp_compiler() -> list[str] | None:
    """The command of the C++ compiler: $CXX, else g++ or clang++; None if it is not installed."""
    named = shlex.split(os.environ.get("CXX", ""))  # may be several words, such as "ccache g++"
    for command in [named] if named else [["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    return None
