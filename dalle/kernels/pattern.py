"""Where the keys of a sparse kind of attention lie: as slices for few queries, as blocks for many. No arithmetic here.

Letters: P text tokens, T queries, S keys; the T queries are the last of the S positions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dalle.kernels.masks import Kind, Mask, mask, visible

_BLOCK = 64  # queries of a block, about: fewer read the same keys more often, more compute more masked pairs


@dataclass(frozen=True)
class Pattern:
    """One of the kinds row, column and conv on one grid; `dalle.kernels.masks.mask` says what they mean.

    Attributes:
        kind: "row", "column" or "conv".
        text: P.
        width: columns of the grid.
        kernel: the window's side, of "conv".
    """

    kind: Kind
    text: int
    width: int
    kernel: int = 11

    @property
    def back(self) -> int:
        """How far behind an image token the farthest image token is that it sees; of row and conv."""
        return self.width if self.kind == "row" else self.kernel // 2 * (self.width + 1)

    def mask(self, length: int) -> Tensor:
        """The pattern as a mask, bool [S, S], for so many tokens."""
        rows = max(0, -(-(length - self.text) // self.width))
        return mask(self.kind, self.text, rows, self.width, self.kernel)[:length, :length]

    def keys(self, length: int) -> Tensor:
        """The keys that each of so many tokens sees, int [S, K], as many as the most see; -1 where one sees fewer."""
        with torch.device("cpu"):  # where a model is made without memory, too
            seen = self.mask(length)
            keys = torch.full((length, int(seen.sum(1).max())), -1)
        query, key = seen.nonzero(as_tuple=True)
        keys[query, seen.cumsum(1)[query, key] - 1] = key
        return keys

    def slices(self, start: int, end: int) -> list[slice]:
        """The keys that the queries `start` .. `end` - 1, all of the image, may look at.

        Of one query they are exactly these; of several, all that any of them sees lie within, and some others may.

        Returns:
            Slices that do not overlap, each of at least one key.
        """
        text, last = self.text, end - 1
        if self.kind == "row":
            image = [slice(max(text, start - self.width), end)]
        elif self.kind == "column":
            many = end - start >= self.width
            image = [slice(text, end)] if many else [self._column(query, end) for query in range(start, end)]
        else:
            image, reach = [], self.kernel // 2
            for rows in range(reach, -1, -1):
                first = max(text, start - rows * self.width - reach)
                behind = min(last, last - rows * self.width + reach) + 1
                if image and first <= image[-1].stop:
                    image[-1] = slice(image[-1].start, max(behind, image[-1].stop))
                elif first < behind:
                    image.append(slice(first, behind))
        return [slice(0, text), *image] if text else image

    def _column(self, query: int, end: int) -> slice:
        return slice(self.text + (query - self.text) % self.width, end, self.width)

    def pairs(self, start: int, end: int) -> int:
        """Pairs of query and key that `blocks` and the text make, for the queries `start` .. `end` - 1."""
        first, last = max(start - self.text, 0), end - self.text
        queries, keys = self.block(first, last)
        if self.kind == "column":
            count = -(-self.width // (queries // self.rows(first, last)))
        else:
            count = -(-(last - first) // queries)
        return (end - start) * self.text + count * queries * keys

    def covered(self, start: int, end: int) -> int:
        """Keys in `slices`."""
        return sum(len(range(*part.indices(end))) for part in self.slices(start, end))

    def block(self, start: int, end: int) -> tuple[int, int]:
        """Queries and keys of each of `blocks`, for the tokens `start` .. `end` - 1 of the image."""
        if self.kind == "column":
            columns = min(self.width, max(1, _BLOCK // self.rows(start, end)))
            return columns * self.rows(start, end), columns * -(-end // self.width)
        queries = min(_BLOCK, end - start)
        return queries, queries + min(self.back, end)

    def rows(self, start: int, end: int) -> int:
        """Rows of the grid that have one of the image tokens `start` .. `end` - 1."""
        return -(-end // self.width) - start // self.width


class Blocks(NamedTuple):
    """How queries and keys of the image are put together in G blocks.

    Attributes:
        queries: int [G * Q], which query of the image stands where; some twice, for blocks are of one size.
        keys: int [G * K], which key of the image; what is none or not seen has `bias` -inf.
        bias: float [1, G, Q, K], 0 or -inf, to be added to scores.
        places: int [T], where in `queries` each query of the image is.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor
    places: Tensor


@functools.lru_cache(maxsize=64)
def blocks(pattern: Pattern, start: int, end: int, dtype: torch.dtype, device: torch.device) -> Blocks:
    """Blocks for the image tokens among the queries `start` .. `end` - 1, and keys 0 .. `end` - 1."""
    first, last = max(start - pattern.text, 0), end - pattern.text
    if pattern.kind == "column":
        queries, keys = _columns(pattern, first, last)
    else:
        count, width = pattern.block(first, last)
        begin = torch.arange(first, last, count)[:, None]  # [G, 1]
        queries, keys = begin + torch.arange(count), begin + torch.arange(count - width, count)
    real = (queries >= first) & (queries < last)
    seen = visible(pattern.kind, queries[:, :, None] - keys[:, None, :], pattern.width, pattern.kernel)
    seen &= real[:, :, None] & ((keys >= 0) & (keys < last))[:, None, :]
    places = torch.empty(last - first, dtype=torch.int64)
    places[queries[real] - first] = real.flatten().nonzero().flatten()
    bias = torch.zeros(1, *seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
    index = (queries - first).clamp(0, last - first - 1).flatten(), keys.clamp(0, last - 1).flatten()
    return Blocks(*(tensor.to(device) for tensor in (*index, bias, places)))


def _columns(pattern: Pattern, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Each block is some columns: queries of the rows that have any, keys of all rows. [G, Q], [G, K], image tokens."""
    queries, width = pattern.block(first, last)[0], pattern.width
    rows = pattern.rows(first, last)
    columns = torch.arange(-(-width // (queries // rows)) * (queries // rows)).view(-1, 1, queries // rows)
    outside = (columns >= width) * (last + width) * width  # of the last block, where the columns do not divide
    top = torch.arange(first // width, first // width + rows)[:, None] * width
    return (columns + outside + top).flatten(1), (columns + outside + torch.arange(0, last, width)[:, None]).flatten(1)


@dataclass(frozen=True, eq=False)
class SparseMask:
    """What a layer's tokens may look at, where that has a pattern.

    Attributes:
        pattern: the pattern.
        dense: the same as bool [T, S]; the T queries are the last of S tokens.
    """

    pattern: Pattern
    dense: Tensor


@dataclass(frozen=True, eq=False)
class GatheredKeys:
    """The keys that one query of each row sees, as tensors, for where its place is known to the device alone.

    Attributes:
        keys: int [K].
        real: bool [K]; False where this is none of them.
    """

    keys: Tensor
    real: Tensor


LayerMask = Mask | SparseMask | GatheredKeys
