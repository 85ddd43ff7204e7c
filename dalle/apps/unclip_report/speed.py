"""Seconds that each part of an unCLIP takes for some candidates of one prompt."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from dalle.apps.unclip_report.held_out import Rows
from dalle.apps.unclip_report.latents import without_upsampler
from dalle.generation.rerank import score
from dalle.pipelines.unclip import UnCLIP

CANDIDATES, STEPS, GUIDANCE = 8, 25, 3.0


@torch.no_grad()
def speed_table(pipe: UnCLIP, prompt: str, steps: int = STEPS) -> Rows:
    """Sample candidates of one prompt, part by part, after a first round that does not count.

    Returns:
        For the prior, the decoder, the upsampler, the scores and all together, "seconds" for `CANDIDATES` images and
        "share" of the whole.
    """
    base, captions = without_upsampler(pipe), [prompt] * CANDIDATES
    z = pipe.embed(captions)
    images = base.decode(z, captions, steps, GUIDANCE)

    def seconds(work: Callable[[], object]) -> float:
        work()  # caches and native code are made in the first round
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    small = seconds(lambda: base.decode(z, captions, steps, GUIDANCE))
    found = {"prior": seconds(lambda: pipe.embed(captions)), f"decoder, {steps} steps, guidance {GUIDANCE:g}": small}
    if pipe.upsampler is not None:
        whole = seconds(lambda: pipe.decode(z, captions, steps, GUIDANCE))
        found[f"upsampler, {pipe.sampling.upsampler.sampler.steps} steps"] = max(0.0, whole - small)
    judge = pipe.judge
    if judge is not None:
        found["scores"] = seconds(lambda: score(judge, images, captions))
    total = sum(found.values())
    rows: Rows = {title: {"seconds": value, "share": value / total} for title, value in found.items()}
    return rows | {"all": {"images": CANDIDATES, "seconds": total, "share": 1.0}}
