"""Reads files of torch.save and pickle without executing their code: tensors, plain data, inert placeholders.

A pickle is a program that may call any importable function. This unpickler allows two short lists: our own checked
functions that rebuild tensors and plain containers, and names from known training libraries, which are replaced by
`OpaqueObject`, which only records its arguments. Anything else is rejected by name before it is imported.

Three formats are read: zip archives (torch 1.6 and later, TorchScript), torch's older sequence of pickles and raw
storages, and bare pickles. Tensors are copy-on-write views of the memory-mapped file, so they take no memory until
they are used.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from dalle.checkpoints.mapped_files import mmap_bytes

_MAGIC = 0x1950A86A20F9469CFC6C  # the first object in torch's old format
_MAX_PICKLE_BYTES = 2**28  # without tensors; published checkpoints have far less
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Modules whose classes and functions occur in published files beside the weights: layers, trainers, options. They are
# never imported.
_OPAQUE_MODULES = re.compile(
    r"(dall_e|taming|dalle_pytorch|pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf|deepspeed|"
    r"torch\.nn|torch\.optim|torch\.jit|__torch__|numpy)(\..*)?"
)
_OPAQUE_NAMES = {
    ("argparse", "Namespace"),
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("functools", "partial"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("typing", "Any"),
}

Stream = IO[bytes]
Storages = Callable[[str, torch.dtype, int], Tensor]
"""(key, dtype, number of elements) of a storage -> its elements, a one-dimensional tensor."""


class OpaqueObject:
    """Placeholder for an object of a class that is not imported; records what the file passes to it.

    Attributes:
        origin: qualified name of the class or function, such as "dall_e.encoder.Encoder".
        args: its positional arguments.
        state: its attributes, as stored in the file.
        items: what was appended or set by key.
    """

    origin = ""
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> OpaqueObject:
        """Record the arguments of the call that the pickle asks for."""
        made = super().__new__(cls)
        made.args, made.items = args, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Record a list item; the unpickler calls this for list-like objects."""
        self.items.append(value)

    def extend(self, values: list[Any]) -> None:
        """Record list items; the unpickler calls this for list-like objects."""
        self.items.extend(values)

    def __repr__(self) -> str:
        return f"<{self.origin}>"


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
    with file.open("rb") as start:
        head = start.read(512)
    try:
        if head.startswith(b"PK\x03\x04"):
            return _read_zip(file)
        with file.open("rb") as handle, closing(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            return _read_sequence(file, cast("Stream", content))
    except _Refused as error:
        raise ValueError(f"{file} {error}") from None
    except _DAMAGE_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{file} was not written by torch.save, or is damaged ({reason}): download it again"
        ) from error


