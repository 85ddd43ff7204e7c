"""Byte-pair encoding: the merge loop that all our text tokenizers share, and a base class for those in pure Python."""

from __future__ import annotations

import heapq
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dalle.text_tokenizers.base import TextTokenizer

Symbol = TypeVar("Symbol", int, str)
Rule = Callable[[Symbol, Symbol], "tuple[float, Symbol] | None"]
"""Two adjacent symbols to (rank of their merge, merged symbol), or None if they do not merge; low ranks go first."""

_CACHE_WORDS = 1 << 16  # words whose tokens are cached


def merge(
    symbols: Sequence[Symbol], rule: Rule[Symbol], dropout: float = 0.0, rng: random.Random | None = None
) -> list[Symbol]:
    """Merge adjacent symbols until no rule applies: always the merge of lowest rank, and of equal ones the leftmost.

    With dropout this is algorithm 1 of Provilkov et al. (2020, arXiv 1910.13267), BPE-dropout: at each step every
    possible merge is skipped with probability `dropout`, the best of the others is applied, and a step that skips all
    of them is the last. Pass the symbols of one word at a time: a skipped merge gets another chance after each merge
    elsewhere, so in a longer sequence dropout would have less effect.

    Args:
        symbols: the smallest units, such as bytes or characters.
        rule: see `Rule`.
        dropout: probability of skipping a merge, in [0, 1).
        rng: draws the dropout; None disables it.

    Returns:
        The merged symbols, in order.
    """
    # A linked list over positions plus a heap of candidate merges: O(n log n), where rescanning would be O(n^2).
    pieces: list[Symbol | None] = list(symbols)  # the symbol that starts at i; None if merged into an earlier one
    end = len(pieces)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))  # neighbors by position; -1 and `end` are outside
    heap: list[tuple[float, int, Symbol, Symbol, Symbol]] = []

    def offer(left: int) -> None:
        if left < 0 or after[left] >= end:
            return
        first, second = pieces[left], pieces[after[left]]
        if first is not None and second is not None and (found := rule(first, second)) is not None:
            heapq.heappush(heap, (found[0], left, first, second, found[1]))

    for left in range(end):
        offer(left)
    skipped = []
    while heap:
        candidate = heapq.heappop(heap)
        _, left, first, second, joined = candidate
        # Entries are not removed from the heap when their symbols change, so stale ones are recognized here.
        if pieces[left] != first or after[left] == end or pieces[after[left]] != second:
            continue
        if rng is not None and dropout and rng.random() < dropout:
            skipped.append(candidate)
            continue
        right = after[left]
        pieces[left], pieces[right] = joined, None
        after[left] = after[right]
        if after[left] < end:
            before[after[left]] = left
        # They get another chance after each merge: see the docstring
        for other in skipped:
            heapq.heappush(heap, other)
        skipped = []
        offer(before[left])
        offer(left)
    return [symbol for symbol in pieces if symbol is not None]


class BPETokenizer(TextTokenizer):
    """A text tokenizer that splits captions into words and merges each word's symbols; subclasses define both.

    Attributes:
        rules: two ids -> (rank of their merge, id of the merged token).
    """

    rules: dict[tuple[int, int], tuple[int, int]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._cache: dict[tuple[int, ...], list[int]] = {}

    @abstractmethod
    def _words(self, text: str) -> list[list[int]]:
        """The ids of the smallest symbols of each word."""

    def _tokenize(self, texts: Sequence[str], dropout: float, rngs: Sequence[random.Random]) -> list[list[int]]:
        return [
            [i for word in self._words(text) for i in self._merge(word, dropout, rng)]
            for text, rng in zip(texts, rngs, strict=True)
        ]

    def _merge(self, word: list[int], dropout: float, rng: random.Random) -> list[int]:
        if dropout:
            return merge(word, self._rule, dropout, rng)
        # Captions repeat their words, so nearly all of them come from the cache.
        key = tuple(word)
        if key not in self._cache:
            if len(self._cache) >= _CACHE_WORDS:
                self._cache.clear()
            self._cache[key] = merge(word, self._rule)
        return self._cache[key]

    def _rule(self, first: int, second: int) -> tuple[float, int] | None:
        return self.rules.get((first, second))
