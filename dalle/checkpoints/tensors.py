"""Reads and writes safetensors files and loads them into modules tensor by tensor, without a second copy in memory.

"int8" storage is symmetric quantization per output channel: each row of a matrix or kernel is stored as 8-bit integers
with one float32 scale, its largest magnitude / 127 (an error of at most 1/254 of that magnitude).
"""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ctypes import CDLL, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

Storage = Literal["float32", "bfloat16", "float16", "int8"]
STORAGE: tuple[str, ...] = get_args(Storage)
_SCALE = ".int8_scale"  # suffix of the name of an int8 tensor's scales
_EXACT = ("rope_cos", "rope_sin")  # rotary tables stay in float32: rounded angles shift all positions
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is computed when called, so that it takes no memory before.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        make: computes it.
    """

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        """Compute the tensor."""
        return self.make()


Tensors = Mapping[str, "Tensor | LazyTensor"]


# ---- files


def open_tensors(file: Path) -> dict[str, Tensor | LazyTensor]:
    """The memory-mapped tensors of a safetensors file; int8 ones are dequantized to float32 lazily.

    Raises:
        ValueError: the file does not exist, is damaged, or has another format.
    """
    stored = stored_tensors(file)
    return {name: _dequantized(name, stored) for name in stored if not name.endswith(_SCALE)}


def stored_tensors(file: Path) -> dict[str, Tensor]:
    """The memory-mapped tensors of a safetensors file exactly as stored.

    Raises:
        ValueError: the file does not exist, is damaged, or has another format.
    """
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt"):  # validates the header and the file's length
            pass
        with Path(file).open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file} is not a safetensors file, or is truncated ({error}): download it again") from error
    header.pop("__metadata__", None)
    types = {name: dtype for dtype, name in _NAMES.items()}
    whole = mmap_bytes(Path(file)) if header else torch.empty(0, dtype=torch.uint8)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in types:
            raise ValueError(
                f"{file}: {name} has the unsupported dtype {entry['dtype']}: convert it to float32 or bfloat16"
            )
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype, part = types[entry["dtype"]], whole[start:end]
        # A view needs aligned data; files of other writers may not have it.
        aligned = part if start % dtype.itemsize == 0 else part.clone()
        found[name] = aligned.view(dtype).view(entry["shape"])
    return found


def _dequantized(name: str, stored: Mapping[str, Tensor]) -> Tensor | LazyTensor:
    """A stored tensor; an int8 one with scales as a lazy float32 tensor."""
    packed, scale = stored[name], stored.get(name + _SCALE)
    if scale is None:
        return packed
    return LazyTensor(packed.shape, torch.float32, lambda: _dequantize(packed, scale))


def _dequantize(packed: Tensor, scale: Tensor) -> Tensor:
    made = packed.float().mul_(scale.view(-1, *[1] * (packed.ndim - 1)))
    drop_pages(packed)
    return made


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file into memory, int8 ones as float32.

    Raises:
        ValueError: the file does not exist, is damaged, or has another format.
    """
    return {name: t() if isinstance(t, LazyTensor) else t.clone() for name, t in open_tensors(file).items()}


class NotFiniteError(ValueError):
    """Weights contain nan or infinity."""


