"""What a pipeline is asked for: prompts with seeds and options, and the numbers of a call, checked."""

from __future__ import annotations

from dataclasses import dataclass

from dalle.generation.options import SamplingConfig
from dalle.pipelines.init_image import InitImage


@dataclass(frozen=True)
class Request:
    """Candidates of one prompt, with options of their own."""

    prompt: str
    seeds: tuple[int, ...]  # K of them, at least one; each is a candidate
    sampling: SamplingConfig
    init_image: InitImage | None = None  # made by `TextToImage.encode_init_image`
    scored: bool = True  # whether CLIP, if there is one, scores them


def check_request(prompts: list[str], n: int, keep: int | None, seed: int, ranks: bool) -> int:
    """How many candidates to keep, after refusing what cannot be sampled; `ranks`: whether there is a CLIP."""
    if not prompts:
        raise ValueError("no prompt given: give at least one")
    if n < 1:
        raise ValueError(f"n is {n}: draw at least 1 candidate")
    if not 0 <= seed <= 2**63 - n:
        raise ValueError(f"seed is {seed}: give a number from 0 to 2^63 - n")
    keep = n if keep is None else keep
    if not 1 <= keep <= n:
        raise ValueError(f"keep is {keep} of n={n} candidates: keep from 1 to {n}")
    if keep < n and not ranks:
        raise ValueError(f"this model has no CLIP to choose {keep} of {n} candidates: give one (clip), or keep all {n}")
    return keep
