"""Reads and writes safetensors files one tensor at a time: reading maps the file, writing needs no second copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dalle.checkpoints.lazy_tensor import LazyTensor, NotFiniteError, Tensors, is_finite
from dalle.checkpoints.mapped_files import drop_pages, mmap_bytes
from dalle.checkpoints.quantization import SCALE, Storage, dequantized, storage_entries

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


def open_tensors(file: Path) -> dict[str, Tensor | LazyTensor]:
    """The memory-mapped tensors of a safetensors file; int8 ones are dequantized to float32 lazily.

    Raises:
        ValueError: the file does not exist, is damaged, or has another format.
    """
    stored = stored_tensors(file)
    return {name: dequantized(name, stored) for name in stored if not name.endswith(SCALE)}


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
        start, end = (8 + length + offset for offset in entry["data_offsets"])  # behind the length and the header
        dtype, part = types[entry["dtype"]], whole[start:end]
        # A view needs aligned data; files of other writers may not have it.
        aligned = part if start % dtype.itemsize == 0 else part.clone()
        found[name] = aligned.view(dtype).view(entry["shape"])
    return found


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file into memory, int8 ones as float32.

    Raises:
        ValueError: the file does not exist, is damaged, or has another format.
    """
    return {name: t() if isinstance(t, LazyTensor) else t.clone() for name, t in open_tensors(file).items()}


def write_tensors(
    tensors: Tensors,
    file: Path,
    storage: Storage | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    finite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    The safetensors library would need all of them in memory at once.

    Args:
        tensors: the tensors by name.
        file: the file to write, which is incomplete if an error is raised.
        storage: dtype in which floating-point tensors are stored; None keeps theirs.
        metadata: strings for the file's header.
        finite: whether to reject nan and infinity.
        progress: called after each tensor with the bytes that are written and those of all tensors.

    Raises:
        NotFiniteError: a value is nan or infinite, or becomes infinite in the storage dtype.
    """
    entries: list[tuple[str, LazyTensor]] = []
    for name, tensor in tensors.items():
        entries += storage_entries(name, tensor, storage)
    entries.sort(
        key=lambda entry: (-entry[1].dtype.itemsize, entry[0])
    )  # the library's order, largest dtypes first, which aligns every tensor
    header: dict[str, Mapping[str, object]] = {} if metadata is None else {"__metadata__": metadata}
    at = written = 0
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
                    f"{name.removesuffix(SCALE)} is nan or infinite: the training has diverged"
                    + (
                        ", or it is too large for float16 (use bfloat16, which has a larger range)"
                        if value.dtype == torch.float16
                        else ""
                    )
                )
            handle.write(value.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            written += value.nbytes
            drop_pages(value)
            if progress is not None:
                progress(written, at)
    file.chmod(file.parent.stat().st_mode & 0o666)  # readable by whoever can read the folder
