"""The pre-norm transformer that DALL-E and both towers of CLIP are made of. Vectors in, vectors out: no tokens here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dalle.config import check_total, config
from dalle.kernels.attention import rotate
from dalle.kernels.block_weights import Rope
from dalle.kernels.decode_attention import decode_attention
from dalle.kernels.kv_cache import KVCache, TokenShift
from dalle.kernels.linear import Linear
from dalle.kernels.pattern import LayerMask
from dalle.kernels.sparse import attend, attend_packed
from dalle.ranges import Decay, Range, Size

_MODULE = 2**14  # numbers that the objects of a block take the memory of
FeedForwardKind = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu", "geglu"]


@config
class TransformerConfig:
    width: Size = 256
    """Channels of the residual stream."""
    depth: Size = 8
    """Number of blocks."""
    heads: Size = 4
    """Attention heads; must divide width, unless head_channels is given."""
    head_channels: Size | None = None
    """Channels of one head; null is width over heads."""
    mlp_ratio: Annotated[float, Range(0, above=True, ceiling=10**6)] = 4.0
    """Hidden width of the feed-forward part over width (swiglu, geglu: two thirds of it, for equal parameters)."""
    hidden: Size | None = None
    """Hidden width of the feed-forward part as such, in place of mlp_ratio."""
    feed_forward: FeedForwardKind = "gelu"
    """Kind of feed-forward part."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    sandwich: bool = False
    """Normalise what each residual branch gives, too (CogView, arXiv 2105.13290, section 2.4)."""
    layer_scale: bool = False
    """Multiply what each residual branch gives by a learnt vector (Touvron et al. 2021, arXiv 2103.17239)."""
    biases: Literal["all", "not_qkv", "none"] = "all"
    """Which linear maps have a bias."""
    qk_norm: bool = False
    """Normalise queries and keys in each head: steadier at high learning rates."""
    dropout: Decay = 0.0
    """Share of the outputs of each residual branch (and of embeddings) dropped in training, from 0 to below 1."""
    attention_dropout: Decay = 0.0
    """Share of the attention weights dropped in training, from 0 to below 1; attention then goes by torch's functions,
    and sparse kinds by dense masks."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    rotate_values: bool = False
    """Rotary positions turn values too, as in DALLE-pytorch."""
    reversible: bool = False
    """Two residual streams in turn (RevNet, arXiv 1707.04585), as in DALLE-pytorch."""
    divide_by_max: bool = False
    """Divide the last states by their largest channel before the final norm, as in DALLE-pytorch (`stable`)."""

    def __post_init__(self) -> None:
        if self.head_channels is None and self.width % self.heads:
            raise ValueError(
                f"heads is {self.heads}; it must divide width, {self.width}, unless head_channels is given"
            )
        names = ("width", "depth", "heads", "head_channels", "hidden", "mlp_ratio")
        sizes = {name: getattr(self, name) for name in names}
        check_total(self.numbers, ", ".join(f"{name} {size}" for name, size in sizes.items() if size is not None))

    @property
    def numbers(self) -> int:
        """About how many numbers the blocks hold, a module of Python itself counted."""
        inner, hidden = self.heads * self.head_width, self.hidden or int(self.width * self.mlp_ratio)
        return self.depth * (self.width * (4 * inner + 3 * hidden) + _MODULE)

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads if self.head_channels is None else self.head_channels


class Context(NamedTuple):
    """What the tokens of one pass stand in, the same for all layers."""

    rope: Rope | None = None
    """Cosines and sines of their positions."""
    shift: TokenShift | None = None
    """Where part of their channels comes from."""
    cache: KVCache | None = None
    """What went before."""


Blocks = Callable[[Tensor, Sequence[LayerMask], Context], Tensor]
"""Runs all blocks over [B, T, C], given a mask for each."""


def norm(config: TransformerConfig) -> nn.Module:
    """A normalisation over the channels."""
    return nn.LayerNorm(config.width) if config.norm == "layer" else nn.RMSNorm(config.width, eps=1e-5)


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value projections."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.dropout, self.rotate_values = config.heads, config.dropout, config.rotate_values
        self.attention_dropout = config.attention_dropout
        inner = config.heads * config.head_width
        self.qkv = Linear(config.width, 3 * inner, bias=config.biases == "all")
        self.out = Linear(inner, config.width, bias=config.biases != "none")
        # Dehghani et al. 2023 (ViT-22B, arXiv 2302.05442), section 2: LayerNorm on queries and keys, without biases.
        self.q_norm = nn.LayerNorm(config.head_width, bias=False) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(config.head_width, bias=False) if config.qk_norm else None

    def forward(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        qkv = self.qkv(x)
        dropped = self.attention_dropout if self.training else 0.0
        if context.cache is not None:
            norms = self.q_norm, self.k_norm
            mixed = decode_attention(qkv, mask, context.cache, layer, *norms, context.rope, self.rotate_values, dropped)
            return _drop(self.out(mixed), self.dropout, self.training)
        packed = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, T, D]
        if self.q_norm is None and context.rope is None:
            mixed = attend_packed(packed, mask, dropped)  # [B, H, T, D]
        else:
            q, k, v = packed
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q), self.k_norm(k)
            if context.rope is not None:
                q, k = rotate(q, *context.rope), rotate(k, *context.rope)
                v = rotate(v, *context.rope) if self.rotate_values else v
            mixed = attend(q, k, v, mask, dropped)
        return _drop(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    """Two linear maps around a nonlinearity, or a gated one (GEGLU, SwiGLU: Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kind, self.dropout = config.feed_forward, config.dropout
        self.gated = config.feed_forward in ("swiglu", "geglu")
        hidden = config.hidden
        if hidden is None:
            hidden = int(config.width * config.mlp_ratio)
            hidden = math.ceil(hidden * 2 / 3 / 8) * 8 if self.gated else hidden
        self.up = Linear(config.width, hidden * (2 if self.gated else 1), bias=config.biases != "none")
        self.down = Linear(hidden, config.width, bias=config.biases != "none")

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = _activate(gate, self.kind) * x
        else:
            x = _activate(x, self.kind)
        return _drop(self.down(x), self.dropout, self.training)


def _drop(x: Tensor, share: float, training: bool) -> Tensor:
    return F.dropout(x, share) if share and training else x


def _activate(x: Tensor, kind: FeedForwardKind) -> Tensor:
    if kind == "swiglu":
        return F.silu(x)
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    # The exact GELU takes half the time of the tanh approximation on a CPU in bfloat16.
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Each of the two may end with a norm or a learnt scale of its own.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = norm(config)
        self.feed_forward = FeedForward(config)
        self.attention_end = _end(config)
        self.feed_forward_end = _end(config)

    def attend(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        """What attention adds to the residual stream."""
        x = self.attention_norm(x)
        if context.shift is not None:
            x = context.shift(x, context.cache, 2 * layer)
        return self.attention_end(self.attention(x, mask, context, layer))

    def feed(self, x: Tensor, context: Context, layer: int) -> Tensor:
        """What the feed-forward part adds to it."""
        x = self.feed_forward_norm(x)
        if context.shift is not None:
            x = context.shift(x, context.cache, 2 * layer + 1)
        return self.feed_forward_end(self.feed_forward(x))

    def forward(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        x = x + self.attend(x, mask, context, layer)
        return x + self.feed(x, context, layer)


class ReversibleBlock(Block):
    """Two streams [2, B, T, C]: each is added what the other gives."""

    def forward(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        first, second = x
        first = first + self.attend(second, mask, context, layer)
        return torch.stack((first, second + self.feed(first, context, layer)))


class Scale(nn.Module):
    """A learnt factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _end(config: TransformerConfig) -> nn.Module:
    parts = [norm(config)] if config.sandwich else []
    parts += [Scale(config.width)] if config.layer_scale else []
    return nn.Sequential(*parts)


class Transformer(nn.Module):
    """Pre-norm blocks and a final norm.

    Weights start as in GPT-2 (Radford et al. 2019, section 2.3): normal with deviation 0.02, the two projections onto
    the residual stream divided by sqrt(2 * depth).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        block = ReversibleBlock if config.reversible else Block
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        self.norm = norm(config)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * config.depth) if residual else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def new_cache(self, batch: int, length: int, *, shifted: bool = False) -> KVCache:
        """An empty cache on the device and in the dtype that keys will have.

        Args:
            batch: rows.
            length: tokens of a row.
            shifted: whether passes come with a `TokenShift`.
        """
        weight = next(self.parameters())
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        shape = self.config
        return KVCache(
            shape.depth,
            batch,
            shape.heads,
            length,
            shape.head_width,
            shifted=shape.width // 2 if shifted else 0,
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
        blocks: Blocks | None = None,
    ) -> Tensor:
        """Run all blocks.

        Args:
            x: [B, T, C].
            mask: None (everything sees everything), "causal", bool [T, S] or [B, 1, T, S] with True = may look, or one
                of these per layer. S is T, plus what the cache holds.
            rope: cosines and sines, each [T, head width / 2], of the positions of x.
            shift: takes part of the channels from earlier tokens, ahead of each branch.
            cache: what went before x; x's keys and values are added to it.
            blocks: what runs the blocks; None: `run_blocks`, one after the other.

        Returns:
            [B, T, C].

        Raises:
            IndexError: the cache has no room for x.
        """
        masks: Sequence[LayerMask] = mask if isinstance(mask, (list, tuple)) else [mask] * len(self.blocks)  # type: ignore[list-item]
        assert len(masks) == len(self.blocks), "one mask per layer"
        context = Context(rope, shift, cache)
        length = x.shape[1]
        if cache is not None:
            cache.place(length)  # or it is an error, before anything is written
        x = (blocks or self.run_blocks)(x, masks, context)
        if cache is not None:
            cache.advance(length)
        if self.config.divide_by_max:
            x = x / x.amax(-1, keepdim=True).detach()
        return self.norm(x)

    def run_blocks(self, x: Tensor, masks: Sequence[LayerMask], context: Context) -> Tensor:
        """The blocks one after the other."""
        recompute = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        if self.config.reversible:
            x = torch.stack((x, x))
        for layer, (block, mask) in enumerate(zip(self.blocks, masks, strict=True)):
            if recompute:
                x = checkpoint(block, x, mask, context, layer, use_reentrant=False)
            else:
                x = block(x, mask, context, layer)
        return x.mean(0) if self.config.reversible else x
