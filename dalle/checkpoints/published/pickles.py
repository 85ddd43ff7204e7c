"""Reads files of torch.save and pickle without executing their code: tensors, plain data, inert placeholders.

Three formats are read: zip archives (torch 1.6 and later, TorchScript), torch's older sequence of pickles and raw
storages, and bare pickles. Tensors are copy-on-write views of the memory-mapped file, so they take no memory until
they are used.
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
import zipfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dalle.checkpoints.mapped_files import mmap_bytes
from dalle.checkpoints.published.unpickler import MAX_PICKLE_BYTES, RefusedError, Stream, load

_MAGIC = 0x1950A86A20F9469CFC6C  # the first object in torch's old format


def read_pickled(file: Path) -> Any:
    """Read the object in a pickle file safely.

    Args:
        file: a file written by torch.save, torch.jit.save or pickle.dump.

    Returns:
        Dicts, lists, tuples, sets, numbers, strings and tensors (on the CPU) as in the file, and `OpaqueObject` for
        everything else. Parameters become plain tensors.

    Raises:
        ValueError: the file refers to something that is not allowed (which is named, and was not executed), is
            truncated or damaged, or has none of the three formats.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if not file.stat().st_size:
        raise ValueError(f"{file} is empty: download it again")
    with file.open("rb") as start:  # enough for the magic number
        head = start.read(512)
    if head.startswith(_IMAGES):
        raise ValueError(f"{file} is an image, and holds no weights (what drew a PNG: sample.py --from {file})")
    try:
        if head.startswith(b"PK\x03\x04"):
            return _read_zip(file)
        with file.open("rb") as handle, closing(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            return _read_sequence(file, cast("Stream", content))
    except RefusedError as error:
        raise ValueError(f"{file} {error}") from None
    except _DAMAGE_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{file} was not written by torch.save, or is damaged ({reason}): download it again"
        ) from error


def read_code(file: Path) -> str:
    """The text of the programs in a TorchScript archive, which are not run; empty if it has none.

    Raises:
        ValueError: they are longer than any network's, or the archive is damaged.
    """
    found: list[bytes] = []
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if not re.fullmatch(r"[^/]+/code/.+\.py", name):
                    continue
                # Texts are compressed, and a small archive could declare terabytes
                left = MAX_PICKLE_BYTES - sum(map(len, found))
                with archive.open(name) as text:
                    found.append(text.read(left + 1))
                if len(found[-1]) > left:
                    raise ValueError(f"it has more than {MAX_PICKLE_BYTES:,} bytes of code")
    except (*_DAMAGE_ERRORS, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} is no TorchScript archive, or is damaged ({reason}): download it again") from error
    return b"\n".join(found).decode(errors="replace")


_IMAGES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF")  # how files of PNG, JPEG, GIF and WebP begin
# All exceptions that damaged pickles and archives cause in the standard library and in torch.
_DAMAGE_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _read_zip(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        # One folder, whose name is free
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedError(
                f"is a ZIP archive with {len(pickles)} members NAME/data.pkl, and torch.save writes one: "
                "give the file of the weights"
            )
        main = pickles[0]
        folder = main.removesuffix("data.pkl")
        # Nothing is decompressed: torch stores members uncompressed, and a small archive could declare terabytes.
        most = min(MAX_PICKLE_BYTES, file.stat().st_size)
        for name in [name for name in (main, folder + "byteorder") if name in members]:
            if members[name].compress_type != zipfile.ZIP_STORED or members[name].file_size > most:
                size = members[name].file_size
                raise RefusedError(f"declares {size:,} bytes of {name}, which is not what torch.save writes")
        if folder + "byteorder" in members and archive.read(folder + "byteorder").strip() != b"little":
            raise RefusedError("holds big-endian numbers, which are not supported")
        content = archive.read(main)
    whole = mmap_bytes(file)

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = members[f"{folder}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
            raise RefusedError(f"declares {info.file_size:,} bytes for {count:,} numbers of {dtype}")
        header = whole[
            info.header_offset : info.header_offset + 30
        ]  # the local file header ends with the lengths of name and extra field
        name, extra = (int(header[at]) + 256 * int(header[at + 1]) for at in (26, 28))
        return _view(whole, info.header_offset + 30 + name + extra, dtype, count)

    return load(io.BytesIO(content), storage)


def _read_sequence(file: Path, content: Stream) -> Any:
    """Read a bare pickle, or torch's old format: magic number, version, system, object, storage keys, storages."""
    first = load(content, _no_storage)
    if first != _MAGIC:
        return first
    load(content, _no_storage)  # version of the format
    system = load(content, _no_storage)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise RefusedError("holds big-endian numbers, which are not supported")
    start = content.tell()
    dtypes: dict[str, torch.dtype] = {}

    def without_numbers(key: str, dtype: torch.dtype, count: int) -> Tensor:
        dtypes[key] = dtype
        return torch.empty(count, dtype=dtype, device="meta")

    # The object comes before its storages. The first pass only collects their dtypes, from which the second part's
    # offsets follow; then the object is read again with its data.
    load(content, without_numbers)
    keys = load(content, _no_storage)
    whole, places = mmap_bytes(file), {}
    at = content.tell()
    for key in keys:
        content.seek(at)
        count = int.from_bytes(content.read(8), "little")  # the number of elements
        places[key] = at + 8
        at += 8 + count * dtypes[key].itemsize

    content.seek(start)
    return load(content, lambda key, dtype, count: _view(whole, places[key], dtype, count))


def _view(whole: Tensor, start: int, dtype: torch.dtype, count: int) -> Tensor:
    if count < 0 or start + count * dtype.itemsize > len(whole):
        raise EOFError("it ends inside a tensor")
    part = whole[start : start + count * dtype.itemsize]
    return (part if start % dtype.itemsize == 0 else part.clone()).view(dtype)  # a view needs alignment


def _no_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
    raise RefusedError("has a tensor where there are no storages")
