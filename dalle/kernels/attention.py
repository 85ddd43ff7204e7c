"""Attention as pure functions, and the KV cache. Knows which token may look at which; knows nothing of weights.

Letters: B batch, H heads, T queries, S keys, D head width, h x w the image grid, C text length.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.kernels.native import attention

Kind = Literal["full", "row", "column", "conv"]
Mask = Tensor | Literal["causal"] | None

# Up to this many keys, matmul + softmax in bfloat16 beats scaled_dot_product_attention on a CPU, forward + backward:
# 2.6 times at 96 keys, equal at 320 (2 cores with AMX); 3.9 times at 96, 2 times at 320 (Zen 4).
_SHORT = 512
_PIECE = 160  # queries that look at no key behind the last of them: at 320 a quarter of the work less


def mask(kind: Kind, text_length: int, height: int, width: int, kernel: int = 11) -> Tensor:
    """Which token may look at which, for one of the paper's kinds of attention.

    The sequence is the text followed by the image in raster order. Text is causal. An image token sees all of the text
    and, of the image, itself and (Ramesh et al. 2021, arXiv 2102.12092, appendix B.1 and figure 11):

    * full: every earlier token.
    * row (mask a): the tokens before it in raster order, back to the one right above it: `width + 1` with itself. It is
      a sliding window that runs on over the line's end, not one line.
    * column (mask b): the tokens above it in its own column, in all earlier rows. (The paper transposes the grid and
      uses mask c, which is the same thing computed faster.)
    * conv (mask d): the causal half of a `kernel` x `kernel` window centred on it, the row's own left part and the
      `kernel // 2` rows above. Like the row kind it wraps around: the window is a fixed set of raster offsets
      `dy * width + dx`, so what sticks out at the left is the end of the line above, and at the right the start of
      the line below.

    Args:
        kind: "full", "row", "column" or "conv".
        text_length: text tokens, 0 or more.
        height: rows of the image grid.
        width: columns of the image grid.
        kernel: the window's side, odd; used by "conv" only.

    Returns:
        bool [S, S] with S = text_length + height * width; True where query (row) may look at key (column).

    Raises:
        ValueError: the kind is unknown, or the kernel is even or below 1.
    """
    position = torch.arange(text_length + height * width)
    back = position[:, None] - position[None, :]  # [S, S] how far the key lies behind the query
    is_text = position < text_length
    return near(kind, back, width, kernel) | ((back >= 0) & is_text[None, :])


def near(kind: Kind, back: Tensor, width: int, kernel: int = 11) -> Tensor:
    """Whether an image token sees the one that lies so far behind it in raster order: all that tells the kinds apart.

    Args:
        kind: as in `mask`.
        back: int, of any shape; below 0 lies ahead, which is never seen.
        width: columns of the image grid.
        kernel: as in `mask`.

    Returns:
        bool, in the shape of `back`.

    Raises:
        ValueError: as in `mask`.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the convolution kernel of attention is {kernel}; it must be odd and at least 1")
    reached = back >= 0
    if kind == "full":
        return reached
    if kind == "row":
        return reached & (back <= width)
    if kind == "column":
        return reached & (back % width == 0)
    if kind == "conv":
        reach = kernel // 2
        lines = [(back - rows * width).abs() <= reach for rows in range(reach + 1)]
        return reached & torch.stack(lines).any(0)
    raise ValueError(f"unknown attention {kind!r}; it must be one of full, row, column, conv")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: [B, H, T, D].
        k: [B, H, S, D].
        v: [B, H, S, D].
        mask: None (all keys), "causal" (the T queries are the last of S positions), or bool [T, S], True = may look.
        dropout: share of the weights that is dropped, from 0 to below 1; the others grow by 1 / (1 - dropout).

    Returns:
        [B, H, T, D].
    """
    queries, keys = q.shape[-2], k.shape[-2]
    causal = isinstance(mask, str)
    if causal and queries == 1:
        mask, causal = None, False
    if not dropout and q.shape == k.shape and _trained(q, mask):
        return attention.attend(torch.stack((q, k, v)), mask if isinstance(mask, Tensor) else None, causal)
    triangular = causal
    by_hand = q.device.type == "cpu" and (dropout > 0 or (q.dtype == torch.bfloat16 and keys <= _SHORT))
    if causal and (by_hand or queries != keys):
        mask, causal = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries), False
    if not by_hand:
        return F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)  # type: ignore[arg-type]
    if not isinstance(mask, Tensor):
        return _by_hand(q, k, v, None, dropout)
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -math.inf)
    if not triangular or queries <= _PIECE:
        return _by_hand(q, k, v, bias, dropout)
    pieces = -(-queries // _PIECE)
    parts, seen = [], keys - queries
    for rows, under in zip(q.chunk(pieces, dim=-2), bias.chunk(pieces, dim=-2), strict=True):
        seen += rows.shape[-2]
        parts.append(_by_hand(rows, k[..., :seen, :], v[..., :seen, :], under[..., :seen], dropout))
    return torch.cat(parts, dim=-2)


def attend_packed(qkv: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor:
    """`attend` of whole sequences whose queries, keys and values are one tensor [3, B, H, T, D]: without copies."""
    if not dropout and _trained(qkv, mask):
        return attention.attend(qkv, mask if isinstance(mask, Tensor) else None, isinstance(mask, str))
    q, k, v = qkv
    return attend(q, k, v, mask, dropout)


def _trained(x: Tensor, mask: Mask) -> bool:
    """Whether compiled code is the way: in training. In drawing numbers stay those of torch's functions."""
    short = x.shape[-2] <= _SHORT and (not isinstance(mask, Tensor) or mask.ndim == 2)
    return short and torch.is_grad_enabled() and x.requires_grad and attention.usable(x)


