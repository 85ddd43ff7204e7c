"""The base of unCLIP's two priors: maps captions to the space of CLIP's image embeddings, and back from it.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125), section 2.2.

Shapes: B batch, T text positions, W width of CLIP's text states, D embedding, C width of the prior.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.config.ranges import Size
from dalle.models.clip import TextStates
from dalle.models.transformer_config import TransformerConfig

MIN_DEVIATION = 1e-6  # so that a constant dimension standardizes to 0 rather than nan


@config
class PriorShape:
    """The part of the architecture that both kinds of prior have."""

    transformer: TransformerConfig = TransformerConfig()
    """Architecture of the transformer."""
    embed_dim: Size = 128
    """Dimensions D of CLIP's embeddings."""
    text_width: Size = 192
    """Channels W of CLIP's text states."""
    text_length: Size = 24
    """Maximum caption length of the CLIP, in tokens."""
    null_caption: Literal["learned", "empty"] = "learned"
    """What stands for a dropped caption: learned states and a learned embedding, or the CLIP's own of the empty caption
    (Karlo's and Kandinsky's)."""

    def __post_init__(self) -> None:
        numbers = (self.embed_dim + self.text_width + self.text_length) * self.transformer.width
        check_total(
            numbers + self.embed_dim**2,
            f"embed_dim {self.embed_dim}, text_width {self.text_width}, text_length {self.text_length}, "
            f"transformer.width {self.transformer.width}",
        )


class Prior(nn.Module):
    """Predicts CLIP's image embedding from CLIP's text states and text embedding of a caption.

    It works on standardized embeddings (the training set's mean and deviation per dimension), as neither raw nor
    normalized embeddings come close to the unit variance of diffusion noise. These statistics are buffers, set once by
    `fit`. For classifier-free guidance, a dropped caption is replaced by a learned null caption, or by the empty one.
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
        self.null_states: nn.Parameter | None = None
        self.null_embed: nn.Parameter | None = None  # with `null_caption: empty` there is nothing to learn
        if shape.null_caption == "learned":
            self.null_states = nn.Parameter(torch.randn(shape.text_length, width) * 0.02)
            self.null_embed = nn.Parameter(torch.randn(width) * 0.02)
        for name in ("image", "text"):
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_deviation", torch.ones(dim))

    def fit(self, images: Tensor, texts: Tensor) -> None:
        """Compute the statistics of a training set's raw embeddings, [N, D] each, N at least 2.

        Raises:
            ValueError: fewer than 2 embeddings.
        """
        if len(images) < 2 or len(texts) < 2:
            raise ValueError(f"a prior needs at least 2 embeddings to compute statistics, got {len(images)}")
        for name, embeds in (("image", images), ("text", texts)):
            self.get_buffer(f"{name}_mean").copy_(embeds.mean(0))
            self.get_buffer(f"{name}_deviation").copy_(embeds.std(0).clamp(min=MIN_DEVIATION))  # raw ones, of this CLIP

    def standardize(self, images: Tensor) -> Tensor:
        """Raw image embeddings [B, D] to mean 0 and variance 1 per dimension."""
        return (images - self.image_mean) / self.image_deviation

    def unstandardize(self, images: Tensor) -> Tensor:
        """Invert `standardize`."""
        return images * self.image_deviation + self.image_mean

    def _text_tokens(self, text: TextStates, dropped: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens [B, T + 1, C] of the text states and the text embedding, and which are valid, bool [B, T + 1].

        With `null_caption: empty` the text of dropped rows must be that of the empty caption already.
        """
        batch, length = text.states.shape[:2]
        if length > self.text_length:
            raise ValueError(
                f"got captions of {length} tokens, but this prior reads at most {self.text_length}: use its own CLIP"
            )
        # Raw embeddings have another scale in each dimension and for each CLIP
        embeds = (text.embeds - self.text_mean) / self.text_deviation
        states, embed = self.states_in(text.states), self.embed_in(embeds)  # [B, T, C], [B, C]
        valid = text.mask
        if dropped is not None and self.null_states is not None and self.null_embed is not None:
            rows = dropped[:, None, None]
            states = torch.where(rows, self.null_states[:length].to(states.dtype), states)
            embed = torch.where(rows[:, 0], self.null_embed.to(embed.dtype), embed)
            valid = valid | dropped[:, None]  # the null caption has no padding
        tokens = torch.cat((states, embed[:, None]), dim=1)
        return tokens, torch.cat((valid, valid.new_ones(batch, 1)), dim=1)


def causal_mask(valid: Tensor, length: int) -> Tensor:
    """Causal mask that excludes padding; padding attends to itself, as softmax over nothing would give nan.

    Args:
        valid: bool [B, P], for the first P positions; all later ones are valid.
        length: total number of positions S.

    Returns:
        bool [B, 1, S, S].
    """
    seen = torch.cat((valid, valid.new_ones(len(valid), length - valid.shape[1])), dim=1)
    square = torch.ones(length, length, dtype=torch.bool, device=valid.device)
    # Causal and valid, or the token itself
    return (square.tril() & seen[:, None, :] | square.diag().diag())[:, None]
