"""The C++ compiler of this machine, if there is one."""

from __future__ import annotations

import os
import shlex
import shutil


def cpp_compiler() -> list[str] | None:
    """The command of the C++ compiler: what CXX names, else g++ or clang++; None where it is not there."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    return None
