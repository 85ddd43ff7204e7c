"""Parses prompts: weighted texts, images and noise, in phases. Knows nothing of CLIP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class Prompt:
    """One target of the optimization; with a negative weight, one to avoid."""

    kind: Literal["text", "image", "noise"]
    content: str  # the text, the file or the seed
    weight: float = 1.0


def parse_text(prompt: str) -> list[list[Prompt]]:
    r"""Phases that follow each other, each a list of weighted texts: "a dog:2 | oil painting:0.5 ^ a cat".

    A weight is a number after the last colon; a text without one has weight 1. A text that itself ends in a colon
    and a number is written with its weight, "the clock at 12:30:1", or with a backslash, r"the clock at 12\:30".

    Raises:
        ValueError: the prompt or a phase is empty, or a weight has no text.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty: say what to paint, for example 'a red heart | 3d style:0.5'")
    phases = []
    for phase in prompt.split("^"):
        if not phase.strip():
            raise ValueError(f"the prompt {prompt!r} has nothing on one side of ^: say what to paint in each phase")
        phases.append([Prompt("text", *_weighted(part, f"the prompt {prompt!r}")) for part in phase.split("|")])
    return phases


def parse_images(arguments: Sequence[str]) -> list[Prompt]:
    """Image prompts, each FILE or FILE:WEIGHT."""
    prompts = []
    for text in arguments:
        is_file = Path(text).is_file()  # a file may itself be called image:2
        file, weight = (text, 1.0) if is_file else _weighted(text, f"the image prompt {text!r}")
        prompts.append(Prompt("image", file, weight))
    return prompts


def parse_noise(arguments: Sequence[str]) -> list[Prompt]:
    """Noise prompts, each SEED or SEED:WEIGHT."""
    prompts = []
    for text in arguments:
        seed, weight = _weighted(text, f"the noise prompt {text!r}")
        if not re.fullmatch(r"\d{1,18}", seed):
            raise ValueError(f"the noise prompt {text!r} has the seed {seed!r}: give a whole number, as in 7:0.2")
        prompts.append(Prompt("noise", seed, weight))
    return prompts


def check_weights(phases: Sequence[Sequence[Prompt]], from_image: bool) -> None:
    """Refuse phases without a positive prompt, unless the painting starts from an image.

    Raises:
        ValueError: no weight of a phase is above 0, and there is no image.
    """
    for phase in phases:
        if not any(prompt.weight > 0 for prompt in phase) and not from_image:
            texts = " | ".join(prompt.content for prompt in phase)
            raise ValueError(
                f"no prompt has a weight above 0 ({texts}): say what to paint, or give an image to start from (init)"
            )


def phase_of(step: int, steps: int, phases: int, change_every: int | None) -> int:
    """Index of the phase of a step; after the last phase the first follows again.

    Args:
        step: from 0 to `steps` - 1.
        steps: number of steps of the whole painting.
        phases: number of phases.
        change_every: steps per phase; None: all get equally many.
    """
    return step * phases // steps if change_every is None else step // change_every % phases


def describe(phases: Sequence[Sequence[Prompt]]) -> str | None:
    """How a prompt was parsed, in one line; None where all weights are 1 and there is only one phase."""
    if len(phases) == 1 and all(prompt.weight == 1 for prompt in phases[0]):
        return None
    return ", then ".join(
        " and ".join(f"{prompt.content!r} with weight {prompt.weight:g}" for prompt in phase) for phase in phases
    )


def _weighted(part: str, where: str) -> tuple[str, float]:
    """ "text:0.5" to text and weight; `where` is what errors call it."""
    text, colon, number = part.strip().rpartition(":")
    if not colon or text.endswith("\\") or not _NUMBER.fullmatch(number.strip()):
        text, number = part.strip(), "1"
    if not text.strip():
        missing = "a weight without a text" if part.strip() else "an empty part"
        raise ValueError(f"{where} has {missing}: write what is meant before the weight, as in 'a red heart:0.5'")
    return text.strip().replace("\\:", ":"), float(number)
