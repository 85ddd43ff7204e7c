"""Draws several image tokens a step: guess them, check all guesses in one pass, keep what holds. Knows no model.

Letters: B candidates, N image tokens, n tokens of one pass, V image vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def jacobi_decode(
    run: Callable[[Tensor, int], Tensor],
    choose: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    codes: Tensor,
    keep: Tensor,
    uniform: Tensor,
    lead: int,
    window: int,
    step: Callable[[int], None],
) -> None:
    """Fill in codes [B, N] from token `lead` on, with the tokens that drawing one after the other gives.

    Jacobi's iteration (Song et al. 2021, arXiv 2002.03629; for images Teng et al. 2024, arXiv 2410.01699), with each
    token's uniform number held fast. A pass over guesses gives, at each place, the token that belongs there if all
    guesses before it are right. So what comes out is right up to and with the first place where it is not what was
    guessed: at least one token a pass. As one-by-one drawing with the same numbers has the same tokens, up to
    floating-point ties, nothing is accepted or rejected by chance and the distribution is the same by itself.

    All candidates share one window, which begins where the slowest of them stands.

    Args:
        run: takes tokens [B, n] and the place of the first; what went before is settled. Returns logits of the tokens
            that follow each of them, [rows, n, V].
        choose: takes logits and uniform numbers [B, n]; returns the tokens that these draw, int64 [B, n].
        logits: of token `lead`, [rows, 1, V].
        codes: int64; where `keep` holds and before `lead` they are given, elsewhere they are written.
        keep: bool [B, N], True = the token is what `codes` says.
        uniform: [B, N] in [0, 1).
        lead: the first token to draw, below N.
        window: tokens that are checked in one pass, at least 1.
        step: called after each pass with how many tokens it has settled, over all candidates.
    """
    batch, length = codes.shape

    def drawn(logits: Tensor, begin: int, end: int) -> list[list[int]]:
        part = slice(begin, end)
        return torch.where(keep[:, part], codes[:, part], choose(logits, uniform[:, part])).tolist()

    guesses = [_Guesses(row, own) for row, own in zip(codes.tolist(), keep.tolist(), strict=True)]
    begin, end = lead, lead + 1
    found = drawn(logits, begin, end)
    while True:
        settled = begin + min(one.learn(begin, row) for one, row in zip(guesses, found, strict=True))
        codes[:, begin:settled] = torch.tensor(found, device=codes.device)[:, : settled - begin]
        step(batch * (settled - begin))
        if settled == length:
            return
        begin, end = settled, min(settled + window, length)
        tokens = torch.tensor([one.guess(begin, end) for one in guesses], device=codes.device)  # [B, n + 1]
        found = drawn(run(tokens[:, :-1], begin - 1), begin, end)


class _Guesses:
    """What one candidate's tokens may be.

    The best guess is what came out at this place when the token before it was the same one; Jacobi's own, what came
    out last whatever stood before, comes second; where nothing has come out yet, the token before is said again.
    """

    def __init__(self, codes: list[int], keep: list[bool]) -> None:
        self.tokens = codes  # settled, then what was guessed last
        self.latest = [code if kept else None for code, kept in zip(codes, keep, strict=True)]
        self.after: list[dict[int, int]] = [{} for _ in codes]  # of each place: the token before -> what came out

    def guess(self, begin: int, end: int) -> list[int]:
        """The token before `begin`, which is settled, and guesses of those from `begin` to `end`."""
        for place in range(begin, end):
            before, latest = self.tokens[place - 1], self.latest[place]
            self.tokens[place] = self.after[place].get(before, before if latest is None else latest)
        return self.tokens[begin - 1 : end]

    def learn(self, begin: int, found: list[int]) -> int:
        """Take what came out from `begin` on; returns how many of these are right."""
        same = [token == guess for token, guess in zip(found, self.tokens[begin:], strict=False)]
        right = same.index(False) + 1 if False in same else len(same)
        for place, token in enumerate(found, begin):
            self.after[place][self.tokens[place - 1]] = token  # of place 0 nobody asks
            self.latest[place] = token
        self.tokens[begin : begin + right] = found[:right]
        return right
