"""The pre-norm transformer that DALL-E and both towers of CLIP are made of. Vectors in, vectors out: no tokens here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dalle.attention import KVCache, Mask, attend, rotate
from dalle.config import config


@config
class TransformerConfig:
    width: int = 256
    """Channels of the residual stream."""
    depth: int = 8
    """Number of blocks."""
    heads: int = 4
    """Attention heads; must divide width."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward part over width (swiglu: two thirds of it, for equal parameters)."""
    feed_forward: Literal["gelu", "swiglu"] = "gelu"
    """Kind of feed-forward part."""
    qk_norm: bool = False
    """Normalise queries and keys in each head: steadier at high learning rates."""
    dropout: float = 0.0
    """Share of the outputs of each residual branch (and of embeddings) dropped in training, from 0 to below 1."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ValueError(
                f"width {self.width}, depth {self.depth}, heads {self.heads}: "
                "all must be at least 1 and heads must divide width"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads


Rope = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value projections."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        # Dehghani et al. 2023 (ViT-22B, arXiv 2302.05442), section 2: LayerNorm on queries and keys, without biases.
        self.q_norm = nn.LayerNorm(config.head_width, bias=False) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(config.head_width, bias=False) if config.qk_norm else None

    def forward(self, x: Tensor, mask: Mask, rope: Rope | None, cache: KVCache | None, layer: int) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        mixed = rearrange(attend(q, k, v, mask), "b h t d -> b t (h d)")
        return F.dropout(self.out(mixed), self.dropout, self.training)


class FeedForward(nn.Module):
    """Two linear maps with GELU, or SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated, self.dropout = config.feed_forward == "swiglu", config.dropout
        hidden = int(config.width * config.mlp_ratio)
        if self.gated:
            hidden = math.ceil(hidden * 2 / 3 / 8) * 8
        self.up = nn.Linear(config.width, hidden * (2 if self.gated else 1))
        self.down = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        else:
            x = F.gelu(x)  # exact: on a CPU in bfloat16 half the time of the tanh approximation
        return F.dropout(self.down(x), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, mask: Mask, rope: Rope | None, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask, rope, cache, layer)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):
    """Pre-norm blocks and a final norm.

    Weights start as in GPT-2 (Radford et al. 2019, section 2.3): normal with deviation 0.02, the two projections onto
    the residual stream divided by sqrt(2 * depth).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * config.depth) if residual else 0.02)
                nn.init.zeros_(module.bias)

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` rows of `length` tokens, on the device and in the dtype that keys will have."""
        weight = self.norm.weight
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        shape = self.config
        return KVCache(shape.depth, batch, shape.heads, length, shape.head_width, device=weight.device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        mask: Mask | Sequence[Mask] = None,
        *,
        rope: Rope | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Run all blocks.

        Args:
            x: [B, T, C].
            mask: None (everything sees everything), "causal", bool [T, S] with True = may look, or one of these per
                layer. S is T, plus what the cache holds.
            rope: cosines and sines, each [T, head width / 2], of the positions of x.
            cache: what went before x; x's keys and values are added to it.

        Returns:
            [B, T, C].
        """
        masks = mask if isinstance(mask, (list, tuple)) else [mask] * len(self.blocks)
        assert len(masks) == len(self.blocks), "one mask per layer"
        recompute = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        for layer, (block, layer_mask) in enumerate(zip(self.blocks, masks, strict=True)):
            if recompute:
                x = checkpoint(block, x, layer_mask, rope, cache, layer, use_reentrant=False)
            else:
                x = block(x, layer_mask, rope, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)