def write_tensors(
    tensors: Tensors,
    file: Path,
    storage: Storage | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    finite: bool = False,
) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    The safetensors library would need all of them in memory at once.

    Args:
        tensors: the tensors by name.
        file: the file to write, which is incomplete if an error is raised.
        storage: dtype in which floating-point tensors are stored; None keeps theirs.
        metadata: strings for the file's header.
        finite: whether to reject nan and infinity.

    Raises:
        NotFiniteError: a value is nan or infinite, or becomes infinite in the storage dtype.
    """
    entries: list[tuple[str, LazyTensor]] = []
    for name, tensor in tensors.items():
        entries += _storage_entries(name, tensor, storage)
    entries.sort(
        key=lambda entry: (-entry[1].dtype.itemsize, entry[0])
    )  # the library's order, largest dtypes first, which aligns every tensor
    header: dict[str, Mapping[str, object]] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, tensor in entries:
        size = tensor.shape.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    encoded_header = json.dumps(header, separators=(",", ":")).encode()
    # Spaces pad the header to a multiple of 8 bytes, so that the data begins aligned.
    encoded_header += b" " * (-len(encoded_header) % 8)
    with file.open("wb") as handle:
        handle.write(len(encoded_header).to_bytes(8, "little") + encoded_header)
        for name, tensor in entries:
            value = tensor()
            if finite and not is_finite(value):
                raise NotFiniteError(
                    f"{name.removesuffix(_SCALE)} is nan or infinite: the training has diverged"
                    + (
                        ", or it is too large for float16 (use bfloat16, which has a larger range)"
                        if value.dtype == torch.float16
                        else ""
                    )
                )
            handle.write(value.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            drop_pages(value)
    file.chmod(file.parent.stat().st_mode & 0o666)  # readable by whoever can read the folder


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor contains neither nan nor infinity.

    `aminmax` propagates nan and needs no temporary tensor, unlike `isfinite().all()`.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(end.isfinite()) for end in tensor.aminmax())


def pack(tensors: Tensors, storage: Storage | None) -> dict[str, Tensor]:
    """Tensors on the CPU in their storage dtype; with "int8", vectors stay in float32."""
    return {name: lazy() for key, tensor in tensors.items() for name, lazy in _storage_entries(key, tensor, storage)}


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack`: int8 tensors are dequantized, others returned as they are."""
    whole = {name: _dequantized(name, tensors) for name in tensors if not name.endswith(_SCALE)}
    return {name: value() if isinstance(value, LazyTensor) else value for name, value in whole.items()}


def _storage_entries(name: str, tensor: Tensor | LazyTensor, storage: Storage | None) -> list[tuple[str, LazyTensor]]:
    """The file entries that store one tensor: itself, or its int8 values and scales."""
    source = _lazy(tensor)
    exact = name.rpartition(".")[2] in _EXACT
    if storage == "int8" and source.dtype.is_floating_point and len(source.shape) >= 2 and not exact:
        return [
            (name, _converted(source, torch.int8, _to_int8, source.shape)),
            (name + _SCALE, _converted(source, torch.float32, _scales, source.shape[:1])),
        ]
    dtype = source.dtype
    if storage is not None and dtype.is_floating_point:
        dtype = torch.float32 if storage == "int8" or exact else getattr(torch, storage)
    return [(name, _converted(source, dtype, lambda value: value.to(dtype), source.shape))]


def _converted(
    source: LazyTensor, dtype: torch.dtype, form: Callable[[Tensor], Tensor], shape: torch.Size
) -> LazyTensor:
    """A lazy tensor: `form` applied to `source` on the CPU, after which mapped pages of the source are released."""

    def make() -> Tensor:
        value = source()
        made = form(value.detach().cpu().contiguous())
        if made.data_ptr() != value.data_ptr():
            drop_pages(value)
        return made

    return LazyTensor(shape, dtype, make)


def _lazy(tensor: Tensor | LazyTensor) -> LazyTensor:
    return tensor if isinstance(tensor, LazyTensor) else LazyTensor(tensor.shape, tensor.dtype, lambda: tensor)


def _scales(value: Tensor) -> Tensor:
    return value.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127


def _to_int8(value: Tensor) -> Tensor:
    rows = value.float().flatten(1)
    return (rows / _scales(value)[:, None]).round().to(torch.int8).view(value.shape)


# ---- modules


@contextmanager
def skip_init() -> Iterator[None]:
    """Skips parameter initialization of modules built in this block; `load_weights` overwrites the values.

    Memory is allocated but not touched. (Building on the meta device instead makes torch import 100 MB of Python to
    "initialize" meta tensors.)
    """
    functions = init_functions()
    try:
        for name in functions:
            setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        yield
    finally:
        for name, function in functions.items():
            setattr(nn.init, name, function)


def init_functions() -> dict[str, Callable[..., Any]]:
    """The functions of `torch.nn.init` that fill a tensor in place, by name."""
    return {name: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and name[0] != "_"}


