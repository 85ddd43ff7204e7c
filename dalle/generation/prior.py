"""Draws image embeddings from a prior, of either kind. Knows nothing of images, words or files.

Letters: B candidates of all captions, D embedding, K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.config import config
from dalle.generation.diffusion.prediction import make_denoiser
from dalle.generation.diffusion.sample import Noise, SamplerConfig, candidate_noise
from dalle.generation.diffusion.sample import sample as sample_diffusion
from dalle.generation.options import SamplingConfig
from dalle.generation.sampling import guide, sample
from dalle.models.autoregressive_prior import AutoregressivePrior
from dalle.models.clip import TextStates
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.noise_schedule import make_schedule
from dalle.ranges import Range


@config
class PriorSamplingConfig:
    """How embeddings are drawn."""

    guidance: Annotated[float, Range(0, ceiling=10**18, hint="1 is no guidance")] = 1.0
    """Classifier-free guidance scale; 1 is none (the paper found that guiding the prior hurts, section 5.5)."""
    samples: Annotated[int, Range(1, ceiling=2**20)] = 2
    """diffusion: draw so many and keep the one that fits its caption best (section 2.2)."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """diffusion: sampler and its steps."""
    temperature: Annotated[float, Range(0, ceiling=10**38, hint="0 takes the likeliest bucket")] = 1.0
    """autoregressive: 0 always takes the likeliest bucket; 1 is the model's own distribution."""
    top_k: Annotated[int, Range(1, ceiling=10**12, hint="null draws from all")] | None = None
    """autoregressive: draw from the k likeliest buckets only; null from all."""

    def token_sampling(self) -> SamplingConfig:
        """The options of the autoregressive prior as those of any tokens."""
        return SamplingConfig(guidance=self.guidance, temperature=self.temperature, top_k=self.top_k)


@torch.no_grad()
def draw_embeddings(
    prior: DiffusionPrior | AutoregressivePrior,
    text: TextStates,
    seeds: Sequence[int],
    options: PriorSamplingConfig,
    noise: Noise | None = None,
) -> Tensor:
    """One image embedding for each caption.

    A candidate depends on the prior, its caption, its seed and the options alone, not on the rest of the batch.

    Args:
        prior: in eval mode.
        text: of B captions.
        seeds: B of them; the same caption may come several times.
        options: how to draw.
        noise: of a diffusion prior, plays back numbers [B * samples, D] in place of the seeds'.

    Returns:
        float32 [B, D], as CLIP gives them, not of unit length.

    Raises:
        ValueError: another number of seeds than captions.
    """
    if len(seeds) != len(text.states):
        raise ValueError(f"{len(text.states)} captions with {len(seeds)} seeds; give each caption one")
    if isinstance(prior, AutoregressivePrior):
        return _draw_tokens(prior, text, seeds, options)
    count, dim, device = options.samples, prior.config.embed_dim, text.states.device
    each = TextStates(*(part.repeat_interleave(count, 0) for part in text))
    own = candidate_noise(seeds, (dim,), device)

    def drawn() -> Tensor:
        return torch.stack([own() for _ in range(count)], dim=1).flatten(0, 1)

    nobody = torch.ones(len(each.states), dtype=torch.bool, device=device)
    schedule = make_schedule(prior.config.schedule)
    denoise = make_denoiser(
        lambda x, steps: prior(x, steps, each),
        schedule,
        "sample",
        unconditional=lambda x, steps: prior(x, steps, each, nobody),
        guidance=options.guidance,
    )
    embeds = prior.raw(sample_diffusion(denoise, schedule, options.sampler, noise or drawn))
    embeds = embeds.unflatten(0, (-1, count))
    fit = F.cosine_similarity(embeds, text.embeds[:, None], dim=-1)  # [B, count]
    return embeds[torch.arange(len(embeds), device=device), fit.argmax(1)]


def _draw_tokens(
    prior: AutoregressivePrior, text: TextStates, seeds: Sequence[int], options: PriorSamplingConfig
) -> Tensor:
    """One bucket after the other; the dot product is from the top half of its distribution (section 2.2)."""
    numbers = [torch.rand(prior.components + 1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    uniform = torch.stack(numbers).to(text.states.device)
    half = prior.config.dot_buckets // 2
    dots = half + (uniform[:, 0] * (prior.config.dot_buckets - half)).long()
    guided = options.guidance != 1
    if guided:  # the unconditional half behind the other, in one pass
        text, dots = TextStates(*(torch.cat((part, part)) for part in text)), torch.cat((dots, dots))
    dropped = torch.arange(len(dots), device=dots.device) >= len(seeds)
    logits, cache, real = prior.prefill(text, dots, dropped)
    ids: list[Tensor] = []
    for component in range(prior.components):
        if component:
            last = torch.cat((ids[-1], ids[-1])) if guided else ids[-1]
            logits = prior.extend(last, cache, real)
        if guided:
            logits = guide(logits[: len(seeds)], logits[len(seeds) :], options.guidance)
        ids.append(sample(logits, uniform[:, component + 1], options.token_sampling()))
    return prior.embeds(torch.stack(ids, dim=1))
