"""Reads what torch.save and pickle have written, and runs nothing of it: tensors, plain data, inert stand-ins.

A pickle is a program that may call anything importable. Here it may call what is in two short tables: what rebuilds
tensors and plain containers (our own, checked versions of it), and classes of known training libraries, in whose place
stands `OpaqueObject`, which only remembers what it was given. Anything else is refused by name before it is looked up.

Three formats: zip archives (torch 1.6 and later, TorchScript), the sequence of pickles and raw storages that torch
wrote before, and bare pickles. Tensors are views of the file (memory-mapped, copied when written to), so reading costs
no memory until they are used.
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

from dalle.checkpoints.tensors import mmap_bytes

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch's old format
_LARGEST = 2**28  # bytes of a pickle without its tensors; those of published checkpoints are far below
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
# Classes and functions of these are met in published files beside the weights: layers, trainers, options.
_FOREIGN = re.compile(
    r"(dall_e|taming|dalle_pytorch|pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf|deepspeed|"
    r"torch\.nn|torch\.optim|torch\.jit|__torch__|numpy)(\..*)?"
)
_FOREIGN_NAMES = {
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
"""Key, type and number of elements of a storage -> its elements, one-dimensional."""


class OpaqueObject:
    """Stands for an object of a class that is not loaded; remembers what the file gave it.

    Attributes:
        origin: the class's (or function's) module and name, "dall_e.encoder.Encoder".
        args: what it was called with.
        state: its attributes, as the file has them.
        items: what was appended or set by key.
    """

    origin = ""
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> OpaqueObject:
        made = super().__new__(cls)
        made.args, made.items = args, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: list[Any]) -> None:
        self.items.extend(values)

    def __repr__(self) -> str:
        return f"<{self.origin}>"


def read_pickled(file: Path) -> Any:
    """The object that a file holds.

    Args:
        file: written by torch.save, torch.jit.save or pickle.dump.

    Returns:
        Dicts, lists, tuples, sets, numbers, texts and tensors (on the CPU), as they are in the file; `OpaqueObject` for
        the rest. Parameters are plain tensors.

    Raises:
        ValueError: the file asks for something that is not in the tables (it is named, and was not run), is truncated
            or damaged, or is none of the three formats.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if not file.stat().st_size:
        raise ValueError(f"{file} is empty: fetch it again")
    with file.open("rb") as start:
        head = start.read(512)
    try:
        if head.startswith(b"PK\x03\x04"):
            return _read_zip(file)
        with file.open("rb") as handle, closing(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            return _read_sequence(file, cast("Stream", content))
    except _Refused as error:
        raise ValueError(f"{file} {error}") from None
    except _DAMAGES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} is no file of torch.save, or a damaged one ({reason}): fetch it again") from error


class _Refused(Exception):
    """What the file asks for is not done."""


# All that a damaged pickle or archive can make of the standard library and of torch.
_DAMAGES = (
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
        most = min(_LARGEST, file.stat().st_size)
        for name in [name for name in (main, folder + "byteorder") if name in members]:
            if members[name].compress_type != zipfile.ZIP_STORED or members[name].file_size > most:
                size = members[name].file_size
                raise _Refused(f"declares {size:,} bytes of {name}, which is not what torch.save writes")
        if folder + "byteorder" in members and archive.read(folder + "byteorder").strip() != b"little":
            raise _Refused("holds big-endian numbers, which are not read")
        content = archive.read(main)
    whole = mmap_bytes(file)

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = members[f"{folder}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
            raise _Refused(f"declares {info.file_size:,} bytes for {count:,} numbers of {dtype}")
        header = whole[info.header_offset : info.header_offset + 30]  # its last two numbers: lengths of name and extra
        name, extra = (int(header[at]) + 256 * int(header[at + 1]) for at in (26, 28))
        return _numbers(whole, info.header_offset + 30 + name + extra, dtype, count)

    return _load(io.BytesIO(content), storage)


def _read_sequence(file: Path, content: Stream) -> Any:
    """A bare pickle, or magic number, version, system, object, keys of storages, storages."""
    first = _load(content, _no_storage)
    if first != _MAGIC:
        return first
    _load(content, _no_storage)  # version of the format
    system = _load(content, _no_storage)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise _Refused("holds big-endian numbers, which are not read")
    start = content.tell()
    dtypes: dict[str, torch.dtype] = {}

    def without_numbers(key: str, dtype: torch.dtype, count: int) -> Tensor:
        dtypes[key] = dtype
        return torch.empty(count, dtype=dtype, device="meta")

    _load(content, without_numbers)  # how large a storage is stands before its numbers: of what type, only here
    keys = _load(content, _no_storage)
    whole, places = mmap_bytes(file), {}
    at = content.tell()
    for key in keys:
        content.seek(at)
        count = int.from_bytes(content.read(8), "little")
        places[key] = at + 8
        at += 8 + count * dtypes[key].itemsize

    content.seek(start)
    return _load(content, lambda key, dtype, count: _numbers(whole, places[key], dtype, count))


def _numbers(whole: Tensor, start: int, dtype: torch.dtype, count: int) -> Tensor:
    if count < 0 or start + count * dtype.itemsize > len(whole):
        raise EOFError("it ends within a tensor")
    part = whole[start : start + count * dtype.itemsize]
    return (part if start % dtype.itemsize == 0 else part.clone()).view(dtype)


def _no_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
    raise _Refused("has a tensor where there are no storages")


def _load(content: Stream, storage: Storages) -> Any:
    """The next pickle of a stream, which is left behind its end."""
    start = content.tell()
    _check(content, start)
    content.seek(start)
    return _Reader(content, storage).load()


def _check(content: Stream, start: int) -> None:
    """Walk through the instructions of a pickle without obeying them, for what would exhaust memory."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content), 1):
        if position is not None and position - start > _LARGEST:
            raise _Refused(f"holds a pickle of more than {_LARGEST:,} bytes, which is not what torch.save writes")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise _Refused(f"asks for room for {argument:,} objects, of which it has {count:,}")
        if opcode.name.startswith("EXT"):
            raise _Refused(f"asks for the registered extension {argument}, which no file of weights needs")


class _Reader(pickle.Unpickler):
    """An unpickler that finds only what is in the tables."""

    def __init__(self, content: Stream, storage: Storages):
        super().__init__(content, encoding="utf-8")
        self.storage = storage
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) in _FOREIGN_NAMES or _FOREIGN.fullmatch(module):
            return type(name, (OpaqueObject,), {"origin": f"{module}.{name}"})
        raise _Refused(f"asks for {module}.{name}, which no file of weights needs: nothing of it was run")

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class with its source, in torch's old format
            return pid[1]
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or (view and view[0] is not None):
            raise _Refused(f"refers to something outside of it of an unknown kind: {pid!r:.60}")
        if key not in self.storages:
            self.storages[key] = self.storage(str(key), dtype, int(count))
        return self.storages[key]


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2 that looks at the bounds first."""
    if not isinstance(storage, Tensor) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise _Refused(f"declares a tensor of size {size!r:.60} and stride {stride!r:.60}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise _Refused(f"declares a tensor of size {list(size)} over a storage of {len(storage):,} numbers")
    return storage.as_strided(tuple(size), tuple(stride), storage.storage_offset() + offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _latin_1(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode, as pickles of Python 2 write bytes."""
    return text.encode("latin-1")


_KNOWN: dict[tuple[str, str], Any] = {
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