def load_weights(
    module: _Module, tensors: Tensors, source: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> _Module:
    """Load a state dict strictly into a module, and put it on a device in evaluation mode.

    Args:
        module: built under `skip_init`, or on the meta device within `training.distributed.sharded_init`.
        tensors: its state dict; values are copied, so that their file may change afterwards.
        source: name of the source in error messages.
        device: where to put the module.
        dtype: floating-point dtype of its weights; None keeps the module's (float32).

    Raises:
        NotFiniteError: a weight is nan or infinite.
        ValueError: keys are missing or unexpected, or shapes differ.
    """
    check_fit(module, tensors, source)
    sharded = any(parameter.is_meta for parameter in module.parameters())
    for name, own in module.state_dict(keep_vars=True).items():
        place, _, leaf = name.rpartition(".")
        value = tensors[name]
        value = value() if isinstance(value, LazyTensor) else value
        if not is_finite(value):
            raise NotFiniteError(
                f"{source}: {name} is nan or infinite: its run has diverged (use an earlier checkpoint), or "
                "the file is damaged (download it again)"
            )
        kept = dtype is None or not own.is_floating_point() or leaf in _EXACT
        kind = own.dtype if dtype is None or kept else dtype
        made = own.detach()
        if sharded and isinstance(
            own, nn.Parameter
        ):  # `register_parameter` is patched there and keeps this rank's shard
            made = value.to(kind)
        else:
            if (made.dtype, made.device) != (kind, torch.device(device)):
                made = torch.empty(own.shape, dtype=kind, device=device)
            made.copy_(value)
        owner = module.get_submodule(place)
        if isinstance(own, nn.Parameter):
            owner.register_parameter(leaf, nn.Parameter(made, own.requires_grad))
        else:
            owner._buffers[leaf] = made
        drop_pages(value)  # at most one tensor of the file stays resident
    return module.eval() if sharded else module.to(device=device, dtype=dtype).eval()


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict strictly into an initialized module; values are cast to the module's dtypes.

    Args:
        module: the module to load into.
        tensors: the state dict.
        source: name of the source in error messages.

    Raises:
        ValueError: keys are missing or unexpected, or shapes differ.
    """
    check_fit(module, tensors, source)
    module.load_state_dict(dict(tensors))


def check_fit(
    module: nn.Module,
    tensors: Tensors,
    source: str,
    display_name: Callable[[str], str] = str,
    causes: tuple[str, str] = ("", ""),
) -> None:
    """Check that a state dict matches a module, which may be on the meta device.

    Args:
        module: the module.
        tensors: the state dict.
        source: name of the source in error messages.
        display_name: maps a tensor's name to the one to show.
        causes: likely causes to add to the message, of different keys and of different shapes.

    Raises:
        ValueError: keys are missing or unexpected, or shapes differ.
    """
    own = module.state_dict()
    wrong = [
        f"{display_name(name)} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    missing = [f"{display_name(name)} {list(own[name].shape)}" for name in own if name not in tensors]
    unexpected = [display_name(name) for name in tensors if name not in own]
    problems = [
        f"{title}: {_some(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        cause = causes[0] if missing or unexpected else causes[1]
        raise ValueError(
            f"{source} does not fit this architecture; {'; '.join([*problems, cause] if cause else problems)}"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# ---- memory-mapped files


def mmap_bytes(file: Path) -> Tensor:
    """Memory-map a file as uint8, copy-on-write."""
    size = file.stat().st_size
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
    storage.mapped = True  # type: ignore[union-attr]
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]


def drop_pages(tensor: Tensor) -> None:
    """Release the resident pages of a view of a mapped file (they are read again on access); else do nothing."""
    if sys.platform != "linux" or not getattr(tensor.untyped_storage(), "mapped", False) or not tensor.numel():
        return
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    # The extent in memory by strides, which is right for transposed views too; then only whole pages inside it.
    start, end = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        advise = CDLL(None).madvise
        advise.argtypes = [c_void_p, c_size_t, c_int]
        advise(start, end - start, mmap.MADV_DONTNEED)