class _Refused(Exception):
    """The file asks for something that is not allowed."""


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
        (main,) = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        folder = main.removesuffix("data.pkl")
        # Nothing is decompressed: torch stores members uncompressed, and a small archive could declare terabytes.
        most = min(_MAX_PICKLE_BYTES, file.stat().st_size)
        for name in [name for name in (main, folder + "byteorder") if name in members]:
            if members[name].compress_type != zipfile.ZIP_STORED or members[name].file_size > most:
                size = members[name].file_size
                raise _Refused(f"declares {size:,} bytes of {name}, which is not what torch.save writes")
        if folder + "byteorder" in members and archive.read(folder + "byteorder").strip() != b"little":
            raise _Refused("holds big-endian numbers, which are not supported")
        content = archive.read(main)
    whole = mmap_bytes(file)

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = members[f"{folder}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
            raise _Refused(f"declares {info.file_size:,} bytes for {count:,} numbers of {dtype}")
        header = whole[
            info.header_offset : info.header_offset + 30
        ]  # the local file header ends with the lengths of name and extra field
        name, extra = (int(header[at]) + 256 * int(header[at + 1]) for at in (26, 28))
        return _view(whole, info.header_offset + 30 + name + extra, dtype, count)

    return _load(io.BytesIO(content), storage)


def _read_sequence(file: Path, content: Stream) -> Any:
    """Read a bare pickle, or torch's old format: magic number, version, system, object, storage keys, storages."""
    first = _load(content, _no_storage)
    if first != _MAGIC:
        return first
    _load(content, _no_storage)  # version of the format
    system = _load(content, _no_storage)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise _Refused("holds big-endian numbers, which are not supported")
    start = content.tell()
    dtypes: dict[str, torch.dtype] = {}

    def without_numbers(key: str, dtype: torch.dtype, count: int) -> Tensor:
        dtypes[key] = dtype
        return torch.empty(count, dtype=dtype, device="meta")

    # The object comes before its storages. The first pass only collects their dtypes, from which the second part's
    # offsets follow; then the object is read again with its data.
    _load(content, without_numbers)
    keys = _load(content, _no_storage)
    whole, places = mmap_bytes(file), {}
    at = content.tell()
    for key in keys:
        content.seek(at)
        count = int.from_bytes(content.read(8), "little")
        places[key] = at + 8
        at += 8 + count * dtypes[key].itemsize

    content.seek(start)
    return _load(content, lambda key, dtype, count: _view(whole, places[key], dtype, count))


def _view(whole: Tensor, start: int, dtype: torch.dtype, count: int) -> Tensor:
    if count < 0 or start + count * dtype.itemsize > len(whole):
        raise EOFError("it ends inside a tensor")
    part = whole[start : start + count * dtype.itemsize]
    return (part if start % dtype.itemsize == 0 else part.clone()).view(dtype)


def _no_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
    raise _Refused("has a tensor where there are no storages")


def _load(content: Stream, storage: Storages) -> Any:
    """Read the next pickle of a stream, leaving the stream behind its end."""
    start = content.tell()
    _check(content, start)
    content.seek(start)
    return _Reader(content, storage).load()


def _check(content: Stream, start: int) -> None:
    """Scan the opcodes of a pickle without executing them, for those that would exhaust memory."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content), 1):
        if position is not None and position - start > _MAX_PICKLE_BYTES:
            raise _Refused(
                f"holds a pickle of more than {_MAX_PICKLE_BYTES:,} bytes, which is not what torch.save writes"
            )
        # The C unpickler allocates its memo by the largest index: a few bytes could request gigabytes.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise _Refused(f"declares {argument:,} objects, but has only {count:,}")
        if opcode.name.startswith("EXT"):
            raise _Refused(f"refers to the registered extension {argument}, which weight files never need")


class _Reader(pickle.Unpickler):
    """An unpickler that resolves only allowed names."""

    def __init__(self, content: Stream, storage: Storages):
        super().__init__(content, encoding="utf-8")
        self.storage = storage
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global name of the pickle without importing anything."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) in _OPAQUE_NAMES or _OPAQUE_MODULES.fullmatch(module):
            # A new class per name, so that `origin` tells what the file meant.
            return type(name, (OpaqueObject,), {"origin": f"{module}.{name}"})
        raise _Refused(f"refers to {module}.{name}, which weight files never need; nothing was executed")

    def persistent_load(self, pid: Any) -> Any:
        """Resolve torch's reference to a storage."""
        if pid[0] == "module":  # torch's old format: a class with its source code
            return pid[1]
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or (view and view[0] is not None):
            raise _Refused(f"has a persistent id of an unknown kind: {pid!r:.60}")
        if key not in self.storages:
            self.storages[key] = self.storage(str(key), dtype, int(count))
        return self.storages[key]


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2 with bounds checks, without which a view could read foreign memory."""
    if not isinstance(storage, Tensor) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise _Refused(f"declares a tensor of size {size!r:.60} and stride {stride!r:.60}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise _Refused(f"declares a tensor of size {list(size)} over a storage of {len(storage):,} numbers")
    return storage.as_strided(tuple(size), tuple(stride), storage.storage_offset() + offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _latin_1(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode, which Python 2 pickles use for bytes."""
    return text.encode("latin-1")


# (module, name) -> what the unpickler may call for it. None of these has side effects.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): str,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _latin_1,
}
