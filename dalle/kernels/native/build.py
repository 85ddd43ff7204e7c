"""Compiles bindings.cpp for this machine's CPU, once, into the user's cache. Does not know what it contains."""

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
# No -ffast-math: it would make the linker flush denormals to zero in the whole process.
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fopenmp", "-fPIC", "-shared", "-w"),
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library, from the cache or compiled now; None if that fails, with the reason in the log."""
    compiler = cpp_compiler()
    if compiler is None or platform.system() != "Linux":
        logger.debug("no native kernels: they need Linux and g++ or clang++")
        return None
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dalle"
        path = cache / f"cpu-{_fingerprint(compiler)}.so"
        if not path.is_file():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        output = (output.decode(errors="replace") if isinstance(output, bytes) else output).strip().splitlines()
        logger.info("using PyTorch's kernels, as the native ones failed to compile: %s", " ".join(output[:3]))
        return None


def _compile(compiler: list[str], path: Path) -> None:
    """Compile atomically: several processes may start at once, and one may be killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("compiling native kernels for this machine, once: %s", path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*compiler, *_FLAGS, str(_FOLDER / "bindings.cpp"), *_threads(), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        os.replace(made, path)


def _threads() -> list[str]:
    """Links the OpenMP library that PyTorch has loaded: of two in a process, one's threads would idle on its cores."""
    with open("/proc/self/maps", errors="surrogateescape") as lines:
        loaded = {line.rstrip("\n").split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}  # may have spaces
    # Other libraries may have loaded their own: PyTorch's goes first
    return ["-Wl,--as-needed", *sorted(loaded, key=lambda path: ("/torch/" not in path, path))[:1]]


def _fingerprint(compiler: list[str]) -> str:
    """A hash of all that the compiled code depends on: sources, flags, compiler, OpenMP and CPU features."""
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    with open("/proc/cpuinfo", "rb") as lines:
        flags = next((line for line in lines if line.lower().startswith((b"flags", b"features"))), b"")
    sources = [file.read_bytes() for file in sorted(_FOLDER.glob("*.[ch]*"))]
    parts = (*sources, os.fsencode(" ".join([*_FLAGS, *_threads()])), version, platform.machine().encode(), flags)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
