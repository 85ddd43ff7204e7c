"""Jacobi decoding: guess several image tokens, check all guesses in one pass, keep the correct ones. Knows no model.

Shapes: B candidates, N image tokens, n tokens of one pass, V image vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def jacobi_decode(
    run: Callable[[Tensor, int], Tensor],
    sample_tokens: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    codes: Tensor,
    known_mask: Tensor,
    uniform: Tensor,
    start: int,
    window: int,
    on_progress: Callable[[int], None],
) -> None:
    """Fill in codes [B, N] from token `start` on, with exactly the tokens that sequential decoding would sample.

    Jacobi iteration (Song et al. 2021, arXiv 2002.03629; for images Teng et al. 2024, arXiv 2410.01699) with each
    token's uniform number fixed in advance. A pass over guesses yields, at each position, the token that belongs there
    if all guesses before it are right. So its outputs are right up to and including the first one that differs from
    the guess: at least one token per pass. As sequential decoding with the same numbers samples the same tokens (up to
    floating-point ties), there is no acceptance test, and the distribution is unchanged.

    All candidates share one window, which begins where the slowest of them is.

    Args:
        run: takes tokens [B, n] and the position of the first, before which all is final. Returns the logits after each
            of them, [rows, n, V].
        sample_tokens: takes logits and uniform numbers [B, n]; returns tokens, int64 [B, n].
        logits: of token `start`, [rows, 1, V].
        codes: int64; given where `known_mask` is True and before `start`, written elsewhere.
        known_mask: bool [B, N], True where the token is given.
        uniform: [B, N] in [0, 1).
        start: the first token to generate, below N.
        window: tokens per pass, at least 1.
        on_progress: called after each pass with the number of tokens that became final, over all candidates.
    """
    batch, length = codes.shape

    def sampled(logits: Tensor, begin: int, end: int) -> list[list[int]]:
        part = slice(begin, end)
        return torch.where(known_mask[:, part], codes[:, part], sample_tokens(logits, uniform[:, part])).tolist()

    guesses = [_Guesses(row, known) for row, known in zip(codes.tolist(), known_mask.tolist(), strict=True)]
    begin, end = start, start + 1
    found = sampled(logits, begin, end)
    while True:
        # Candidates share a window, so the slowest one decides how far it moves
        final = begin + min(one.update(begin, row) for one, row in zip(guesses, found, strict=True))
        codes[:, begin:final] = torch.tensor(found, device=codes.device)[:, : final - begin]
        on_progress(batch * (final - begin))
        if final == length:
            return
        begin, end = final, min(final + window, length)
        # The token before the window is fed too, as its output is the window's first token
        tokens = torch.tensor([one.guess(begin, end) for one in guesses], device=codes.device)  # [B, n + 1]
        found = sampled(run(tokens[:, :-1], begin - 1), begin, end)


class _Guesses:
    """Guesses of one candidate's tokens.

    First choice is the token that last came out at this position after the same predecessor; then, as in plain Jacobi
    iteration, the one that last came out here at all; and where nothing has come out yet, the predecessor itself.
    """

    def __init__(self, codes: list[int], known: list[bool]) -> None:
        self.tokens = codes  # final ones, then the last guesses
        self.latest = [code if given else None for code, given in zip(codes, known, strict=True)]
        self.after: list[dict[int, int]] = [{} for _ in codes]  # per position: predecessor -> token that came out

    def guess(self, begin: int, end: int) -> list[int]:
        """The token before `begin`, which is final, and guesses for `begin` to `end` - 1."""
        for position in range(begin, end):
            before, latest = self.tokens[position - 1], self.latest[position]
            self.tokens[position] = self.after[position].get(before, before if latest is None else latest)
        return self.tokens[begin - 1 : end]

    def update(self, begin: int, found: list[int]) -> int:
        """Take the tokens that came out from `begin` on; returns how many of them are final."""
        same = [token == guess for token, guess in zip(found, self.tokens[begin:], strict=False)]
        right = same.index(False) + 1 if False in same else len(same)  # the first wrong guess still gives a right token
        for position, token in enumerate(found, begin):
            self.after[position][self.tokens[position - 1]] = token  # for position 0 never looked up
            self.latest[position] = token
        self.tokens[begin : begin + right] = found[:right]
        return right
