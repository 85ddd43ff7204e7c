"""Files and folders that are written whole or not at all, hashes of files, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary, finalize

_HASH_BLOCK = 1 << 20  # bytes that are hashed at a time
_PART = ".part-"  # how the name of a half-written file begins
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of file systems without them


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`, with its suffix, to write to: it replaces `path`, or is gone if the block fails.

    Raises:
        OSError: no space left, or not writable; `path` is then as it was.
    """
    part = path.with_name(f"{_PART}{os.getpid()}-{path.name}")  # two processes may write the same file
    try:
        yield part
        _flush(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, whole or not at all."""
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_parts(folder: Path) -> None:
    """Remove files of a folder that processes which were killed in `atomic_file` left half written."""
    for part in folder.glob(f"{_PART}*"):
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; it takes the place of `target` when the block ends well.

    Raises:
        OSError: no space left, or not writable; `target` is then as it was, and nothing is left beside it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _flush(file)
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
        _flush(target.parent)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(scratch, ignore_errors=True)


def remove_scratch(parent: Path) -> None:
    """Clear away what processes that were killed in `atomic_folder` left beside folders of `parent`.

    A folder that was just being replaced gets its new contents, which are whole by then.
    """
    for scratch in parent.glob(".*-????????"):  # as tempfile names them
        if not scratch.is_dir() or not {path.name for path in scratch.iterdir()} <= {"new", "old"}:
            continue
        target = parent / scratch.name[1:-9]
        if (scratch / "old").exists() and not target.exists():
            os.replace(scratch / "new", target)
        shutil.rmtree(scratch)


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest, buffer = hashlib.sha256(), bytearray(_HASH_BLOCK)
    with file.open("rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


class FileLock:
    """The right to write in a folder: one process at a time has it, and the system takes it back when that ends.

    Where the file system has no locks, every process gets it.
    """

    def __init__(self, file: Path):
        """Take the lock that is this file.

        Raises:
            BlockingIOError: another process has it; its argument says which.
        """
        self._file = str(file.resolve())
        if self._file in _locks:
            raise BlockingIOError("this process")
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self._release = finalize(self, os.close, handle)  # also where an error comes before `with`
        try:
            # A record lock, which forked processes (those of a data loader) do not inherit
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
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())

    def close(self) -> None:
        """Let go of it."""
        if _locks.get(self._file) is self:
            del _locks[self._file]
        self._release()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# The locks of this process by their files: the system would give it a record lock twice
_locks: WeakValueDictionary[str, FileLock] = WeakValueDictionary()


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)  # a copied file may be read-only
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
