"""Images from embeddings, larger ones from small: how the diffusions of unCLIP are sampled. Knows no files, no words.

Images are float [B, 3, H, W] in [-1, 1] here, as the networks have them.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor

from dalle.config import config
from dalle.config.ranges import PositiveFloat, Probability, Range
from dalle.generation.diffusion.prediction import Denoiser, Limit, make_denoiser
from dalle.generation.diffusion.sample import SamplerConfig
from dalle.models.clip import CLIP, TextStates
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.latent_decoder import LatentDecoder
from dalle.models.noise_schedule import make_schedule
from dalle.models.upsampler import Upsampler, enlarged


@config
class DiffusionSamplingConfig:
    """How images are sampled."""

    guidance: Annotated[float, Range(0, ceiling=10**18, hint="1 is no guidance")] = 1.0
    """Classifier-free guidance scale of a decoder; 1 is none. Upsamplers have none."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Sampler and its steps."""
    percentile: Probability | None = None
    """Dynamic thresholding (arXiv 2205.11487, section 2.3): this share of the values, such as 0.995, is not clipped;
    null clips predicted images at their bound."""
    bound: PositiveFloat | None = None
    """Predicted images are clipped to [-bound, bound], or with a percentile at no more than it; null: 1, or none. Of
    latents it is none."""

    def __post_init__(self) -> None:
        self.limit()  # raises where the percentile is out of range

    def limit(self) -> Limit:
        """Bounds of predicted images."""
        if self.percentile is None:
            return Limit(self.bound or 1.0)
        return Limit(self.bound or float("inf"), self.percentile)

    def latent_limit(self) -> Limit | None:
        """Bounds of predicted latents, which unlike images have no range of their own."""
        return None if self.bound is None and self.percentile is None else self.limit()


def repeated(text: TextStates, count: int) -> TextStates:
    """One caption `count` times."""
    return TextStates(*(part.expand(count, *part.shape[1:]) for part in text))


def decoder_denoiser(
    decoder: DiffusionDecoder,
    embeds: Tensor,
    text: TextStates,
    empty: TextStates,
    guidance: float = 1.0,
    limit: Limit | None = None,
) -> Denoiser:
    """A decoder as samplers call it.

    Args:
        decoder: in eval mode.
        embeds: raw image embeddings [B, D].
        text: of B captions; the empty one where there is nothing to be said.
        empty: the caption "", of one row or of B.
        guidance: classifier-free guidance scale. Without condition it knows neither embedding nor caption.
        limit: bounds of predicted images; None leaves them, as inversion needs it.
    """
    # `nobody` drops the embedding of every row, for the unconditional prediction
    standard, nobody = decoder.standardize(embeds), torch.ones(len(embeds), dtype=torch.bool, device=embeds.device)
    nothing = repeated(empty, len(embeds)) if len(empty.states) == 1 else empty
    return make_denoiser(
        lambda x, steps: decoder(x, steps, standard, text),
        make_schedule(decoder.config.schedule),
        decoder.config.predicts,
        unconditional=lambda x, steps: decoder(x, steps, standard, nothing, nobody),
        guidance=guidance,
        limit=limit,
        learned_variance=decoder.config.learned_variance,
    )


def latent_denoiser(
    decoder: LatentDecoder, embeds: Tensor, nothing: Tensor, guidance: float = 1.0, limit: Limit | None = None
) -> Denoiser:
    """A decoder of latents as samplers call it.

    Args:
        decoder: in eval mode.
        embeds: raw image embeddings [B, D].
        nothing: what guidance leads away from, [1, D] or [B, D]: `no_image_embed`, or that of a negative prompt.
        guidance: classifier-free guidance scale.
        limit: bounds of predicted latents; None leaves them, as inversion needs it.
    """
    others = nothing.expand_as(embeds)  # one row or B
    return make_denoiser(
        lambda x, steps: decoder(x, steps, embeds),
        make_schedule(decoder.config.schedule),
        decoder.config.predicts,
        unconditional=lambda x, steps: decoder(x, steps, others),
        guidance=guidance,
        limit=limit,
        learned_variance=decoder.config.learned_variance,
    )


def upsampler_denoiser(
    upsampler: Upsampler, low: Tensor, limit: Limit | None = None, last: tuple[Upsampler, int] | None = None
) -> Denoiser:
    """An upsampler as samplers call it.

    Args:
        upsampler: in eval mode.
        low: small images [B, 3, h, h].
        limit: bounds of predicted images; None leaves them.
        last: another network, and the time step that is its own: Karlo has one for the last step.
    """
    large = enlarged(low.clamp(-1, 1), upsampler.config.image_size)  # samples may overshoot a little

    def denoiser(network: Upsampler) -> Denoiser:
        return make_denoiser(
            lambda x, steps: network(x, steps, large),
            make_schedule(network.config.schedule),
            network.config.predicts,
            limit=limit,
            learned_variance=network.config.learned_variance,
        )

    first = denoiser(upsampler)
    if last is None:
        return first
    other, own = denoiser(last[0]), last[1]
    return lambda x, step: other(x, step) if step == own else first(x, step)


def no_image_embed(clip: CLIP) -> Tensor:
    """The embedding [1, D] that stands for no image in a decoder of latents: that of an image normalized to zeros."""
    size = clip.config.image_size
    image = torch.tensor(clip.config.mean, device=clip.logit_scale.device).view(1, 3, 1, 1).expand(1, 3, size, size)
    return clip.encode_image(image, normalize=False)


def image_shape(model: DiffusionDecoder | LatentDecoder | Upsampler) -> tuple[int, int, int]:
    """Shape of the images or latents that a diffusion makes: what its noise has."""
    channels = model.config.channels if isinstance(model, LatentDecoder) else 3
    return channels, model.config.image_size, model.config.image_size


def to_unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1], with what lies outside brought in."""
    return ((images + 1) / 2).clamp(0, 1)


def from_unit(images: Tensor) -> Tensor:
    """And back."""
    return 2 * images - 1
