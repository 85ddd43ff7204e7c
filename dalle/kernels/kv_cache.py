"""The state of decoding: keys and values of the tokens so far, the positions of the next ones, and token shift.

Shapes: L layers, B batch, H heads, S positions, T new tokens, D head width, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.masks import Mask


class Positions:
    """The positions `start` to `end - 1` of a forward pass's tokens, and their entries in tables over all positions."""

    causal: Mask = "causal"
    on_device = False  # whether only the device knows the positions
    ragged = False  # whether each sequence is at a position of its own, so that what is [T, ...] here is [B, T, ...]

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def rows(self, table: Tensor, offset: int = 0) -> Tensor:
        """Their rows of a table whose first row belongs to position `offset`, [T, ...]."""
        return table[self.start - offset : self.end - offset]

    def angles(self, table: Tensor) -> Tensor:
        """Their rows of a rotary table, [T, D / 2], or with a dimension for the heads, [B, 1, T, D / 2]."""
        return self.rows(table)

    def cell_embeddings(self, rows: Tensor, columns: Tensor, offset: int) -> Tensor:
        """Row embeddings [h, 1, C] + column embeddings [1, w, C] of image tokens, which begin at `offset`: [T, C]."""
        start, end, width = self.start - offset, self.end - offset, columns.shape[1]
        # Sum only over the grid rows that are touched, and cut the ends off
        first = start // width
        part = (rows[first : -(-end // width)] + columns).flatten(0, 1)  # [touched rows * w, C]
        return part[start - first * width : end - first * width]

    def mask_block(self, table: Tensor) -> Tensor:
        """The part of a mask [..., S, S] for these queries and the keys up to the last of them, [..., T, end]."""
        return table[..., self.start : self.end, : self.end]

    def relative_distance(self, device: torch.device) -> Tensor:
        """Query position minus key position, int [T, end]; negative for keys after the query."""
        queries = torch.arange(self.start, self.end, device=device)
        return queries[:, None] - torch.arange(self.end, device=device)


class KVCache:
    """Keys and values of all layers, allocated once at full size; belongs to one model with fixed weights.

    Layer first, then batch and heads: a layer's keys of one head are contiguous over the positions, which is the order
    attention reads them in.

    Attributes:
        position: number of tokens stored. A Python integer, so that no step waits for the device. It may be decreased:
            the next tokens then overwrite what was stored.
        keys: [L, B, H, S, D].
        values: [L, B, H, S, D].
        shift_inputs: [2 L, B, S, shifted], the channels that `TokenShift` reads; empty if `shifted` is 0.
        padding: bool [B, P], True for prefix tokens that must not be attended to; None: all may.
        prefix: number of prefix tokens P, once a model has stored them.
        places: of sequences at different positions, where they are in the buffers and their positions, int64 [B] each.
    """

    places: tuple[Tensor, Tensor] | None = None

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
        # Not zeroed: only positions that were stored are read
        self.keys = torch.empty(depth, batch, heads, length, dim, device=device, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        # Two branches per layer: attention, feed-forward
        self.shift_inputs = torch.empty(2 * depth, batch, length, shifted, device=device, dtype=dtype)
        self.padding: Tensor | None = None
        self.prefix = 0

    @property
    def batch(self) -> int:
        """Sequences of a forward pass, B."""
        return self.keys.shape[1]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new tokens of one layer; call `advance` once all layers have stored theirs.

        Args:
            layer: 0-based.
            k: [B, H, T, D].
            v: [B, H, T, D].

        Returns:
            Views of all keys and values so far, the new ones last: [B, H, position + T, D] each.
        """
        start, count = self.position, k.shape[-2]
        keys, values = self.keys[layer], self.values[layer]
        # Written in place and returned as views: concatenating would copy the whole cache in each step
        keys.narrow(2, start, count).copy_(k)
        values.narrow(2, start, count).copy_(v)
        return keys.narrow(2, 0, start + count), values.narrow(2, 0, start + count)

    def next_positions(self, count: int) -> Positions:
        """The positions of the next `count` tokens.

        Raises:
            IndexError: the cache has no room for them.
        """
        room = self.keys.shape[3]
        if not 0 <= self.position <= room - count:
            raise IndexError(
                f"cannot add {count} tokens at position {self.position}: this cache has room for {room} in all"
            )
        return Positions(self.position, self.position + count)

    def store_shift_input(self, slot: int, channels: Tensor) -> Tensor:
        """Store channels [B, T, shifted] of the next tokens for `TokenShift`; returns those of all tokens so far."""
        end = self.position + channels.shape[1]
        self.shift_inputs[slot, :, self.position : end] = channels
        return self.shift_inputs[slot, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` more tokens as stored."""
        self.position += count

    def load_prefixes(self, sources: list[KVCache]) -> None:
        """Start over: copy the only row of `sources[b]` to row b; all sources must hold equally many tokens."""
        self.position, self.prefix = sources[0].position, sources[0].prefix
        # The candidates of a prompt begin as copies of its one prefilled row
        for row, source in enumerate(sources):
            self.keys[:, row, :, : self.position] = source.keys[:, 0, :, : self.position]
            self.values[:, row, :, : self.position] = source.values[:, 0, :, : self.position]
            self.shift_inputs[:, row, : self.position] = source.shift_inputs[:, 0, : self.position]
        padding = [source.padding for source in sources if source.padding is not None]
        self.padding = torch.cat(padding) if padding else None

    def rows(self, start: int, end: int) -> KVCache:
        """A cache that is a view of rows `start` to `end - 1`."""
        view = object.__new__(KVCache)  # without `__init__`, which would allocate
        view.position, view.prefix = self.position, self.prefix
        view.keys, view.values = self.keys[:, start:end], self.values[:, start:end]
        view.shift_inputs = self.shift_inputs[:, start:end]
        view.padding = None if self.padding is None else self.padding[start:end]
        return view

    def row(self, index: int) -> KVCache:
        """A cache that is a view of one row."""
        return self.rows(index, index + 1)


class TokenShift:
    """Replaces the first and the second quarter of each token's channels by those of earlier tokens.

    DALLE-pytorch's `shift_tokens`: for text both quarters come from the previous token; for the image the first comes
    from the token above, the second from the token to the left. Where there is none, the channels are 0.
    """

    def __init__(self, prefix: int, height: int, width: int, device: torch.device | str | None = None) -> None:
        """Precompute the source of every token, for `prefix` text tokens and height x width image tokens."""
        text = torch.arange(prefix) - 1
        cell = torch.arange(height * width)
        above = torch.where(cell >= width, prefix + cell - width, -1)  # -1: there is none above the first row
        left = torch.where(cell % width > 0, prefix + cell - 1, -1)  # -1: nor to the left of the first column
        self.sources = torch.stack((torch.cat((text, above)), torch.cat((text, left)))).to(device)  # [2, S]

    def __call__(self, x: Tensor, cache: KVCache | None, slot: int) -> Tensor:
        """Shift tokens [B, T, C] that follow those in the cache; `slot` numbers the branches, two per layer."""
        half = x.shape[-1] // 2  # the other half stays as it is, so only this one needs to be stored
        positions = Positions(0, x.shape[1]) if cache is None else cache.next_positions(x.shape[1])
        inputs = x[..., :half] if cache is None else cache.store_shift_input(slot, x[..., :half])
        sources = positions.rows(self.sources.T).T  # [2, T]; `rows` slices the first dimension, so transposed
        quarters = []
        for quarter, source in zip(inputs.split(half // 2, dim=-1), sources, strict=True):
            # By a product and not by indexing with a mask, whose shape a CUDA graph could not know
            moved = quarter[:, source.clamp(min=0)]
            quarters.append(moved * (source >= 0)[:, None].to(moved.dtype))
        return torch.cat((*quarters, x[..., half:]), dim=-1)
