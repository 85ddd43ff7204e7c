"""What a decode holds: keys and values of the tokens so far, and where the next ones stand.

Letters: L layers, B batch, H heads, S positions, T new tokens, D head width, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.masks import Mask


class Positions:
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

    def place(self, count: int) -> Positions:
        """Where the next `count` tokens stand.

        Raises:
            IndexError: the cache has no room for them.
        """
        room = self.keys.shape[3]
        if not 0 <= self.position <= room - count:
            raise IndexError(f"{count} tokens at position {self.position} of a cache with room for {room}")
        return Positions(self.position, self.position + count)

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
        place = Positions(0, x.shape[1]) if cache is None else cache.place(x.shape[1])
        held = x[..., :half] if cache is None else cache.hold(slot, x[..., :half])
        quarters = []
        for quarter, source in zip(held.split(half // 2, dim=-1), place.rows(self.sources.T).T, strict=True):
            moved = quarter[:, source.clamp(min=0)]
            quarters.append(moved * (source >= 0)[:, None].to(moved.dtype))
        return torch.cat((*quarters, x[..., half:]), dim=-1)