def _by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)  # [B, H, T, S]
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def rope_table(text_length: int, height: int, width: int, dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions in two dimensions.

    Every token has two coordinates: text token t lies at (t, t), the image token in row y and column x at
    (text_length + y, text_length + x), as in Qwen2-VL (Wang et al. 2024, arXiv 2409.12191, section 2.1). Half of a head
    turns with the first coordinate, the other half with the second, so text is plain 1-D RoPE (Su et al. 2021, arXiv
    2104.09864) whose frequencies come twice.

    Args:
        text_length: text tokens.
        height: rows of the image grid.
        width: columns of the image grid.
        dim: head width, a multiple of 4.
        base: the slowest rotation's wavelength over 2 pi.

    Returns:
        cos, sin: each [S, dim / 2] float32.
    """
    assert dim % 4 == 0
    text = torch.arange(text_length)
    y = text_length + torch.arange(height).repeat_interleave(width)
    x = text_length + torch.arange(width).repeat(height)
    frequency = base ** (-torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    first, second = torch.cat((text, y)), torch.cat((text, x))  # [S]
    angle = torch.cat((first[:, None] * frequency, second[:, None] * frequency), dim=1)  # [S, dim / 2]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of each head by its position's angles.

    Args:
        x: [B, H, T, D].
        cos: [T, D / 2].
        sin: [T, D / 2].

    Returns:
        [B, H, T, D] in x's dtype.
    """
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Place:
    """Where the tokens of a pass stand: `start` to `end - 1` of the sequence. Cuts their part out of tables."""

    causal: Mask = "causal"
    moves = False  # where they stand is known to the device alone

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def rows(self, table: Tensor, before: int = 0) -> Tensor:
        """Their rows of a table that begins behind the first `before` tokens."""
        return table[self.start - before : self.end - before]

    def cells(self, lines: Tensor, columns: Tensor, before: int) -> Tensor:
        """For image tokens, `before` of which are text: lines [h, 1, C] + columns [1, w, C] of their cells, [T, C]."""
        start, end, width = self.start - before, self.end - before, columns.shape[1]
        first = start // width
        part = (lines[first : -(-end // width)] + columns).flatten(0, 1)
        return part[start - first * width : end - first * width]

    def square(self, table: Tensor) -> Tensor:
        """Their queries, and the keys up to them, of a table [..., S, S]."""
        return table[..., self.start : self.end, : self.end]

    def back(self, device: torch.device) -> Tensor:
        """How far the key lies behind the query, int [T, end]; below 0: ahead of it."""
        queries = torch.arange(self.start, self.end, device=device)
        return queries[:, None] - torch.arange(self.end, device=device)


class KVCache:
    """Keys and values of all layers, allocated once at the exact size; of one model, whose weights stay as they are.

    Attributes:
        position: how many tokens are held. A Python integer, so that no step waits for the device. It may be set back:
            what comes next overwrites what was held.
        keys: [L, B, H, S, D].
        values: [L, B, H, S, D].
        inputs: [2 L, B, S, shifted], the channels that `TokenShift` looks back at; no elements if `shifted` is 0.
        padding: bool [B, P], True where one of the first tokens is none and is not looked at; None: all are.
        steps: what was prepared, by layer or for "all", to add one token a row fast
            (dalle/kernels/native/decode_step.py); None: nothing can.
    """

    def __init__(
        self,
        depth: int,
        batch: int,
        heads: int,
        length: int,
        dim: int,
        *,
        shifted: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.position = 0
        self.keys = torch.empty(depth, batch, heads, length, dim, device=device, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.inputs = torch.empty(2 * depth, batch, length, shifted, device=device, dtype=dtype)
        self.padding: Tensor | None = None
        self.steps: dict[int | str, object] = {}

    def __getstate__(self) -> dict[str, object]:
        """What a copy has: not what was prepared for this one's tensors."""
        return {**self.__dict__, "steps": {}}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new tokens of one layer; `advance` follows once all layers have.

        Args:
            layer: 0-based.
            k: [B, H, T, D].
            v: [B, H, T, D].

        Returns:
            Views of the filled part, the new tokens last: [B, H, position + T, D] each.
        """
        start, count = self.position, k.shape[-2]
        keys, values = self.keys[layer], self.values[layer]
        keys.narrow(2, start, count).copy_(k)
        values.narrow(2, start, count).copy_(v)
        return keys.narrow(2, 0, start + count), values.narrow(2, 0, start + count)

    def place(self, count: int) -> Place:
        """Where the next `count` tokens stand.

        Raises:
            IndexError: the cache has no room for them.
        """
        room = self.keys.shape[3]
        if not 0 <= self.position <= room - count:
            raise IndexError(f"{count} tokens at position {self.position} of a cache with room for {room}")
        return Place(self.position, self.position + count)

    def hold(self, slot: int, channels: Tensor) -> Tensor:
        """Store what `TokenShift` looks back at, of the next tokens [B, T, shifted]; all that is held so far."""
        end = self.position + channels.shape[1]
        self.inputs[slot, :, self.position : end] = channels
        return self.inputs[slot, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` tokens as held."""
        self.position += count

    def fill(self, sources: list[KVCache]) -> None:
        """Start row b from the single row that `sources[b]` holds; all hold equally many tokens."""
        self.position = sources[0].position
        for row, source in enumerate(sources):
            self.keys[:, row, :, : self.position] = source.keys[:, 0, :, : self.position]
            self.values[:, row, :, : self.position] = source.values[:, 0, :, : self.position]
            self.inputs[:, row, : self.position] = source.inputs[:, 0, : self.position]
        padding = [source.padding for source in sources if source.padding is not None]
        self.padding = torch.cat(padding) if padding else None

    def rows(self, start: int, end: int) -> KVCache:
        """A view of some rows, itself a cache."""
        view = object.__new__(KVCache)
        view.position = self.position
        view.keys, view.values = self.keys[:, start:end], self.values[:, start:end]
        view.inputs = self.inputs[:, start:end]
        view.steps = {}
        view.padding = None if self.padding is None else self.padding[start:end]
        return view

    def row(self, index: int) -> KVCache:
        """A view of one row."""
        return self.rows(index, index + 1)


class TokenShift:
    """Takes the first quarter and the second quarter of each token's channels from other, earlier tokens.

    DALLE-pytorch's `shift_tokens`: of text both quarters come from the token before; of the image the first comes from
    the token above, the second from the one to the left. Where there is none, the channels are 0.
    """

    def __init__(self, prefix: int, height: int, width: int, device: torch.device | str | None = None) -> None:
        """Prepare sequences of `prefix` text tokens and height x width image tokens."""
        text = torch.arange(prefix) - 1
        cell = torch.arange(height * width)
        above = torch.where(cell >= width, prefix + cell - width, -1)
        left = torch.where(cell % width > 0, prefix + cell - 1, -1)
        self.sources = torch.stack((torch.cat((text, above)), torch.cat((text, left)))).to(device)  # [2, S]

    def __call__(self, x: Tensor, cache: KVCache | None, slot: int) -> Tensor:
        """Shift tokens [B, T, C] that follow what the cache holds; `slot` numbers the places where this is done."""
        half = x.shape[-1] // 2
        place = Place(0, x.shape[1]) if cache is None else cache.place(x.shape[1])
        held = x[..., :half] if cache is None else cache.hold(slot, x[..., :half])
        quarters = []
        for quarter, source in zip(held.split(half // 2, dim=-1), place.rows(self.sources.T).T, strict=True):
            moved = quarter[:, source.clamp(min=0)]
            quarters.append(moved * (source >= 0)[:, None].to(moved.dtype))
        return torch.cat((*quarters, x[..., half:]), dim=-1)
