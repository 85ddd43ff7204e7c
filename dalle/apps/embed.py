"""Images to CLIP's unit vectors, in batches. Knows nothing of what the vectors are for.

Shapes: B images of a batch, S side of CLIP's images, D dimensions of the vectors.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dalle.config import to_dict
from dalle.data.base import BadRecord, read_image
from dalle.data.custom.records import Records, image_bytes
from dalle.images.read import dimensions
from dalle.models.clip import CLIP
from dalle.models.clip_config import CLIPConfig
from dalle.models.transformer_config import TransformerConfig


@dataclass(frozen=True)
class ImageInfo:
    """Facts about an image file that has been read."""

    width: int  # pixels
    height: int
    sha256: str  # of the file's bytes


@dataclass(frozen=True)
class EmbeddingBatch:
    """Some records' vectors.

    Attributes:
        numbers: of the B records that could be read.
        vectors: float32 [B, D] on the CPU; of unit length unless another `encode` made them.
        facts: B of them.
        broken: number of a record that could not be read -> why.
    """

    numbers: list[int]
    vectors: Tensor
    facts: list[ImageInfo]
    broken: dict[int, BadRecord]


@torch.inference_mode()
def embed_images(
    clip: CLIP,
    records: Records,
    batch_size: int = 64,
    workers: int = 0,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[EmbeddingBatch]:
    """The vectors of all records, batch after batch, in their order.

    An image is read as in training: the largest square in its middle, at CLIP's size (`dalle.images.read`).

    Args:
        clip: Loaded by `dalle.load_clip`.
        records: What to read.
        batch_size: Images at a time; the vectors do not depend on it.
        workers: Processes that read images; 0 reads them in this one.
        encode: Makes the vectors of images float [B, 3, S, S]; None: `clip.encode_image`.

    Raises:
        ValueError: batch_size or workers is out of range.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch_size is {batch_size} and workers {workers}: at least 1 and 0")
    loader = DataLoader(
        _Decoded(records, clip.config.image_size),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # or it would draw from the global one
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_leave_interrupts_to_the_parent if workers else None,
    )
    device = clip.logit_scale.device
    number = 0
    for batch in loader:
        whole = {number + at: one for at, one in enumerate(batch)}
        number += len(batch)
        good = {key: one for key, one in whole.items() if not isinstance(one, BadRecord)}
        broken = {key: one for key, one in whole.items() if isinstance(one, BadRecord)}
        vectors = torch.empty(0, clip.config.embed_dim)
        if good:
            pixels = torch.from_numpy(np.stack([pixels for pixels, _ in good.values()]))  # uint8 [B, S, S, 3]
            images = pixels.to(device).permute(0, 3, 1, 2).float().div_(255)
            vectors = (encode or clip.encode_image)(images).float().cpu()
        yield EmbeddingBatch(list(good), vectors, [facts for _, facts in good.values()], broken)


# of the configs in version 0.1, whose indexes are still read
_FIRST_FIELDS = {
    "image_size", "patch_size", "vision", "text", "text_vocab", "text_length", "eos_id", "embed_dim", "mean", "std",
    "width", "depth", "heads", "head_channels", "mlp_ratio", "hidden", "feed_forward", "norm", "sandwich",
    "layer_scale", "biases", "qk_norm", "dropout", "checkpoint_activations", "rotate_values",
    "reversible", "divide_by_max",
}  # fmt: skip
_OF_TRAINING = {"attention_dropout", "initial_scale", "initial_bias"}  # no embedding depends on them


def fingerprint(clip: CLIP) -> str:
    """sha256 of what a CLIP computes with: its architecture and weights as they are in memory."""
    config = _hashed_fields(clip.config) | {
        tower: _hashed_fields(getattr(clip.config, tower)) for tower in ("vision", "text")
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hashed_fields(config: CLIPConfig | TransformerConfig) -> dict[str, Any]:
    """The fields of a config; those added later only where they are set, so that older hashes stay as they are."""
    added = {one.name: one.default for one in fields(config) if one.name not in _FIRST_FIELDS}
    return {
        name: value
        for name, value in to_dict(config).items()
        if name not in _OF_TRAINING and not (name in added and value == added[name])
    }


class _Decoded(Dataset[tuple[np.ndarray, ImageInfo] | BadRecord]):
    """Records as uint8 [S, S, 3], or why not."""

    def __init__(self, records: Records, size: int):
        self.records, self.size = records, size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> tuple[np.ndarray, ImageInfo] | BadRecord:
        record = self.records[number]
        try:
            content = image_bytes(record)
            pixels = read_image(content, record.key, self.size)
        except BadRecord as error:
            return error
        return pixels, ImageInfo(*dimensions(content), hashlib.sha256(content).hexdigest())


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the parent ends its workers itself, without their tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
