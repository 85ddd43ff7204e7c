"""Tensors from files into modules and back, one at a time, so that a model takes no more memory than it has weights.

A file is safetensors. "int8" storage keeps each row of a matrix or kernel as 8-bit integers and one float32 scale, its
largest magnitude / 127 (symmetric, per output channel; an error of at most 1/254 of that magnitude).
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
_SCALE = ".int8_scale"  # suffix of the scales of a tensor that is stored in 8 bits
_EXACT = ("rope_cos", "rope_sin")  # tables of angles stay in float32, whatever the weights are stored in
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
    """A tensor that is made when it is called for, so that it takes no memory before.

    Attributes:
        shape: its shape.
        dtype: its type.
        make: makes it.
    """

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        return self.make()


Tensors = Mapping[str, "Tensor | LazyTensor"]


# ---- files


def open_tensors(file: Path) -> dict[str, Tensor | LazyTensor]:
    """The tensors of a safetensors file, mapped from it; those stored in 8 bits as float32, made when called for.

    Raises:
        ValueError: no such file, or it is damaged or something else.
    """
    stored = stored_tensors(file)
    return {name: _whole(name, stored) for name in stored if not name.endswith(_SCALE)}


def stored_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as they are stored, mapped from it: no memory until they are looked at.

    Raises:
        ValueError: no such file, or it is damaged or something else.
    """
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt"):  # looks at the header and at the length of the file
            pass
        with Path(file).open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file} is no safetensors file, or a truncated one ({error}): fetch it again") from error
    header.pop("__metadata__", None)
    types = {name: dtype for dtype, name in _NAMES.items()}
    whole = mmap_bytes(Path(file)) if header else torch.empty(0, dtype=torch.uint8)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in types:
            raise ValueError(f"{file}: {name} is of type {entry['dtype']}, which is not read")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype, part = types[entry["dtype"]], whole[start:end]
        aligned = part if start % dtype.itemsize == 0 else part.clone()
        found[name] = aligned.view(dtype).view(entry["shape"])
    return found


def _whole(name: str, stored: Mapping[str, Tensor]) -> Tensor | LazyTensor:
    """A stored tensor, or what 8 bits and scales make."""
    packed, scale = stored[name], stored.get(name + _SCALE)
    if scale is None:
        return packed
    return LazyTensor(packed.shape, torch.float32, lambda: _scaled(packed, scale))


def _scaled(packed: Tensor, scale: Tensor) -> Tensor:
    made = packed.float().mul_(scale.view(-1, *[1] * (packed.ndim - 1)))
    drop_pages(packed)
    return made


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file in memory, those stored in 8 bits as float32.

    Raises:
        ValueError: no such file, or it is damaged or something else.
    """
    return {name: t() if isinstance(t, LazyTensor) else t.clone() for name, t in open_tensors(file).items()}


class NotFiniteError(ValueError):
    """Weights are nan or infinite."""


def write_tensors(
    tensors: Tensors,
    file: Path,
    storage: Storage | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    finite: bool = False,
) -> None:
    """Write a safetensors file.

    Args:
        tensors: what goes into it.
        file: where to.
        storage: how floating tensors are stored; None as they are.
        metadata: words about it.
        finite: refuse numbers that are none.

    Raises:
        NotFiniteError: one is nan or infinite, perhaps as it is stored; the file is then not whole.
    """
    entries: list[tuple[str, LazyTensor]] = []
    for name, tensor in tensors.items():
        entries += _packed(name, tensor, storage)
    entries.sort(key=lambda entry: (-entry[1].dtype.itemsize, entry[0]))  # aligned, as the library orders them
    header: dict[str, Mapping[str, object]] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, tensor in entries:
        size = tensor.shape.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    with file.open("wb") as handle:
        handle.write(len(described).to_bytes(8, "little") + described)
        for name, tensor in entries:
            value = tensor()
            if finite and not is_finite(value):
                raise NotFiniteError(
                    f"{name.removesuffix(_SCALE)} is nan or infinite: the training has diverged"
                    + (", or it is too large for float16 (bfloat16 has room)" if value.dtype == torch.float16 else "")
                )
            handle.write(value.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            drop_pages(value)
    file.chmod(file.parent.stat().st_mode & 0o666)  # files that whoever may read the folder may read


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor is nan or infinite, by its least and its largest."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(end.isfinite()) for end in tensor.aminmax())


def pack(tensors: Tensors, storage: Storage | None) -> dict[str, Tensor]:
    """Tensors as they are stored: on the CPU, floating ones in another type; "int8" leaves vectors in float32."""
    return {name: lazy() for key, tensor in tensors.items() for name, lazy in _packed(key, tensor, storage)}


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `pack` stored: 8-bit tensors times their scales, the rest as it is."""
    whole = {name: _whole(name, tensors) for name in tensors if not name.endswith(_SCALE)}
    return {name: value() if isinstance(value, LazyTensor) else value for name, value in whole.items()}


