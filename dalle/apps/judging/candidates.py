"""Draws the candidates that are judged, and keeps their codes on disk, so that a table can be made again at no cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle.apps.embed import fingerprint
from dalle.checkpoints.tensors import read_tensors, write_tensors
from dalle.config import to_dict
from dalle.files import atomic_file
from dalle.pipelines.text_to_image import TextToImage

_PROMPTS = 8  # that are drawn together, and kept in one file
_DECODED = 32


@dataclass(frozen=True)
class Candidates:
    """What a model draws for P prompts with the same n seeds.

    Attributes:
        codes: int64 [P, n, h, w]; candidate 0 is what n = 1 draws.
        scores: float32 [P, n], of the CLIP that ranks; None without one.
    """

    codes: Tensor
    scores: Tensor | None

    def first(self) -> Tensor:
        """The codes of candidate 0, [P, h, w]."""
        return self.codes[:, 0]

    def best(self) -> Tensor | None:
        """The codes of the candidates with the highest scores, [P, h, w]; None without a CLIP."""
        if self.scores is None:
            return None
        return self.codes[torch.arange(len(self.codes)), self.scores.argmax(1)]


def draw(
    pipe: TextToImage,
    prompts: Sequence[str],
    candidates: int,
    folder: Path,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Candidates:
    """Draw, or read what was drawn before by the same model with the same prompts, seeds and options.

    Args:
        pipe: Its `sampling` says how it draws.
        prompts: P of them.
        candidates: n of each, with the seeds `seed` to `seed + n - 1`.
        folder: Where codes are kept.
        seed: Of the first candidate.
        progress: Called with a number of prompts after these were drawn.
    """
    parts = []
    for first in range(0, len(prompts), _PROMPTS):
        some = list(prompts[first : first + _PROMPTS])
        file = folder / f"codes-{_key(pipe, some, candidates, seed)}.safetensors"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as part:
                write_tensors(_drawn(pipe, some, candidates, seed), part)
        parts.append(read_tensors(file))
        if progress is not None:
            progress(len(some))
    codes = torch.cat([part["codes"] for part in parts]).long()
    scored = all("scores" in part for part in parts)
    return Candidates(codes, torch.cat([part["scores"] for part in parts]) if scored else None)


@torch.no_grad()
def decoded(pipe: TextToImage, codes: Tensor) -> Tensor:
    """Images float32 [N, 3, H, W] in [0, 1] of codes [N, h, w], on the CPU, in the 256 steps that files have."""
    device = pipe.image_tokenizer.last_layer.device
    parts = [pipe.image_tokenizer.decode(part.to(device)).float().cpu() for part in codes.split(_DECODED)]
    return (torch.cat(parts) * 255).round() / 255


def _drawn(pipe: TextToImage, prompts: list[str], candidates: int, seed: int) -> dict[str, Tensor]:
    """Codes int32 [p, n, h, w] and, with a CLIP, scores [p, n], in the order of the seeds."""
    codes, scores = [], []
    for result in pipe(prompts, n=candidates, seed=seed):
        assert result.codes is not None
        order = torch.tensor(result.seeds).argsort()
        codes.append(result.codes[order].int())
        if result.scores is not None:
            scores.append(torch.tensor(result.scores)[order])
    tensors = {"codes": torch.stack(codes)}
    return tensors | {"scores": torch.stack(scores)} if scores else tensors


def _key(pipe: TextToImage, prompts: list[str], candidates: int, seed: int) -> str:
    """Names all that candidates depend on."""
    ranked = None if pipe.clip is None else fingerprint(pipe.clip)
    told = [pipe.model_hash, to_dict(pipe.sampling), ranked, prompts, candidates, seed]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:20]
