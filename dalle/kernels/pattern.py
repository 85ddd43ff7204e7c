"""Sparse attention patterns: where the visible keys are, as slices for few queries, as blocks for many. No arithmetic.

Shapes: P text tokens, T queries, S keys; the T queries are the last of the S positions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dalle.kernels.masks import Kind, Mask, mask, visible

_BLOCK_QUERIES = 64  # approximate; smaller blocks read the same keys more often, larger ones compute more masked pairs


@dataclass(frozen=True)
class Pattern:
    """One of the kinds row, column and conv on a given grid; `dalle.kernels.masks.mask` defines them.

    Attributes:
        kind: "row", "column" or "conv".
        text: number of text tokens P.
        width: columns of the grid.
        kernel: side of the window of "conv".
    """

    kind: Kind
    text: int
    width: int
    kernel: int = 11

    @property
    def max_distance(self) -> int:
        """Distance from an image token to the farthest image token it sees; for row and conv only."""
        # Rows up, and as far to the left
        return self.width if self.kind == "row" else self.kernel // 2 * (self.width + 1)

    def mask(self, length: int) -> Tensor:
        """The pattern as a mask for `length` tokens, bool [S, S]."""
        rows = max(0, -(-(length - self.text) // self.width))
        return mask(self.kind, self.text, rows, self.width, self.kernel)[:length, :length]

    def keys(self, length: int) -> Tensor:
        """Indices of the keys that each of `length` tokens sees, int [S, K], K the maximum count; padded with -1."""
        with torch.device("cpu"):  # real numbers, even inside a `torch.device("meta")` context
            seen = self.mask(length)
            keys = torch.full((length, int(seen.sum(1).max())), -1)
        query, key = seen.nonzero(as_tuple=True)
        keys[query, seen.cumsum(1)[query, key] - 1] = key  # each key's slot among those of its query
        return keys

    def slices(self, start: int, end: int) -> list[slice]:
        """The keys that queries `start` .. `end` - 1, all image tokens, may attend to.

        For a single query these are exact; for several, they cover all keys visible to any of them, and maybe others.

        Returns:
            Slices that do not overlap, each with at least one key.
        """
        text, last = self.text, end - 1
        if self.kind == "row":
            image = [slice(max(text, start - self.width), end)]
        elif self.kind == "column":
            many = end - start >= self.width  # a full line of queries touches every column
            image = [slice(text, end)] if many else [self._column(query, end) for query in range(start, end)]
        else:  # one slice per row of the window, merged where they touch
            image, reach = [], self.kernel // 2
            for rows in range(reach, -1, -1):
                first = max(text, start - rows * self.width - reach)
                # On this line: from the left edge of the first query's window to the right edge of the last one's,
                # never after it
                stop = min(last, last - rows * self.width + reach) + 1
                if image and first <= image[-1].stop:
                    image[-1] = slice(image[-1].start, max(stop, image[-1].stop))
                elif first < stop:
                    image.append(slice(first, stop))
        return [slice(0, text), *image] if text else image

    def _column(self, query: int, end: int) -> slice:
        return slice(self.text + (query - self.text) % self.width, end, self.width)

    def count_pairs(self, start: int, end: int) -> int:
        """Number of query-key pairs that `attention_blocks` and the text compute for queries `start` .. `end` - 1."""
        first, last = max(start - self.text, 0), end - self.text
        queries, keys = self.block_size(first, last)
        if self.kind == "column":
            count = -(-self.width // (queries // self.rows(first, last)))
        else:
            count = -(-(last - first) // queries)
        return (end - start) * self.text + count * queries * keys

    def count_keys(self, start: int, end: int) -> int:
        """Number of keys in `slices`."""
        return sum(len(range(*part.indices(end))) for part in self.slices(start, end))

    def block_size(self, start: int, end: int) -> tuple[int, int]:
        """Queries and keys per block, for image tokens `start` .. `end` - 1."""
        if self.kind == "column":
            columns = min(self.width, max(1, _BLOCK_QUERIES // self.rows(start, end)))  # about 64 queries
            # Queries of these rows, keys of all rows
            return columns * self.rows(start, end), columns * -(-end // self.width)
        queries = min(_BLOCK_QUERIES, end - start)
        # The block itself, and what its first query sees before it
        return queries, queries + min(self.max_distance, end)

    def rows(self, start: int, end: int) -> int:
        """Number of grid rows that image tokens `start` .. `end` - 1 touch."""
        return -(-end // self.width) - start // self.width


class AttentionBlocks(NamedTuple):
    """Queries and keys of the image, gathered into G blocks of Q queries and K keys each.

    Attributes:
        queries: int [G * Q], image query in each slot; some occur twice, as all blocks have the same size.
        keys: int [G * K], image key in each slot; invalid and invisible ones have a `bias` of -inf.
        bias: float [1, G, Q, K], 0 or -inf, added to the scores.
        slots: int [T], the index in `queries` of each image query.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor
    slots: Tensor