def _packed(name: str, tensor: Tensor | LazyTensor, storage: Storage | None) -> list[tuple[str, LazyTensor]]:
    """The entries of a file that keep one tensor."""
    source = _lazy(tensor)
    exact = name.rpartition(".")[2] in _EXACT
    if storage == "int8" and source.dtype.is_floating_point and len(source.shape) >= 2 and not exact:
        return [
            (name, _made_of(source, torch.int8, _eight_bits, source.shape)),
            (name + _SCALE, _made_of(source, torch.float32, _scales, source.shape[:1])),
        ]
    dtype = source.dtype
    if storage is not None and dtype.is_floating_point:
        dtype = torch.float32 if storage == "int8" or exact else getattr(torch, storage)
    return [(name, _made_of(source, dtype, lambda value: value.to(dtype), source.shape))]


def _made_of(source: LazyTensor, dtype: torch.dtype, form: Callable[[Tensor], Tensor], shape: torch.Size) -> LazyTensor:
    """What `form` makes of a tensor on the CPU, whose memory is given back where it is mapped."""

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


def _eight_bits(value: Tensor) -> Tensor:
    rows = value.float().flatten(1)
    return (rows / _scales(value)[:, None]).round().to(torch.int8).view(value.shape)


# ---- modules


@contextmanager
def skip_init() -> Iterator[None]:
    """Skips parameter initialization of modules built in this block; `load_weights` overwrites the values.

    It costs no time, and no memory is touched.

    (On the meta device torch imports 100 MB of Python to draw numbers that are none.)
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
    """The functions of `torch.nn.init` that give a tensor numbers, by name."""
    return {name: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and name[0] != "_"}


def load_weights(
    module: _Module, tensors: Tensors, source: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> _Module:
    """Give a module a state, strictly, and put it on a device in evaluation mode.

    Args:
        module: its parameters may be `skip_init`, or on the meta device within `training.distributed.sharded_init`.
        tensors: its state; copied, so that the file it comes from may change afterwards.
        source: where it comes from, for messages.
        device: where it goes.
        dtype: floating type of its weights; None: as the module was made (float32).

    Raises:
        NotFiniteError: a number is nan or infinite.
        ValueError: keys are missing, left over, or of another shape.
    """
    check_fit(module, tensors, source)
    in_shares = any(parameter.is_meta for parameter in module.parameters())
    for name, own in module.state_dict(keep_vars=True).items():
        place, _, leaf = name.rpartition(".")
        value = tensors[name]
        value = value() if isinstance(value, LazyTensor) else value
        if not is_finite(value):
            raise NotFiniteError(
                f"{source}: {name} is nan or infinite, so nothing can be computed with it: the run that wrote it has "
                "diverged (take an earlier checkpoint), or the file is damaged"
            )
        kept = dtype is None or not own.is_floating_point() or leaf in _EXACT
        kind = own.dtype if dtype is None or kept else dtype
        made = own.detach()
        if in_shares and isinstance(own, nn.Parameter):  # registering it copies what is kept of it
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
        drop_pages(value)
    return module.eval() if in_shares else module.to(device=device, dtype=dtype).eval()


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state strictly into a module that has weights; values are cast to the module's types.

    Args:
        module: gets the state.
        tensors: its state.
        source: where it comes from, for messages.

    Raises:
        ValueError: keys are missing, left over, or of another shape.
    """
    check_fit(module, tensors, source)
    module.load_state_dict(dict(tensors))


def check_fit(
    module: nn.Module,
    tensors: Tensors,
    source: str,
    called: Callable[[str], str] = str,
    causes: tuple[str, str] = ("", ""),
) -> None:
    """Refuse a state that does not fit; the module may be on the meta device.

    Args:
        module: what the state is for.
        tensors: the state.
        source: where it comes from, for the message.
        called: what to call a tensor in the message.
        causes: likely ones, of other names and of other shapes.

    Raises:
        ValueError: keys are missing, left over, or of another shape.
    """
    own = module.state_dict()
    wrong = [
        f"{called(name)} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    missing = [f"{called(name)} {list(own[name].shape)}" for name in own if name not in tensors]
    unexpected = [called(name) for name in tensors if name not in own]
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
    """The bytes of a file, uint8, without reading them; a page is copied once it is written to."""
    size = file.stat().st_size
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
    storage.mapped = True  # type: ignore[union-attr]
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]


def drop_pages(tensor: Tensor) -> None:
    """Give back the memory of a view of a mapped file, which is read again if need be; else do nothing."""
    if sys.platform != "linux" or not getattr(tensor.untyped_storage(), "mapped", False) or not tensor.numel():
        return
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start, end = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize  # also of what is transposed
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        advise = CDLL(None).madvise
        advise.argtypes = [c_void_p, c_size_t, c_int]
        advise(start, end - start, mmap.MADV_DONTNEED)
