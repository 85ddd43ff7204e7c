"""Decoding of sequences that are at different positions, one token of each at a time.

Shapes: B sequences of a forward pass, H heads, S positions up to the farthest, D head width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.kernels.kv_cache import KVCache, Positions
from dalle.kernels.masks import Mask


class RaggedPositions(Positions):
    """One position of each sequence; masks end at the farthest, and are false behind a sequence's own."""

    ragged = True

    def __init__(self, index: Tensor) -> None:
        """Take the positions, int64 [B]."""
        super().__init__(int(index.min()), int(index.max()) + 1)
        self.index = index

    @property
    def causal(self) -> Mask:  # type: ignore[override]
        """Bool [B, 1, 1, S]."""
        return self.relative_distance(self.index.device) >= 0

    def rows(self, table: Tensor, offset: int = 0) -> Tensor:
        """See `Positions.rows`; [B, 1, ...]."""
        return table[self.index - offset][:, None]

    def angles(self, table: Tensor) -> Tensor:
        """See `Positions.angles`; [B, 1, 1, D / 2]."""
        return self.rows(table)[:, None]

    def cell_embeddings(self, rows: Tensor, columns: Tensor, offset: int) -> Tensor:
        """See `Positions.cell_embeddings`; [B, 1, C]."""
        cell, width = self.index - offset, columns.shape[1]
        return (rows[cell // width, 0] + columns[0, cell % width])[:, None]

    def mask_block(self, table: Tensor) -> Tensor:
        """See `Positions.mask_block`; of a table [S, S], [B, 1, 1, S]."""
        return table[self.index, : self.end][:, None, None]

    def relative_distance(self, device: torch.device) -> Tensor:
        """See `Positions.relative_distance`; [B, 1, 1, S]."""
        return (self.index[:, None] - torch.arange(self.end, device=device))[:, None, None]


class RaggedCache(KVCache):
    """A view of another cache's buffers for some of its sequences, each at its own position; on a CPU.

    `place` says which; a forward pass takes one token of each. There is no padding and no token shift.
    """

    def __init__(self, cache: KVCache) -> None:
        """Share the buffers of `cache`."""
        self.keys, self.values, self.shift_inputs = cache.keys, cache.values, cache.shift_inputs
        self.padding, self.prefix = None, 0
        self.place([], [])

    def place(self, slots: Sequence[int], positions: Sequence[int]) -> None:
        """Choose the sequences of the next forward passes.

        Args:
            slots: where they are in the buffers, B different ones.
            positions: how many tokens each has stored.
        """
        self.places = torch.tensor(slots, dtype=torch.int64), torch.tensor(positions, dtype=torch.int64)
        self.position = max(positions, default=0)

    @property
    def batch(self) -> int:
        """Sequences that were chosen."""
        assert self.places is not None
        return len(self.places[0])

    def next_positions(self, count: int) -> Positions:
        """The position of each sequence's next token; `count` must be 1.

        Raises:
            IndexError: there is no room for one of them.
        """
        assert count == 1 and self.places is not None
        if self.position >= self.keys.shape[3]:
            raise IndexError(f"cannot add a token at position {self.position}: the cache has {self.keys.shape[3]}")
        return RaggedPositions(self.places[1])

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one token of one layer; returns copies of all keys and values, zeros behind those of a sequence."""
        assert self.places is not None
        slots, positions = self.places
        end = self.position + 1
        # What is masked is multiplied by 0, which leaves nan of uninitialized memory as it is
        unused = (torch.arange(end) > positions[:, None])[:, None, :, None]
        found = []
        for buffer, new in ((self.keys[layer], k), (self.values[layer], v)):
            buffer[slots, :, positions] = new[:, :, 0].to(buffer.dtype)
            found.append(buffer[slots, :, :end].masked_fill_(unused, 0.0))
        return found[0], found[1]

    def advance(self, count: int) -> None:
        """Count `count` more tokens of each sequence as stored."""
        assert self.places is not None
        # A new tensor, as positions of the forward pass that ends hold the old one
        self.places = self.places[0], self.places[1] + count
        self.position += count
