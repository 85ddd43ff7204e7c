"""The order in which an image's tokens are drawn: its codes in raster order, in some models with row ends between them.

Shapes: B images, N = h w codes, L tokens; without row ends L is N.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dalle.generation.options import SamplingConfig
from dalle.models.dalle_config import DALLEConfig
from dalle.models.row_ends import code_places, insert


class TokenStream:
    """Between the codes of an image and the tokens that a model draws. Row ends are tokens that are known.

    Attributes:
        length: tokens of an image, L.
    """

    def __init__(self, config: DALLEConfig) -> None:
        self.row_ends, self.columns, self.length = config.row_ends, config.grid[1], config.token_length
        self.end, self.codes = config.image_vocab, config.image_length

    def of_codes(self, values: Tensor, between: float | bool | None = None) -> Tensor:
        """Values of the codes [B, N] as those of the tokens [B, L].

        Args:
            values: codes, or something else of each code.
            between: what row ends have; None: their id.
        """
        if not self.row_ends:
            return values
        if between is None:
            return insert(values, self.columns, self.end)[:, : self.length]
        tokens = torch.full((len(values), self.length), between, dtype=values.dtype, device=values.device)
        return tokens.index_copy(1, code_places(self.codes, self.columns, values.device), values)

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L] without row ends: codes [B, N]."""
        return tokens[:, code_places(self.codes, self.columns, tokens.device)] if self.row_ends else tokens

    def count_codes(self, tokens: int) -> int:
        """How many of the first `tokens` tokens are codes."""
        # Each row end is one token after `columns` codes
        return tokens - tokens // (self.columns + 1) if self.row_ends else tokens

    def of_options(self, sampling: SamplingConfig) -> SamplingConfig:
        """The same options with `guidance_until` counted in tokens."""
        until = sampling.guidance_until
        if not self.row_ends or until is None:
            return sampling
        return replace(sampling, guidance_until=until + until // self.columns)  # and the row ends between them
