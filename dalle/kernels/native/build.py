"""Compiles bindings.cpp for this machine's CPU, once, into the user's cache. Knows nothing of what is in it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from dalle.kernels.compiler import cpp_compiler

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "csrc"
# Strict arithmetic otherwise: -ffast-math would, by the linker, change how the whole process treats tiny numbers.
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fopenmp", "-fPIC", "-shared", "-w"),
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled code, from the cache or made now; None where that fails, with the reason in the log."""
    compiler = cpp_compiler()
    if compiler is None or platform.system() != "Linux":
        logger.debug("no compiled code for this CPU: it takes Linux and g++ or clang++")
        return None
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dalle"
        path = cache / f"cpu-{_fingerprint(compiler)}.so"
        if not path.is_file():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        told = (told.decode(errors="replace") if isinstance(told, bytes) else told).strip().splitlines()
        logger.info(
            "drawing goes torch's way, as the native kernels were not compiled for this machine: %s", " ".join(told[:3])
        )
        return None


def _compile(compiler: list[str], path: Path) -> None:
    """Make the library whole or not at all, also if several processes begin at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("compiling the native kernels for this machine, once: %s", path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*compiler, *_FLAGS, str(_FOLDER / "bindings.cpp"), *_threads(), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        os.replace(made, path)


def _threads() -> list[str]:
    """The OpenMP that torch has loaded: with two in a process the threads of one would wait while the other's work."""
    with open("/proc/self/maps", errors="surrogateescape") as lines:
        loaded = {line.rstrip("\n").split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}  # may have spaces
    # Other libraries may have brought their own
    return ["-Wl,--as-needed", *sorted(loaded, key=lambda path: ("/torch/" not in path, path))[:1]]


def _fingerprint(compiler: list[str]) -> str:
    """What the compiled code depends on: sources, options, compiler, threads and the CPU's instructions."""
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    with open("/proc/cpuinfo", "rb") as lines:
        flags = next((line for line in lines if line.lower().startswith((b"flags", b"features"))), b"")
    sources = [file.read_bytes() for file in sorted(_FOLDER.glob("*.[ch]*"))]
    parts = (*sources, os.fsencode(" ".join([*_FLAGS, *_threads()])), version, platform.machine().encode(), flags)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
