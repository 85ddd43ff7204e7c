"""What both priors of unCLIP share: from a caption to the space of CLIP's image embeddings, and back out of it.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125), section 2.2.

Letters: B batch, T text positions, W width of CLIP's text states, D embedding, C width of the prior.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.models.clip import TextStates
from dalle.models.transformer import TransformerConfig
from dalle.ranges import Size

LEAST_DEVIATION = 1e-6  # a dimension that never changes stays where it is


@config
class PriorShape:
    """What both kinds of prior have."""

    transformer: TransformerConfig = TransformerConfig()
    """Shape of the transformer."""
    embed_dim: Size = 128
    """Dimensions D of the CLIP's embeddings."""
    text_width: Size = 192
    """Channels W of the CLIP's text states."""
    text_length: Size = 24
    """Longest caption of the CLIP in tokens."""

    def __post_init__(self) -> None:
        numbers = (self.embed_dim + self.text_width + self.text_length) * self.transformer.width
        check_total(
            numbers + self.embed_dim**2,
            f"embed_dim {self.embed_dim}, text_width {self.text_width}, text_length {self.text_length}, "
            f"transformer.width {self.transformer.width}",
        )


class Prior(nn.Module):
    """A caption as CLIP's text tower gives it to an image embedding as CLIP's image tower would give it.

    It works on embeddings less the training set's mean, over its deviation, dimension by dimension: raw and unit
    embeddings are far from the unit variance that noise has. These statistics are buffers, set once by `fit`. A caption
    that is dropped is a learnt one, for guidance.
    """

    image_mean: Tensor
    image_deviation: Tensor
    text_mean: Tensor
    text_deviation: Tensor

    def __init__(self, shape: PriorShape) -> None:
        super().__init__()
        width, dim = shape.transformer.width, shape.embed_dim
        self.text_length = shape.text_length
        self.states_in = nn.Linear(shape.text_width, width)
        self.embed_in = nn.Linear(dim, width)
        self.null_states = nn.Parameter(torch.randn(shape.text_length, width) * 0.02)
        self.null_embed = nn.Parameter(torch.randn(width) * 0.02)
        for name in ("image", "text"):
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_deviation", torch.ones(dim))

    def fit(self, images: Tensor, texts: Tensor) -> None:
        """Take the statistics of a training set's raw embeddings, [N, D] each, N at least 2."""
        if len(images) < 2 or len(texts) < 2:
            raise ValueError(f"a prior needs 2 or more embeddings to take statistics of, got {len(images)}")
        for name, embeds in (("image", images), ("text", texts)):
            self.get_buffer(f"{name}_mean").copy_(embeds.mean(0))
            self.get_buffer(f"{name}_deviation").copy_(embeds.std(0).clamp(min=LEAST_DEVIATION))

    def standardize(self, images: Tensor) -> Tensor:
        """Raw image embeddings [B, D] to the space of the prior."""
        return (images - self.image_mean) / self.image_deviation

    def raw(self, images: Tensor) -> Tensor:
        """And back."""
        return images * self.image_deviation + self.image_mean

    def _text_tokens(self, text: TextStates, dropped: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens [B, T + 1, C] of states and embedding, and which of them are real, bool [B, T + 1]."""
        batch, length = text.states.shape[:2]
        if length > self.text_length:
            raise ValueError(f"got captions of {length} tokens, this prior reads {self.text_length}")
        embeds = (text.embeds - self.text_mean) / self.text_deviation
        states, embed = self.states_in(text.states), self.embed_in(embeds)
        real = text.mask
        if dropped is not None:
            rows = dropped[:, None, None]
            states = torch.where(rows, self.null_states[:length].to(states.dtype), states)
            embed = torch.where(rows[:, 0], self.null_embed.to(embed.dtype), embed)
            real = real | dropped[:, None]
        tokens = torch.cat((states, embed[:, None]), dim=1)
        return tokens, torch.cat((real, real.new_ones(batch, 1)), dim=1)


def causal_mask(real: Tensor, length: int) -> Tensor:
    """Who sees whom: those before, if real. Padding sees itself, so that its state, which nothing reads, is a number.

    Args:
        real: bool [B, P] of the first positions; all behind them are real.
        length: positions S in all.

    Returns:
        bool [B, 1, S, S].
    """
    seen = torch.cat((real, real.new_ones(len(real), length - real.shape[1])), dim=1)
    square = torch.ones(length, length, dtype=torch.bool, device=real.device)
    return (square.tril() & seen[:, None, :] | square.diag().diag())[:, None]
