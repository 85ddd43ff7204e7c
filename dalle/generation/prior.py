"""Samples image embeddings from a prior of either kind. Knows no images, words or files.

Shapes: B candidates of all captions, D embedding, K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.config import config
from dalle.config.ranges import PositiveFloat, Range
from dalle.generation.diffusion.prediction import Limit, Network, make_denoiser
from dalle.generation.diffusion.sample import Noise, SamplerConfig, candidate_noise
from dalle.generation.diffusion.sample import sample as sample_diffusion
from dalle.generation.diffusion_decoder import repeated
from dalle.generation.options import SamplingConfig
from dalle.generation.sampling import guide, sample
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import TextStates
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.noise_schedule import make_schedule


@config
class PriorSamplingConfig:
    """How image embeddings are sampled from a prior."""

    guidance: Annotated[float, Range(0, ceiling=10**18, hint="1 is no guidance")] = 1.0
    """Classifier-free guidance scale; 1 is off (guiding the prior hurts, according to the paper, section 5.5)."""
    samples: Annotated[int, Range(1, ceiling=2**20)] = 2
    """diffusion: sample this many and keep the one that best matches its caption (section 2.2)."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """diffusion: the sampler and its steps."""
    bound: PositiveFloat | None = None
    """diffusion: predicted standardized embeddings are clipped to [-bound, bound]; null leaves them as they are."""
    temperature: Annotated[float, Range(0, ceiling=10**38, hint="0 takes the likeliest bucket")] = 1.0
    """autoregressive: 0 always takes the most likely bucket; 1 samples from the model's own distribution."""
    top_k: Annotated[int, Range(1, ceiling=10**12, hint="null draws from all")] | None = None
    """autoregressive: sample from the k most likely buckets only; null: from all."""

    def __post_init__(self) -> None:
        self.token_sampling()  # its own check raises if the temperature is too low

    def token_sampling(self) -> SamplingConfig:
        """The autoregressive prior's options as a `SamplingConfig`."""
        return SamplingConfig(guidance=self.guidance, temperature=self.temperature, top_k=self.top_k)


@torch.no_grad()
def sample_embeddings(
    prior: DiffusionPrior | AutoregressivePrior,
    text: TextStates,
    seeds: Sequence[int],
    options: PriorSamplingConfig,
    noise: Noise | None = None,
    nothing: TextStates | None = None,
) -> Tensor:
    """Sample one image embedding for each caption.

    A candidate depends only on the prior, its caption, its seed and the options, not on the rest of the batch.

    Args:
        prior: in eval mode.
        text: of B captions.
        seeds: B seeds; to get several candidates, repeat the caption.
        options: how to sample.
        noise: for a diffusion prior, a source of noise [B * samples, D] to use instead of the seeds.
        nothing: what guidance leads away from: the text of one caption, or of B; None is the learned null caption. A
            prior whose null caption is the empty one needs it.

    Returns:
        float32 [B, D], like CLIP's own embeddings before normalization.

    Raises:
        ValueError: the numbers of seeds and captions differ, or guidance needs `nothing`.
    """
    if len(seeds) != len(text.states):
        raise ValueError(f"got {len(text.states)} captions with {len(seeds)} seeds; give each caption one seed")
    if isinstance(prior, AutoregressivePrior):
        return _sample_components(prior, text, seeds, options, nothing)
    count, dim, device = options.samples, prior.config.embed_dim, text.states.device
    # Each caption `count` times, next to each other
    each = TextStates(*(part.repeat_interleave(count, 0) for part in text))  # [B * count, ...]
    own = candidate_noise(seeds, (dim,), device)

    def candidates() -> Tensor:
        return torch.stack([own() for _ in range(count)], dim=1).flatten(0, 1)  # all samples of a caption together

    schedule = make_schedule(prior.config.schedule)
    denoise = make_denoiser(
        _after_text(prior, each),
        schedule,
        "sample",
        unconditional=_without_text(prior, text, nothing, options) if options.guidance != 1 else None,
        guidance=options.guidance,
        limit=None if options.bound is None else Limit(options.bound),
    )
    # Raw embeddings [B * count, D]
    embeds = prior.unstandardize(sample_diffusion(denoise, schedule, options.sampler, noise or candidates))
    embeds = embeds.unflatten(0, (-1, count))
    # The paper keeps the better of two samples, by the dot product with the text embedding
    match = F.cosine_similarity(embeds, text.embeds[:, None], dim=-1)  # [B, count]
    return embeds[torch.arange(len(embeds), device=device), match.argmax(1)]


def _after_text(prior: DiffusionPrior, text: TextStates, dropped: Tensor | None = None) -> Network:
    """The prior after the text, which it reads once for all steps."""
    cache, valid = prior.prefill(text, dropped)
    return lambda x, steps: prior.denoise(x, steps, cache, valid)


def _without_text(
    prior: DiffusionPrior, text: TextStates, nothing: TextStates | None, options: PriorSamplingConfig
) -> Network:
    """The prior after what guidance leads away from, for each sample of each caption."""
    other, unknown = _null_text(prior, text, nothing, options.guidance)
    each = TextStates(*(part.repeat_interleave(options.samples, 0) for part in other))
    dropped = torch.ones(len(each.states), dtype=torch.bool, device=each.states.device) if unknown else None
    return _after_text(prior, each, dropped)


def _null_text(
    prior: DiffusionPrior | AutoregressivePrior, text: TextStates, nothing: TextStates | None, guidance: float
) -> tuple[TextStates, bool]:
    """The text of B rows that guidance leads away from, and whether the prior takes these rows for dropped ones."""
    empty = prior.config.null_caption == "empty"
    if nothing is None:
        if empty and guidance != 1:
            raise ValueError("the null caption of this prior is the empty one: pass its text as `nothing`")
        return text, True
    return repeated(nothing, len(text.states)) if len(nothing.states) == 1 else nothing, empty


def _sample_components(
    prior: AutoregressivePrior,
    text: TextStates,
    seeds: Sequence[int],
    options: PriorSamplingConfig,
    nothing: TextStates | None,
) -> Tensor:
    """Sample one component after the other, with the dot product from the upper half of its buckets (section 2.2)."""
    # One number for the dot product and one for each component, from each candidate's own generator
    # [K + 1] each
    numbers = [torch.rand(prior.components + 1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    uniform = torch.stack(numbers).to(text.states.device)
    half = prior.config.dot_buckets // 2
    # In the upper half: a good match with the caption
    dots = half + (uniform[:, 0] * (prior.config.dot_buckets - half)).long()
    guided, unknown = options.guidance != 1, False
    if guided:  # the unconditional half follows the conditional one in the batch
        other, unknown = _null_text(prior, text, nothing, options.guidance)
        text, dots = TextStates(*map(torch.cat, zip(text, other, strict=True))), torch.cat((dots, dots))
    dropped = (torch.arange(len(dots), device=dots.device) >= len(seeds)) if guided and unknown else None
    logits, cache, valid = prior.prefill(text, dots, dropped)
    ids: list[Tensor] = []
    for component in range(prior.components):
        if component:
            last = torch.cat((ids[-1], ids[-1])) if guided else ids[-1]  # both halves continue with the same bucket
            logits = prior.extend(last, cache, valid)
        if guided:
            logits = guide(logits[: len(seeds)], logits[len(seeds) :], options.guidance)
        # Number 0 was the dot product's
        ids.append(sample(logits, uniform[:, component + 1], options.token_sampling()))
    return prior.decode(torch.stack(ids, dim=1))
