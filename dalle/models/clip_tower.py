"""The interface of a CLIP's towers, whatever their architecture.

Shapes: B batch, H W pixels, h w patches, C width of a tower, T text positions, D embedding.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """A tower whose blocks are in `transformer.blocks`; another one overrides what is here.

    Attributes:
        top: beginnings of the names of parameters that come after the blocks.
    """

    top: Sequence[str] = ("transformer.norm.", "projection.")
    _block = re.compile(r"transformer\.blocks\.(\d+)\.")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        blocks = {match[1] for name, _ in self.named_parameters() if (match := self._block.match(name))}
        return len(blocks)

    def layers_from_top(self) -> dict[str, int]:
        """Distance of each parameter from the output: 0 after the blocks, 1 in the last block, depth + 1 before all."""
        depth, layers = self.depth, {}
        for name, _ in self.named_parameters():
            block = self._block.match(name)
            # Counted from the output
            layers[name] = depth - int(block[1]) if block else 0 if name.startswith(tuple(self.top)) else depth + 1
        return layers


class ImageTower(Tower, ABC):
    """Images to embeddings."""

    @abstractmethod
    def pooled(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to one vector each, [B, C], which the projection reads."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to embeddings [B, D], not normalized."""

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w], first block to last."""


class TextTower(Tower, ABC):
    """Token ids to embeddings."""

    @abstractmethod
    def states(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to the states [B, T, C] after the last block and its norm."""

    @abstractmethod
    def end(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to the position of each row's last token, int64 [B]; padding comes after it."""

    @abstractmethod
    def project(self, states: Tensor, end: Tensor) -> Tensor:
        """States [B, T, C] and the last positions [B] to embeddings [B, D], not normalized."""

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to embeddings [B, D], not normalized."""
        return self.project(self.states(ids), self.end(ids))


NO_TEXT_TOWER = "this CLIP has no text tower, so it embeds images only: give one with both towers"


class MissingImageTower(ImageTower):
    """Stands where weights have the text tower only."""

    def pooled(self, images: Tensor) -> Tensor:
        """Raise ValueError, as `forward` and `maps` do."""
        raise ValueError("this CLIP has no image tower, so it embeds captions only: give one with both towers")

    forward = maps = pooled  # type: ignore[assignment]  # one error for all three


class MissingTextTower(TextTower):
    """Stands where weights have the image tower only."""

    def states(self, ids: Tensor) -> Tensor:
        """Raise ValueError."""
        raise ValueError(NO_TEXT_TOWER)

    def end(self, ids: Tensor) -> Tensor:
        """As `states`."""
        return self.states(ids)

    def project(self, states: Tensor, end: Tensor) -> Tensor:
        """As `states`."""
        return self.states(states)


def normalizer(values: Sequence[float]) -> Tensor:
    """Values of the three channels as [3, 1, 1], to be broadcast over images."""
    return torch.tensor(tuple(values)).view(3, 1, 1)
