"""unCLIP's diffusion prior: a causal transformer that denoises an image embedding.

Shapes: as in `dalle.models.prior`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import config
from dalle.kernels.kv_cache import KVCache
from dalle.models.clip import TextStates
from dalle.models.noise_schedule import CosineConfig, ScheduleConfig
from dalle.models.prior import Prior, PriorShape, causal_mask
from dalle.models.time_embedding import TimeEmbedding
from dalle.models.transformer import Transformer

_OWN = 3  # tokens after the text's: time step, noised embedding, query


@config
class DiffusionPriorConfig(PriorShape):
    """Architecture of a diffusion prior."""

    kind: Literal["diffusion"] = "diffusion"
    """Gaussian diffusion of the image embedding."""
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    """Noise schedule."""


class DiffusionPrior(Prior):
    """Predicts the clean embedding (arXiv 2204.06125, section 2.2).

    The sequence is `[text states][text embedding][time step][noised embedding][learned query]`; the output at the query
    is projected to the prediction.
    """

    def __init__(self, config: DiffusionPriorConfig) -> None:
        super().__init__(config)
        self.config = config
        width = config.transformer.width
        self.time = TimeEmbedding(width, width)
        self.noised_in = nn.Linear(config.embed_dim, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        # The text, and four tokens of the class's docstring
        self.positions = nn.Parameter(torch.randn(config.text_length + 4, width) * 0.01)
        self.transformer = Transformer(config.transformer)
        self.out = nn.Linear(width, config.embed_dim)

    def forward(self, noised: Tensor, steps: Tensor, text: TextStates, dropped: Tensor | None = None) -> Tensor:
        """Predict the clean embedding, in standardized form.

        Args:
            noised: [B, D], the standardized embedding with noise added.
            steps: int64 [B], time steps of the schedule.
            text: of B captions, T at most `config.text_length`; masked tokens are not attended to.
            dropped: bool [B], True for rows whose caption is replaced by the learned null caption; None: no row.

        Returns:
            float32 [B, D].

        Raises:
            ValueError: more text positions than the model has.
        """
        tokens, valid = self._prefix(text, dropped)
        x = torch.cat((tokens, self._own_tokens(noised, steps)), dim=1)
        x = F.dropout(x, self.config.transformer.dropout, self.training)
        predicted: Tensor = self.out(self.transformer(x, causal_mask(valid, x.shape[1]))[:, -1])  # at the query
        return predicted.float()

    def prefill(self, text: TextStates, dropped: Tensor | None = None) -> tuple[KVCache, Tensor]:
        """Run the text, once for all steps of a sampler: the mask is causal, so it does not see what follows.

        Returns:
            A cache with room for the other tokens; which text tokens are valid, bool [B, T + 1].
        """
        tokens, valid = self._prefix(text, dropped)
        cache = self.transformer.new_cache(len(tokens), tokens.shape[1] + _OWN)
        self.transformer(tokens, causal_mask(valid, tokens.shape[1]), cache=cache)
        return cache, valid

    def denoise(self, noised: Tensor, steps: Tensor, cache: KVCache, valid: Tensor) -> Tensor:
        """`forward` after `prefill`: noised [B, D] and steps int64 [B] to the clean embedding, float32 [B, D]."""
        seen = causal_mask(valid, valid.shape[1] + _OWN)[:, :, -_OWN:]
        states = self.transformer(self._own_tokens(noised, steps), seen, cache=cache)
        cache.position -= _OWN  # the next step's tokens replace these
        predicted: Tensor = self.out(states[:, -1])  # at the query
        return predicted.float()

    def _prefix(self, text: TextStates, dropped: Tensor | None) -> tuple[Tensor, Tensor]:
        """The text states and the text embedding with their positions, and which are valid, bool."""
        tokens, valid = self._text_tokens(text, dropped)
        # Positions of the last four tokens count from the end, so they do not depend on this batch's text length
        positions = torch.cat((self.positions[: text.states.shape[1]], self.positions[-1 - _OWN : -_OWN]))
        return tokens + positions, valid

    def _own_tokens(self, noised: Tensor, steps: Tensor) -> Tensor:
        """Time step, noised embedding and query with their positions, [B, 3, C]."""
        own = (self.time(steps), self.noised_in(noised), self.query.expand(len(noised), -1))
        return torch.stack([part.to(self.positions.dtype) for part in own], dim=1) + self.positions[-_OWN:]
