"""Samples candidates for prompts and caches their codes on disk, so that metrics can be computed again at no cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dalle.apps.embed import fingerprint
from dalle.apps.judging.cache import cached_tensors
from dalle.config import to_dict
from dalle.pipelines.text_to_image import TextToImage

_PROMPTS_PER_FILE = 8  # sampled together and cached in one file
_DECODE_BATCH = 32


@dataclass(frozen=True)
class Candidates:
    """Samples for P prompts, n candidates each, with the same n seeds.

    Attributes:
        codes: int64 [P, n, h, w]; candidate 0 is what n = 1 samples.
        ranked_first: int64 [P], the candidate that the pipeline ranks first; None without a CLIP.
    """

    codes: Tensor
    ranked_first: Tensor | None

    def first(self) -> Tensor:
        """The codes of candidate 0, [P, h, w]."""
        return self.codes[:, 0]

    def best(self) -> Tensor | None:
        """The codes of the candidates that the pipeline ranks first, [P, h, w]; None without a CLIP."""
        if self.ranked_first is None:
            return None
        return self.codes[torch.arange(len(self.codes)), self.ranked_first]


def sample_candidates(
    pipe: TextToImage,
    prompts: Sequence[str],
    candidates: int,
    folder: Path,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Candidates:
    """Sample candidates, or read what the same model sampled before with the same prompts, seeds and options.

    Args:
        pipe: its `sampling` holds the sampling options.
        prompts: P of them.
        candidates: n for each prompt, with the seeds `seed` to `seed + n - 1`.
        folder: the cache.
        seed: of the first candidate.
        progress: called with the number of prompts done after each group of them.
    """
    parts = []
    for first in range(0, len(prompts), _PROMPTS_PER_FILE):
        group = list(prompts[first : first + _PROMPTS_PER_FILE])
        file = folder / f"codes-{_cache_key(pipe, group, candidates, seed)}.safetensors"
        parts.append(cached_tensors(file, partial(_sample, pipe, group, candidates, seed), ["codes"]))
        if progress is not None:
            progress(len(group))
    codes = torch.cat([part["codes"] for part in parts]).long()
    ranked = all("ranked_first" in part for part in parts)
    return Candidates(codes, torch.cat([part["ranked_first"] for part in parts]).long() if ranked else None)


@torch.no_grad()
def decode_images(pipe: TextToImage, codes: Tensor) -> Tensor:
    """Decode codes [N, h, w] to float32 [N, 3, H, W] in [0, 1], on the CPU, rounded to 8 bits as image files are."""
    device = pipe.image_tokenizer.last_layer.device
    parts = [pipe.image_tokenizer.decode(part.to(device)).float().cpu() for part in codes.split(_DECODE_BATCH)]
    return (torch.cat(parts) * 255).round() / 255


def _sample(pipe: TextToImage, prompts: list[str], candidates: int, seed: int) -> dict[str, Tensor]:
    """Codes int32 [P, n, h, w] in the order of the seeds and, with a CLIP, which are ranked first, int32 [P]."""
    codes, first = [], []
    for result in pipe(prompts, n=candidates, seed=seed):
        assert result.codes is not None
        order = torch.tensor(result.seeds).argsort()  # results are ordered by their ranking
        codes.append(result.codes[order].int())
        first.append(result.seeds[0] - seed)
    tensors = {"codes": torch.stack(codes)}
    return tensors if pipe.clip is None else tensors | {"ranked_first": torch.tensor(first, dtype=torch.int32)}


def _cache_key(pipe: TextToImage, prompts: list[str], candidates: int, seed: int) -> str:
    """Hash of everything that candidates and their ranking depend on."""
    ranked_by = None if pipe.clip is None else fingerprint(pipe.clip)
    content = [pipe.model_hash, to_dict(pipe.sampling), ranked_by, prompts, candidates, seed]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]
