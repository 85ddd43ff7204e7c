"""The provenance of shards, recorded in their index: the data, the encoder, and how a row is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dalle.config.ranges import PositiveInt, Seed, check_ranges

_UINT16 = 2**16


@dataclass(frozen=True, kw_only=True)
class Provenance(ABC):
    """Everything that determines the contents of shards. Encoding resumes only if all of it is the same.

    Attributes:
        data: options of the encoded data set.
        records: hash of the data set's record names.
        seed: random seed of the views.
        views: views per training image; validation images have one.
        mirror: whether a mirrored copy of each view is included.
        shard_images: images per shard.
    """

    index: ClassVar[str]
    """File name of the index."""
    column: ClassVar[str]
    """Column of the encoded images."""
    encoder: ClassVar[str]
    """Field with the sha256 of what encoded them, which each shard repeats in its metadata."""

    data: dict[str, Any]
    records: str
    seed: Seed
    views: PositiveInt
    mirror: bool
    shard_images: PositiveInt

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def most_rows(self) -> int:
        """The largest number of rows of a shard."""
        return self.shard_images * self.views * (1 + self.mirror)

    @property
    def sha256(self) -> str:
        """Hash of the folder of the model that encoded the images."""
        return str(getattr(self, self.encoder))

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers per image."""

    @property
    @abstractmethod
    def dtype(self) -> type[np.generic]:
        """Type of the stored numbers."""

    @abstractmethod
    def damage(self, values: np.ndarray) -> str | None:
        """What is wrong with stored numbers [N], if anything."""

    @abstractmethod
    def unpack(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """A stored row [width] as data sets give it: what is in place of the image, and its embedding if both are."""


@dataclass(frozen=True, kw_only=True)
class TokenProvenance(Provenance):
    """Of token shards: image codes of an image tokenizer.

    Attributes:
        image_tokenizer: sha256 of the image tokenizer's folder.
        codebook_size: size of its codebook.
        grid: rows and columns of codes.
    """

    index: ClassVar[str] = "tokens.json"
    column: ClassVar[str] = "codes"
    encoder: ClassVar[str] = "image_tokenizer"

    image_tokenizer: str
    codebook_size: PositiveInt
    grid: tuple[PositiveInt, PositiveInt]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "grid", tuple(self.grid))  # JSON has lists only

    @property
    def width(self) -> int:
        """Number of codes of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def dtype(self) -> type[np.generic]:
        """The smaller integer type that holds all codes."""
        # uint16 is enough for almost every tokenizer, and groups in memory take half the space
        return np.uint16 if self.codebook_size <= _UINT16 else np.int32

    def damage(self, values: np.ndarray) -> str | None:
        """Codes outside the codebook."""
        low, high = int(values.min(initial=0)), int(values.max(initial=0))  # 0 for an empty group
        return f"codes from {low} to {high}" if low < 0 or high >= self.codebook_size else None

    def unpack(self, row: np.ndarray) -> tuple[np.ndarray, None]:
        """Codes as int64 [h, w]."""
        return row.astype(np.int64).reshape(self.grid), None


@dataclass(frozen=True, kw_only=True)
class EmbeddingProvenance(Provenance):
    """Of embedding shards: a CLIP's image embeddings before normalization.

    Attributes:
        clip: sha256 of the CLIP's folder.
        embed_dim: dimensions of its embeddings.
    """

    index: ClassVar[str] = "embeddings.json"
    column: ClassVar[str] = "embedding"
    encoder: ClassVar[str] = "clip"

    clip: str
    embed_dim: PositiveInt

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return self.embed_dim

    @property
    def dtype(self) -> type[np.generic]:
        """As the CLIP gives them: half the precision would change the training, and captions take as much space."""
        return np.float32

    def damage(self, values: np.ndarray) -> str | None:
        """Numbers that are not finite."""
        return None if np.isfinite(values).all() else "numbers that are not finite"

    def unpack(self, row: np.ndarray) -> tuple[np.ndarray, None]:
        """The embedding, float32 [D]."""
        return row.astype(np.float32), None


@dataclass(frozen=True, kw_only=True)
class EmbeddedImageProvenance(Provenance):
    """Of shards that hold a CLIP's image embeddings before normalization, and the images in a decoder's size.

    A row is the bytes of the embedding as float32, and behind them those of the image, [3, h, h].

    Attributes:
        clip: sha256 of the CLIP's folder.
        embed_dim: dimensions of its embeddings.
        side: height and width h of the images in pixels.
    """

    index: ClassVar[str] = "embedded_images.json"
    column: ClassVar[str] = "embedding_and_image"
    encoder: ClassVar[str] = "clip"

    clip: str
    embed_dim: PositiveInt
    side: PositiveInt

    @property
    def width(self) -> int:
        """Bytes of an embedding and an image."""
        return self._floats + 3 * self.side**2

    @property
    def dtype(self) -> type[np.generic]:
        """Bytes."""
        return np.uint8

    def damage(self, values: np.ndarray) -> str | None:
        """Numbers of embeddings that are not finite."""
        rows = values.reshape(-1, self.width)[:, : self._floats]
        whole = np.isfinite(np.ascontiguousarray(rows).view(np.float32)).all()
        return None if whole else "numbers that are not finite"

    def unpack(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The image, uint8 [h, h, 3], and its embedding, float32 [D]."""
        image = row[self._floats :].reshape(3, self.side, self.side).transpose(1, 2, 0)
        return image, row[: self._floats].copy().view(np.float32)

    @property
    def _floats(self) -> int:
        return 4 * self.embed_dim
