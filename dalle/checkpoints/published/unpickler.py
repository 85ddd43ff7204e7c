"""An unpickler that executes nothing from a file: what names may mean, and what a pickle may declare.

A pickle is a program that may call any importable function. This unpickler allows two short lists: our own checked
functions that rebuild tensors and plain containers, and names from known training libraries, which are replaced by
`OpaqueObject`, which only records its arguments. Anything else is rejected by name before it is imported.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 2**28  # without tensors; published checkpoints have far less
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


class RefusedError(Exception):
    """The file asks for something that is not allowed."""


def load(content: Stream, storage: Storages) -> Any:
    """Read the next pickle of a stream, leaving the stream behind its end."""
    # Scanned first, as the C unpickler would allocate before it could be stopped
    start = content.tell()
    _check(content, start)
    content.seek(start)
    return _Reader(content, storage).load()


def _check(content: Stream, start: int) -> None:
    """Scan the opcodes of a pickle without executing them, for those that would exhaust memory."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content), 1):
        if position is not None and position - start > MAX_PICKLE_BYTES:
            raise RefusedError(
                f"holds a pickle of more than {MAX_PICKLE_BYTES:,} bytes, which is not what torch.save writes"
            )
        # The C unpickler allocates its memo by the largest index: a few bytes could request gigabytes.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise RefusedError(f"declares {argument:,} objects, but has only {count:,}")
        if opcode.name.startswith("EXT"):
            raise RefusedError(f"refers to the registered extension {argument}, which weight files never need")


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
        # Nothing of torch but its dtypes
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) in _OPAQUE_NAMES or _OPAQUE_MODULES.fullmatch(module):
            # A new class per name, so that `origin` tells what the file meant.
            return type(name, (OpaqueObject,), {"origin": f"{module}.{name}"})
        raise RefusedError(f"refers to {module}.{name}, which weight files never need; nothing was executed")

    def persistent_load(self, pid: Any) -> Any:
        """Resolve torch's reference to a storage."""
        if pid[0] == "module":  # torch's old format: a class with its source code
            return pid[1]
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or (view and view[0] is not None):
            raise RefusedError(f"has a persistent id of an unknown kind: {pid!r:.60}")
        if key not in self.storages:
            self.storages[key] = self.storage(str(key), dtype, int(count))
        return self.storages[key]


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2 with bounds checks, without which a view could read foreign memory."""
    if not isinstance(storage, Tensor) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise RefusedError(f"declares a tensor of size {size!r:.60} and stride {stride!r:.60}")
    # The last element that a view can reach
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise RefusedError(f"declares a tensor of size {list(size)} over a storage of {len(storage):,} numbers")
    # Storages are views of the file
    return storage.as_strided(tuple(size), tuple(stride), storage.storage_offset() + offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _latin_1(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode, which Python 2 pickles use for bytes."""
    return text.encode("latin-1")


def _device(*parts: Any) -> str:
    """torch.device of a type and perhaps an index, as text: no weight goes there."""
    return ":".join(map(str, parts))


# (module, name) -> what the unpickler may call for it. None of these has side effects.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _device,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _latin_1,
}
