"""A query as one vector: the sum of the texts and images that it asks for, less those that it leads away from.

Shapes: D dimensions of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.apps.embed import embed_images
from dalle.data.custom.records import ImageLike, as_record
from dalle.evaluation.zero_shot import embed_texts
from dalle.models.clip import CLIP

_One = TypeVar("_One", str, ImageLike)


@dataclass(frozen=True)
class Query:
    """Texts and images to look for, and texts and images to lead away from."""

    texts: Sequence[str]
    images: Sequence[ImageLike]
    minus: Sequence[str]
    minus_images: Sequence[ImageLike]
    weights: Mapping[str, float]  # text -> factor, where the others have 1 or -1
    vector: Tensor | None = None  # [D], an embedding that was made elsewhere

    @classmethod
    def of(
        cls,
        text: str | Sequence[str] = (),
        image: ImageLike | Sequence[ImageLike] = (),
        minus: str | Sequence[str] = (),
        minus_image: ImageLike | Sequence[ImageLike] = (),
        weights: Mapping[str, float] | None = None,
        vector: Sequence[float] | Tensor | None = None,
    ) -> Query:
        """Check what a search was given, each one or several, before any CLIP is loaded.

        Raises:
            ValueError: there is nothing to look for, a text is empty, a weight is 0 or not finite, or the vector is no
                list of finite numbers other than 0.
        """
        given = None if vector is None else _as_vector(vector)
        query = cls(_as_list(text), _as_list(image), _as_list(minus), _as_list(minus_image), dict(weights or {}), given)
        if not all(math.isfinite(weight) and weight for weight in query.weights.values()):
            raise ValueError(f"weights are {query.weights}: each must be a finite number other than 0")
        if not (query._all_texts or query.images or query.minus_images or given is not None):
            raise ValueError("no query: give a text, an image, or both")
        if not all(one.strip() for one in query._all_texts):
            raise ValueError("a text of the query is empty: say what is to be seen")
        return query

    @property
    def is_one_text(self) -> bool:
        """Whether a SigLIP can say how probable it is that an image fits: of a sum of vectors it cannot."""
        return len(self.texts) == 1 and not (
            self.images or self.minus or self.minus_images or self.weights or self.vector is not None
        )

    @property
    def _all_texts(self) -> list[str]:
        return [*self.texts, *self.minus, *self.weights]

    def embed(self, clip: CLIP) -> Tensor:
        """The sum as a unit vector, float32 [D].

        Raises:
            ValueError: what is added and what is subtracted cancel out, an image cannot be read, or the vector is of
                another CLIP.
        """
        if self.vector is not None and len(self.vector) != clip.config.embed_dim:
            raise ValueError(
                f"the vector has {len(self.vector)} numbers, those of the index {clip.config.embed_dim}: embed it with "
                "the CLIP that made the index"
            )
        images = _embed_readable(clip, [*self.images, *self.minus_images])
        words = embed_texts(clip, self._all_texts)
        given = torch.empty(0, words.shape[1]) if self.vector is None else F.normalize(self.vector, dim=0)[None]
        # In the order of the parts
        shares = [1.0] * len(self.texts) + [-1.0] * len(self.minus) + list(self.weights.values())
        shares += [1.0] * len(self.images) + [-1.0] * len(self.minus_images) + [1.0] * len(given)
        # Only the ratio of weights counts: however large or small they are, the sum is of the size of 1
        largest = max(map(abs, shares))
        factors = torch.tensor([share / largest for share in shares])
        total = (factors[:, None] * torch.cat([words, images, given])).sum(0)
        if total.norm() < 1e-3:  # its direction would be rounding errors
            raise ValueError("what the query adds and what it takes away are the same: nothing is left to look for")
        return F.normalize(total, dim=0)


def _as_list(given: _One | Sequence[_One]) -> list[_One]:
    """One or several, as a list."""
    return [given] if isinstance(given, ImageLike) else list(given)


def _as_vector(given: Sequence[float] | Tensor) -> Tensor:
    try:
        vector = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        vector = torch.empty(0)
    if vector.ndim != 1 or not len(vector) or not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise ValueError("the vector of the query is no list of finite numbers, one of them other than 0")
    return vector.detach().cpu()


def _embed_readable(clip: CLIP, images: Sequence[ImageLike]) -> Tensor:
    """Unit vectors of images, float32 [len(images), D]; an image that cannot be read is an error."""
    records = [as_record(image, f"image {number}") for number, image in enumerate(images, 1)]
    vectors = torch.empty(0, clip.config.embed_dim)
    for batch in embed_images(clip, records):
        for error in batch.broken.values():
            raise error
        vectors = torch.cat([vectors, batch.vectors])
    return vectors
