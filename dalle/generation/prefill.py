"""The prefill of prompts: each text runs through the transformer once, whatever the number of its candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.kv_cache import KVCache
from dalle.models.dalle import DALLE


class PrefilledPrompts:
    """KV cache and logits after each prompt's text, computed once and dropped after the prompt's last candidate."""

    def __init__(self, model: DALLE, text: Tensor, negative: Tensor | None = None) -> None:
        """Take prompts [P, T], and in place of the model's null captions others of the same shape."""
        null = model.null_text(text) if negative is None else negative
        # Null captions of ids are all the same; those of features have the length of their prompt
        shared = bool((null == null[:1]).all())
        self.model, self.texts = model, model.trim(torch.cat((text, null[:1] if shared else null)))
        self.nulls = [len(text) + (0 if shared else prompt) for prompt in range(len(text))]  # prompt -> row of `texts`
        self.prefilled: dict[int, tuple[KVCache, Tensor]] = {}  # row of `texts` -> cache of one row, logits [V]
        self.cache: KVCache | None = None

    def start(self, prompts: list[int], guided: list[int]) -> tuple[KVCache, Tensor]:
        """A full-size cache with these candidates' texts, then a null caption for each of the `guided` candidates.

        Also returns the logits [rows, V]. The previous batch's cache is reused if it has as many rows, so that CUDA
        graphs of it stay valid.
        """
        rows = prompts + [self.nulls[prompts[candidate]] for candidate in guided]
        # Prompts come in order: those without candidates in this batch are done
        self.prefilled = {row: state for row, state in self.prefilled.items() if row in rows}
        fresh = sorted(set(rows) - set(self.prefilled))
        if fresh:
            logits, cache = self.model.prefill(self.texts[fresh])
            self.prefilled |= {row: (cache.row(i), logits[i]) for i, row in enumerate(fresh)}
        states = [self.prefilled[row] for row in rows]
        if self.cache is None or self.cache.keys.shape[1] != len(states):
            self.cache = None  # free the old one before allocating
            self.cache = self.model.new_cache(len(states))
        self.cache.load_prefixes([state for state, _ in states])
        return self.cache, torch.stack([logits for _, logits in states])
