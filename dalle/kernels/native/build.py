"""Compiles bindings.cpp for this machine's CPU, once, into the user's cache. Does not know what it contains."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle.kernels.compiler import cpp_compiler

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "csrc"
# No -ffast-math: it would make the linker flush denormals to zero in the whole process.
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    # -w: the warnings of a compiler that we do not know would help no user
    *("-fopenmp", "-fPIC", "-shared", "-w"),
)
BACKGROUND = "DALLE_COMPILE_IN_BACKGROUND"
"""Environment variable: if it is set, a process without a library does not wait for one (`dalle.cli.threads`)."""
_BACKGROUND_PROGRAM = "import os; os.nice(10); from dalle.kernels.native.build import library; library()"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MAX_CACHED = 4  # libraries that stay in the cache: of this version, of other branches, of another CPU with this home


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library, from the cache or compiled now; None if there is none, with the reason in the log."""
    if platform.system() != "Linux":
        logger.debug("no native kernels: they need Linux")
        return None
    compiler = cpp_compiler()
    if compiler is None:
        logger.warning("no C++ compiler found (g++ or clang++, or $CXX): using PyTorch's kernels, which are slower")
        return None
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dalle"
        path = cache / f"native-{_fingerprint(compiler)}.so"
        if not is_intact(path):
            if os.environ.get(BACKGROUND):
                _compile_in_background(path)
                return None  # this process uses PyTorch's kernels
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        if isinstance(error, subprocess.TimeoutExpired):  # whose message is the whole command
            output = f"the compiler took more than {error.timeout:.0f} seconds"
        output = (output.decode(errors="replace") if isinstance(output, bytes) else output).strip().splitlines()
        text = " ".join(output[:3])
        if "failed to map segment" in text:  # the loader's words for a file system without programs
            text = f"{path.parent} is mounted noexec: mount it exec (docker: --tmpfs /tmp:exec), or set XDG_CACHE_HOME"
        logger.warning("native kernels cannot be compiled, using PyTorch's, which are slower: %s", text)
        return None


def is_intact(path: Path) -> bool:
    """Whether a library is there with the digest at its end: loading one that is cut short ends in SIGBUS."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    intact = hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]
    if not intact:
        logger.warning("%s is damaged: compiling it again", path)
    return intact


def _compile_in_background(path: Path) -> None:
    """Start another process that compiles the library for later ones, and goes on when this one ends."""
    logger.warning(
        "compiling native kernels for this CPU in the background, once, some 15 seconds: %s; this command does without",
        path,
    )
    # That process must wait for its library
    environment = {name: value for name, value in os.environ.items() if name != BACKGROUND}
    own = str(Path(__file__).parents[3])  # where this package was imported from
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [own, environment.get("PYTHONPATH")]))
    command = [sys.executable, "-c", _BACKGROUND_PROGRAM]
    subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,  # not ended by Ctrl-C here
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _compile(compiler: list[str], path: Path) -> None:
    """Compile atomically: one process may be killed, and several may start at once, of which one compiles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary folder is beside the target, as `os.replace` works within one file system only
    with _lock(path.with_suffix(".lock")), _scratch(path.parent) as folder:
        if path.is_file() and is_intact(path):  # another process has compiled it in the meantime
            return
        logger.warning("compiling native kernels for this CPU, once, some 15 seconds: %s", path)
        made = Path(folder) / path.name
        command = [*compiler, *_FLAGS, str(_FOLDER / "bindings.cpp"), *_threads(), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        with made.open("r+b") as file:  # loaders ignore what follows the last section
            digest = hashlib.sha256(file.read()).digest()
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())  # else a power failure could leave the new name with empty contents
        os.replace(made, path)
        _remove_old(path.parent)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait until no other process compiles; on file systems without locks, do not wait."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            logger.debug("no locks on the file system of %s", path)
        yield


def _scratch(cache: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder to compile in, of a name by which `_remove_old` knows it."""
    return tempfile.TemporaryDirectory(dir=cache, prefix="compiling-")


def _remove_old(cache: Path) -> None:
    """Remove libraries of earlier versions, and what killed compilations left. A process keeps what it has loaded."""
    for folder in cache.glob("compiling-*"):
        if time.time() - folder.stat().st_mtime > 3600:  # a compilation ends in minutes
            shutil.rmtree(folder, ignore_errors=True)
    files = sorted(cache.glob("native-*.so"), key=lambda file: file.stat().st_mtime, reverse=True)  # newest first
    for file in files[_MAX_CACHED:]:
        file.unlink(missing_ok=True)
        file.with_suffix(".lock").unlink(missing_ok=True)


def _threads() -> list[str]:
    """Links the OpenMP library that PyTorch has loaded: of two in a process, one's threads would idle on its cores."""
    with open("/proc/self/maps", errors="surrogateescape") as lines:
        loaded = {line.rstrip("\n").split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}  # may have spaces
    # Other libraries may have loaded their own: PyTorch's goes first
    return ["-Wl,--as-needed", *sorted(loaded, key=lambda path: ("/torch/" not in path, path))[:1]]


def _fingerprint(compiler: list[str]) -> str:
    """A hash of all that the compiled code depends on: sources, flags, compiler, OpenMP and CPU features."""
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    # Part of the fingerprint, as machines with different CPUs may share a home folder
    with open("/proc/cpuinfo", "rb") as lines:
        flags = next((line for line in lines if line.lower().startswith((b"flags", b"features"))), b"")
    sources = [file.read_bytes() for file in sorted(_FOLDER.glob("*.[ch]*"))]
    parts = (*sources, os.fsencode(" ".join([*_FLAGS, *_threads()])), version, platform.machine().encode(), flags)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