@functools.lru_cache(maxsize=64)
def attention_blocks(
    pattern: Pattern, start: int, end: int, dtype: torch.dtype, device: torch.device
) -> AttentionBlocks:
    """Blocks for the image tokens among queries `start` .. `end` - 1, and keys 0 .. `end` - 1."""
    first, last = max(start - pattern.text, 0), end - pattern.text
    if pattern.kind == "column":
        queries, keys = _columns(pattern, first, last)
    else:
        # Consecutive queries share most of their keys: those of the block and as many before it as the first one sees
        count, width = pattern.block_size(first, last)
        begin = torch.arange(first, last, count)[:, None]  # [G, 1]
        queries, keys = begin + torch.arange(count), begin + torch.arange(count - width, count)
    # Blocks are of equal size: the last may reach past the end, and whole columns begin before `first`
    valid = (queries >= first) & (queries < last)
    seen = visible(pattern.kind, queries[:, :, None] - keys[:, None, :], pattern.width, pattern.kernel)
    seen &= valid[:, :, None] & ((keys >= 0) & (keys < last))[:, None, :]
    slots = torch.empty(last - first, dtype=torch.int64)
    slots[queries[valid] - first] = valid.flatten().nonzero().flatten()  # the slot of each real query
    bias = torch.zeros(1, *seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
    # Slots outside get the index of some real token, as gathering needs one; the bias hides them
    index = (queries - first).clamp(0, last - first - 1).flatten(), keys.clamp(0, last - 1).flatten()
    return AttentionBlocks(*(tensor.to(device) for tensor in (*index, bias, slots)))


def _columns(pattern: Pattern, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Blocks of whole columns: queries of the rows that have any, keys of all rows. [G, Q], [G, K], image tokens."""
    queries, width = pattern.block_size(first, last)[0], pattern.width
    rows = pattern.rows(first, last)
    columns = torch.arange(-(-width // (queries // rows)) * (queries // rows)).view(-1, 1, queries // rows)
    # In the last block, if the columns do not divide evenly: an index that is out of range whatever is added to it
    outside = (columns >= width) * (last + width) * width
    top = torch.arange(first // width, first // width + rows)[:, None] * width
    return (columns + outside + top).flatten(1), (columns + outside + torch.arange(0, last, width)[:, None]).flatten(1)


@dataclass(frozen=True, eq=False)
class SparseMask:
    """A layer's mask that follows a sparse pattern.

    Attributes:
        pattern: the pattern.
        dense: the same mask as bool [T, S]; the T queries are the last of S tokens.
    """

    pattern: Pattern
    dense: Tensor


@dataclass(frozen=True, eq=False)
class GatheredKeys:
    """Key indices visible to a single query, as device tensors, for when only the device knows the query's position.

    Attributes:
        keys: int [K].
        valid: bool [K]; False for padding.
    """

    keys: Tensor
    valid: Tensor


LayerMask = Mask | SparseMask | GatheredKeys
