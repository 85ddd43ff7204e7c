"""Byte-pair encoding: the merging that all our text tokenizers share, and what those in pure Python have in common."""

from __future__ import annotations

import heapq
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dalle.text_tokenizers.base import TextTokenizer

Symbol = TypeVar("Symbol", int, str)
Rule = Callable[[Symbol, Symbol], "tuple[float, Symbol] | None"]
"""Two neighbours -> the place of their merge in the order of merges, first the smallest, and what they become."""

_KEPT = 1 << 16  # words whose tokens are remembered


def merge(
    symbols: Sequence[Symbol], rule: Rule[Symbol], dropout: float = 0.0, chance: random.Random | None = None
) -> list[Symbol]:
    """Merge neighbours until no rule fits: each time the first rule in order, of several places the leftmost.

    With dropout it is algorithm 1 of Provilkov et al. (2020), BPE-dropout: each possible merge is left out of a step
    with probability `dropout`, the best of the others is made, and a step that leaves out all is the last. The symbols
    must then be those of one word: a merge that was left out is offered again after each merge elsewhere, so that the
    more words there were, the less would be cut otherwise.
    """
    held: list[Symbol | None] = list(symbols)  # what starts at i; None once merged into one before it
    end = len(held)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    heap: list[tuple[float, int, Symbol, Symbol, Symbol]] = []

    def offer(left: int) -> None:
        if left < 0 or after[left] >= end:
            return
        first, second = held[left], held[after[left]]
        if first is not None and second is not None and (found := rule(first, second)) is not None:
            heapq.heappush(heap, (found[0], left, first, second, found[1]))

    for left in range(end):
        offer(left)
    left_out = []
    while heap:
        candidate = heapq.heappop(heap)
        _, left, first, second, joined = candidate
        if held[left] != first or after[left] == end or held[after[left]] != second:
            continue  # an earlier merge took one of the two
        if chance is not None and dropout and chance.random() < dropout:
            left_out.append(candidate)
            continue
        right = after[left]
        held[left], held[right] = joined, None
        after[left] = after[right]
        if after[left] < end:
            before[after[left]] = left
        for other in left_out:
            heapq.heappush(heap, other)
        left_out = []
        offer(before[left])
        offer(left)
    return [symbol for symbol in held if symbol is not None]


class BPETokenizer(TextTokenizer):
    """A text tokenizer that splits captions into words and merges the symbols of each; subclasses say which.

    Attributes:
        rules: two ids -> place of their merge in the order of merges, and the id they become.
    """

    rules: dict[tuple[int, int], tuple[int, int]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._known: dict[tuple[int, ...], list[int]] = {}

    @abstractmethod
    def _words(self, text: str) -> list[list[int]]:
        """The ids of the single symbols of each word."""

    def _pieces(self, texts: Sequence[str], dropout: float, chances: Sequence[random.Random]) -> list[list[int]]:
        return [
            [i for word in self._words(text) for i in self._merged(word, dropout, chance)]
            for text, chance in zip(texts, chances, strict=True)
        ]

    def _merged(self, word: list[int], dropout: float, chance: random.Random) -> list[int]:
        if dropout:
            return merge(word, self._rule, dropout, chance)
        key = tuple(word)
        if key not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = merge(word, self._rule)
        return self._known[key]

    def _rule(self, first: int, second: int) -> tuple[float, int] | None:
        return self.rules.get((first, second))
