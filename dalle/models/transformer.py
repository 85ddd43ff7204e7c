"""The pre-norm transformer of DALL-E, CLIP's towers and the priors. Vectors in, vectors out: it knows no tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dalle.kernels.attention import rotate, split_heads
from dalle.kernels.block_weights import Rope
from dalle.kernels.decode_attention import decode_attention
from dalle.kernels.kv_cache import KVCache, TokenShift
from dalle.kernels.linear import Linear
from dalle.kernels.pattern import LayerMask
from dalle.kernels.sparse import attend, attend_packed
from dalle.models.norms import head_norm, norm
from dalle.models.transformer_config import FeedForwardKind, TransformerConfig


class Context(NamedTuple):
    """Arguments that all layers of a forward pass share."""

    rope: Rope | None = None
    """Cosines and sines of the tokens' positions; None: no rotary positions."""
    shift: TokenShift | None = None
    """Replaces part of the channels by those of earlier tokens; None: nothing is shifted."""
    cache: KVCache | None = None
    """Keys and values of earlier tokens; None: there are none."""


RunBlocks = Callable[[Tensor, Sequence[LayerMask], Context], Tensor]
"""Runs all blocks over [B, T, C], given one mask per block."""


class Attention(nn.Module):
    """Self-attention of many heads with a fused projection to queries, keys and values, in this order."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.dropout, self.rotate_values = config.heads, config.dropout, config.rotate_values
        self.attention_dropout = config.attention_dropout
        self.kv_heads, self.head_width = config.key_heads, config.head_width
        rows = (self.heads + 2 * self.kv_heads) * self.head_width
        self.qkv = Linear(config.width, rows, bias=config.biases in ("all", "qkv"))
        self.out = Linear(self.heads * self.head_width, config.width, bias=config.biases in ("all", "not_qkv"))
        self.q_norm = head_norm(config, self.heads) if config.qk_norm else None
        self.k_norm = head_norm(config, self.kv_heads) if config.qk_norm else None

    def forward(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        """[B, T, C] to the same shape; with a cache, appends the keys and values and attends to all in it."""
        qkv = self.qkv(x)
        dropped = self.attention_dropout if self.training else 0.0
        if context.cache is not None:
            norms = self.q_norm, self.k_norm
            mixed = decode_attention(qkv, mask, context.cache, layer, *norms, context.rope, self.rotate_values, dropped)
            return _drop(self.out(mixed), self.dropout, self.training)
        # Whole sequences. Without per-head norms and rotary positions, native attention reads queries, keys and values
        # [3, B, H, T, D] where the projection left them; otherwise they are computed apart anyway.
        if self.q_norm is None and context.rope is None and self.kv_heads == self.heads:
            packed = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, T, D]
            mixed = attend_packed(packed, mask, dropped)  # [B, H, T, D]
        else:
            q, k, v = split_heads(qkv, self.kv_heads, self.head_width)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q), self.k_norm(k)  # before the rotation, as in the models that have both
            if context.rope is not None:
                q, k = rotate(q, *context.rope), rotate(k, *context.rope)
                v = rotate(v, *context.rope) if self.rotate_values else v
            mixed = attend(q, k, v, mask, dropped)
        return _drop(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    """Two linear layers with an activation between, or a gated one (GEGLU, SwiGLU: Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kind, self.dropout = config.feed_forward, config.dropout
        self.gated = config.feed_forward in ("swiglu", "geglu", "geglu_tanh")
        hidden = config.hidden
        if hidden is None:
            hidden = int(config.width * config.mlp_ratio)
            # A gated layer has three matrices instead of two. Multiples of 8 suit vector units and tensor cores.
            hidden = math.ceil(hidden * 2 / 3 / 8) * 8 if self.gated else hidden
        biases = config.biases in ("all", "not_qkv")
        self.up = Linear(config.width, hidden * (2 if self.gated else 1), bias=biases)
        self.down = Linear(hidden, config.width, bias=biases)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to the same shape."""
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)  # gate first; loaders of other orders swap the halves
            x = _activate(gate, self.kind) * x
        else:
            x = _activate(x, self.kind)
        return _drop(self.down(x), self.dropout, self.training)


def _drop(x: Tensor, probability: float, training: bool) -> Tensor:
    return F.dropout(x, probability) if probability and training else x


def _activate(x: Tensor, kind: FeedForwardKind) -> Tensor:
    if kind == "swiglu":
        return F.silu(x)
    if kind == "quick_gelu":  # the sigmoid approximation of GELU (Hendrycks and Gimpel 2016), as in OpenAI's CLIP
        return x * torch.sigmoid(1.702 * x)
    # In bfloat16 on a CPU, the exact GELU takes half the time of the tanh approximation.
    return F.gelu(x, approximate="tanh" if kind.endswith("_tanh") else "none")


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Each branch may end with a norm (sandwich) and a learned scale.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = norm(config)
        self.feed_forward = FeedForward(config)
        self.attention_end = _branch_end(config)
        self.feed_forward_end = _branch_end(config)

    def attend(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        """The attention branch's contribution to the residual stream, [B, T, C]."""
        x = self.attention_norm(x)
        if context.shift is not None:
            # Both branches of each layer store their own channels for later tokens
            x = context.shift(x, context.cache, 2 * layer)
        return self.attention_end(self.attention(x, mask, context, layer))

    def feed(self, x: Tensor, context: Context, layer: int) -> Tensor:
        """The feed-forward branch's contribution to the residual stream, [B, T, C]."""
        x = self.feed_forward_norm(x)
        if context.shift is not None:
            x = context.shift(x, context.cache, 2 * layer + 1)
        return self.feed_forward_end(self.feed_forward(x))

    def forward(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        """[B, T, C] to the same shape."""
        x = x + self.attend(x, mask, context, layer)
        return x + self.feed(x, context, layer)


class ReversibleBlock(Block):
    """A block over two residual streams [2, B, T, C], each of which is updated from the other (RevNet).

    Gomez et al. 2017 (arXiv 1707.04585), section 3.1. Published weights need this arithmetic; that the inputs could be
    recomputed from the outputs, which saves memory in training, is not used here (`checkpoint_activations` saves it).
    """

    def forward(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        """[2, B, T, C] to the same shape."""
        # y1 = x1 + F(x2), y2 = x2 + G(y1), in the paper's letters
        first, second = x
        first = first + self.attend(second, mask, context, layer)
        return torch.stack((first, second + self.feed(first, context, layer)))


class Scale(nn.Module):
    """A learned factor per channel (LayerScale: Touvron et al. 2021, arXiv 2103.17239, section 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 0.1))  # as in CaiT, for depths up to 18

    def forward(self, x: Tensor) -> Tensor:  # per channel
        """[..., C] to the same shape."""
        return x * self.weight


def _branch_end(config: TransformerConfig) -> nn.Module:
    """The end of a residual branch: a norm (sandwich), a scale, both in this order, or nothing."""
    parts = [norm(config)] if config.sandwich else []
    parts += [Scale(config.width)] if config.layer_scale else []
    return nn.Sequential(*parts)


class Transformer(nn.Module):
    """Pre-norm blocks and a final norm.

    Weights are initialized as in GPT-2 (Radford et al. 2019, section 2.3): normal with deviation 0.02, and for the two
    projections onto the residual stream 0.02 / sqrt(2 * depth).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        block = ReversibleBlock if config.reversible else Block
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        self.norm = norm(config)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # These two write to the residual stream, whose variance would otherwise grow with the depth
                residual = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * config.depth) if residual else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def new_cache(self, batch: int, length: int, *, shifted: bool = False) -> KVCache:
        """Allocate an empty cache on the device and in the dtype that keys will have.

        Args:
            batch: number of sequences.
            length: maximum number of tokens per sequence.
            shifted: whether forward passes will use a `TokenShift`.
        """
        weight = next(self.parameters())
        kind = weight.device.type
        # Under autocast, keys are computed in its dtype and not in that of the weights
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        shape = self.config
        return KVCache(
            shape.depth,
            batch,
            shape.key_heads,
            length,
            shape.head_width,
            shifted=shape.width // 2 if shifted else 0,  # the other half of the channels is never shifted
            device=weight.device,
            dtype=dtype,
        )

    def forward(
        self,
        x: Tensor,
        mask: LayerMask | Sequence[LayerMask] = None,
        *,
        rope: Rope | None = None,
        shift: TokenShift | None = None,
        cache: KVCache | None = None,
        blocks: RunBlocks | None = None,
    ) -> Tensor:
        """Run all blocks and the final norm.

        Args:
            x: [B, T, C].
            mask: None (everything attends to everything), "causal", bool [T, S] or [B, 1, T, S] with True = may attend,
                or one of these per layer. S is T plus the number of cached tokens.
            rope: cosines and sines, each [T, head width / 2], of the positions of x.
            shift: replaces part of the channels by those of earlier tokens, before each branch.
            cache: the tokens before x; x's keys and values are appended.
            blocks: runs the blocks; None: `run_blocks`, one after the other.

        Returns:
            [B, T, C].

        Raises:
            IndexError: the cache has no room for x.
        """
        masks: Sequence[LayerMask] = mask if isinstance(mask, (list, tuple)) else [mask] * len(self.blocks)  # type: ignore[list-item]
        assert len(masks) == len(self.blocks), "one mask per layer"
        context = Context(rope, shift, cache)  # one argument, as activation checkpointing passes them all through
        length = x.shape[1]
        if cache is not None:
            cache.next_positions(length)  # raises if there is no room, before anything is written
        x = (blocks or self.run_blocks)(x, masks, context)
        if cache is not None:  # only now, as all layers write at the same position
            cache.advance(length)
        if self.config.divide_by_max:
            # Against overflow in fp16 (CogView, arXiv 2105.13290, section 2.4): the norm after it undoes any scale. The
            # maximum counts as a constant in the backward pass, as in DALLE-pytorch
            x = x / x.amax(-1, keepdim=True).detach()
        return self.norm(x)

    def run_blocks(self, x: Tensor, masks: Sequence[LayerMask], context: Context) -> Tensor:
        """Run the blocks one after the other: [B, T, C] to the same shape."""
        # Recomputing pays only if a backward pass will follow
        recompute = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        if self.config.reversible:
            x = torch.stack((x, x))  # both streams begin as the embeddings
        for layer, (block, mask) in enumerate(zip(self.blocks, masks, strict=True)):
            if recompute:
                x = checkpoint(block, x, mask, context, layer, use_reentrant=False)
            else:
                x = block(x, mask, context, layer)
        # DALLE-pytorch averages the two streams at the end
        return x.mean(0) if self.config.reversible else x
