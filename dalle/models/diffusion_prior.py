"""The diffusion prior of unCLIP: a causal transformer that takes the noise off an image embedding.

Letters as in `dalle.models.prior`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import config
from dalle.models.clip import TextStates
from dalle.models.noise_schedule import CosineConfig, ScheduleConfig
from dalle.models.prior import Prior, PriorShape, causal_mask
from dalle.models.time_embedding import TimeEmbedding
from dalle.models.transformer import Transformer


@config
class DiffusionPriorConfig(PriorShape):
    """A prior that denoises."""

    kind: Literal["diffusion"] = "diffusion"
    """Gaussian diffusion of the embedding."""
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    """Noise of the steps."""


class DiffusionPrior(Prior):
    """Predicts the clean embedding (arXiv 2204.06125, section 2.2).

    The sequence is [text states][text embedding][time step][noised embedding][learnt query]; the state at the query is
    projected to the prediction.
    """

    def __init__(self, config: DiffusionPriorConfig) -> None:
        super().__init__(config)
        self.config = config
        width = config.transformer.width
        self.time = TimeEmbedding(width, width)
        self.noised_in = nn.Linear(config.embed_dim, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.text_length + 4, width) * 0.01)
        self.transformer = Transformer(config.transformer)
        self.out = nn.Linear(width, config.embed_dim)

    def forward(self, noised: Tensor, steps: Tensor, text: TextStates, dropped: Tensor | None = None) -> Tensor:
        """Predict the clean embedding, standardized.

        Args:
            noised: [B, D], standardized and noised.
            steps: int64 [B], of the schedule.
            text: of B captions, T at most `config.text_length`; what is masked does not count.
            dropped: bool [B], whose caption is the learnt one of no text; None: nobody's.

        Returns:
            float32 [B, D].

        Raises:
            ValueError: more text positions than the model has.
        """
        tokens, real = self._text_tokens(text, dropped)
        own = (self.time(steps), self.noised_in(noised), self.query.expand(len(noised), -1))
        x = torch.cat((tokens, torch.stack([part.to(tokens.dtype) for part in own], dim=1)), dim=1)
        # Counted from the end: the last four have their places whatever the length of the padding
        places = torch.cat((self.positions[: text.states.shape[1]], self.positions[-4:]))
        x = F.dropout(x + places, self.config.transformer.dropout, self.training)
        predicted: Tensor = self.out(self.transformer(x, causal_mask(real, x.shape[1]))[:, -1])
        return predicted.float()
