"""Root of the shipped files, atomic writing of files and folders, hashes of files, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakValueDictionary, finalize

_PACKAGE = Path(__file__).resolve().parents[1]
ROOT = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent
"""Folder of train.py, sample.py, configs/, models/ and tokenizers/: the checkout, or the copy of them in a wheel."""
CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
"""The checkout of the repository; None where the package is installed from a wheel."""
_HASH_BLOCK = 1 << 20  # bytes read at a time
_PART = ".part-"  # prefix of unfinished files
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # errors of writing, mostly unnamed
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # errors of file systems without locks


def printable(text: str) -> str:
    """The text with escapes for control characters: names of files may hold line breaks and a terminal's commands."""
    return text.translate(_CONTROLS)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which replaces it when the block ends, or is deleted if the block fails.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged.
    """
    part = path.with_name(f"{_PART}{os.getpid()}-{path.name}")  # the pid: processes may write the same file
    with naming(path, part):
        try:
            yield part
            _flush(part)  # else a power failure could leave the new name with empty contents
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Name the file or folder that a block writes in its OSErrors, in place of its temporary name.

    A failed write, as on a full disk, has no name at all.

    Args:
        path: what is written.
        scratch: how temporary names begin.
    """
    try:
        yield
    except shutil.Error as error:  # of copytree: a list, with a line for every file
        failures = error.args[0] if isinstance(error.args[0], list) else []
        found = re.match(r"\[Errno (\d+)\]", str(failures[0][-1])) if failures else None
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    except OSError as error:
        if error.errno in _NO_ROOM and "[errno" in str(error.strerror):
            error.strerror = os.strerror(error.errno)  # pyarrow has a sentence of its own around it
        unnamed = error.filename is None and error.errno in _NO_ROOM
        if unnamed or (scratch is not None and str(error.filename).startswith(str(scratch))):
            error.filename = str(path)
            del error.filename2  # of a rename; None would be printed
        raise


def expand_home(path: str | Path) -> Path:
    """A path with the home folder that "~" or "~user" at its beginning stands for.

    Raises:
        ValueError: there is no such folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: {Path(path).parts[0]} is no home folder here: give the path in full") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove unfinished files of `atomic_file` that killed processes left in a folder: all, or those of one name."""
    for part in folder.glob(f"{_PART}*-{name}"):
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which replaces `target` when the block ends, or is deleted if the block fails.

    Raises:
        OSError: the disk is full or not writable; `target` is unchanged.
    """
    target = Path(target)
    with naming(target, target.parent / f".{target.name}-"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(target, Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))) as new:
            yield new


@contextmanager
def _replacing(target: Path, scratch: Path) -> Iterator[Path]:
    """The work of `atomic_folder` in a scratch folder, which is removed."""
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _flush(file)
        # A folder cannot be replaced in one step if it is not empty: move the old one out of the way first. A process
        # killed between the two renames leaves both in the scratch folder, and `remove_scratch` completes the second
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
        _flush(target.parent)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(scratch, ignore_errors=True)


def remove_scratch(parent: Path) -> None:
    """Remove temporary folders of `atomic_folder` that killed processes left in `parent`.

    A folder whose replacement was interrupted gets its new contents, which are complete at that point.
    """
    for scratch in parent.glob(".*-????????"):  # as tempfile names them
        if not scratch.is_dir() or not {path.name for path in scratch.iterdir()} <= {"new", "old"}:
            continue
        target = parent / scratch.name[1:-9]
        if (scratch / "old").exists() and not target.exists():
            os.replace(scratch / "new", target)
        shutil.rmtree(scratch)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    digest, buffer = hashlib.sha256(), bytearray(_HASH_BLOCK)
    with file.open("rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


class FileLock:
    """An exclusive lock between processes, which the operating system releases when the process ends, however it ends.

    On file systems without locks every process gets it.
    """

    def __init__(self, file: Path):
        """Acquire the lock on `file`, which is created if necessary.

        Raises:
            BlockingIOError: another process has it; the message says which.
        """
        self._file = str(file.resolve())
        if self._file in _locks:
            raise BlockingIOError("this process")
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self._release = finalize(self, os.close, handle)  # released even if the object is never closed
        try:
            # A record lock: unlike one from flock, it is not inherited by forked processes (data loader workers), which
            # may outlive this one
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            self._release()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise BlockingIOError(holder) from error
        _locks[self._file] = self
        with naming(file):  # on a full disk even this is too much
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())

    def close(self) -> None:
        """Release the lock."""
        if _locks.get(self._file) is self:
            del _locks[self._file]
        self._release()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Locks of this process by file: the system would grant a record lock to the same process twice
_locks: WeakValueDictionary[str, FileLock] = WeakValueDictionary()


def _flush(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)  # a copied file may be read-only
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def install_command(extra: str) -> str:
    """The shell command that installs an extra into this Python.

    It names the checkout, if there is one: a package index may have something else under the name of this package.
    """
    source = f"{CHECKOUT}[{extra}]" if CHECKOUT is not None else f"dalle[{extra}]"
    editable = "-e " if CHECKOUT is not None else ""
    # An environment that uv made has no pip
    pip = f"{sys.executable} -m pip install" if find_spec("pip") else f"uv pip install --python {sys.executable}"
    return f'{pip} {editable}"{source}"'
