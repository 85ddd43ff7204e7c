"""SigLIP's towers: images by attention pooling; bidirectional text, read at the last position.

Zhai et al. 2023, arXiv 2303.15343; the pooling is that of Scaling Vision Transformers (arXiv 2106.04560, section 3.2).

Shapes: B batch, H W pixels, h w patches, C width of a tower, T text positions, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.kernels.linear import Linear
from dalle.models.clip_config import CLIPConfig
from dalle.models.clip_tower import TextTower, normalizer
from dalle.models.clip_towers import PatchTower
from dalle.models.transformer import FeedForward, Transformer
from dalle.models.transformer_config import TransformerConfig

_NORM_EPS = 1e-6


class AttentionPooling(nn.Module):
    """Pools many vectors into one: a learned query attends to all of them, then an MLP with a residual connection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.q = Linear(config.width, config.width)
        self.kv = Linear(config.width, 2 * config.width)
        self.out = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        for linear in (self.q, self.kv, self.out):
            nn.init.normal_(linear.weight, std=config.width**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """States [B, T, C] to [B, C]."""
        # The same learned query for every image, so it is projected once
        query = rearrange(self.q(self.query.to(x.dtype)), "(H D) -> H 1 D", H=self.heads)
        k, v = rearrange(self.kv(x), "B T (two H D) -> two B H T D", two=2, H=self.heads)  # [H, 1, D]
        mixed = F.scaled_dot_product_attention(query.to(k.dtype).expand(len(x), -1, -1, -1), k, v)  # [B, H, 1, D]
        pooled = self.out(mixed.flatten(1))
        return pooled + self.feed_forward(self.norm(pooled))


class PooledVisionTransformer(PatchTower):
    """Image tower: patches, pre-norm transformer, attention pooling; no class token and no projection."""

    mean: Tensor
    std: Tensor
    first_patch = 0
    top = ("transformer.norm.", "pooling.")

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, side = config.vision.width, config.image_size // config.patch_size
        self.side = side
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.positions = nn.Parameter(torch.randn(side**2, width) * width**-0.5)
        self.transformer = Transformer(config.vision)
        self.pooling = AttentionPooling(config.vision)
        self.register_buffer("mean", normalizer(config.mean), persistent=False)
        self.register_buffer("std", normalizer(config.std), persistent=False)
        set_norm_eps(self)

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to the transformer's input [B, h*w, C]."""
        normalized = (images - self.mean) / self.std
        patches = self.patches(normalized.to(self.patches.weight.dtype))  # [B, C, h, w]
        x: Tensor = rearrange(patches, "B C h w -> B (h w) C") + self.positions
        return x

    def pooled(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to their pooled states, [B, C], which are the embeddings."""
        pooled: Tensor = self.pooling(self.transformer(self.embed(images)))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to embeddings [B, D], not normalized."""
        return self.pooled(images)


class UnmaskedTextTransformer(TextTower):
    """Text tower: every position attends to every other, padding included; projection of the last position's state."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width = config.text.width
        self.tokens = nn.Embedding(config.text_vocab, width)
        self.positions = nn.Parameter(torch.randn(config.text_length, width) * 0.01)
        self.transformer = Transformer(config.text)
        self.projection = nn.Linear(width, config.embed_dim)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        nn.init.zeros_(self.projection.bias)
        set_norm_eps(self)

    def states(self, ids: Tensor) -> Tensor:
        """Ids [B, T] of full-length rows, padding included, to states [B, T, C].

        Raises:
            ValueError: rows shorter than those the model was trained on.
        """
        if ids.shape[1] != len(self.positions):
            raise ValueError(
                f"got captions of {ids.shape[1]} tokens, but this SigLIP reads all {len(self.positions)} positions, "
                f"padding included: encode them with length={len(self.positions)}"
            )
        # No mask at all: padding was part of the text in training
        states: Tensor = self.transformer(self.tokens(ids) + self.positions)  # [B, T, C]
        return states

    def end(self, ids: Tensor) -> Tensor:
        """The position to read, int64 [B]: always the last."""
        return torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)

    def project(self, states: Tensor, end: Tensor) -> Tensor:
        """States [B, T, C] and the position [B] to read, to embeddings [B, D], not normalized."""
        projected: Tensor = self.projection(states[torch.arange(len(states), device=states.device), end])
        return projected


def set_norm_eps(module: nn.Module) -> None:
    """Set the epsilon of all LayerNorms to SigLIP's, which is smaller than PyTorch's default."""
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = _NORM_EPS
