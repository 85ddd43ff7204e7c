"""Prompts that name a color or how two things lie, and the share of their drawings that is right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.apps.judging.colors import COLORS, border_color, drawn_color, named_color
from dalle.apps.judging.drawings import Drawings, images_of
from dalle.apps.judging.judge import Judge
from dalle.data.drawings.captions import INKS, RELATIONS

_PHRASES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_APART = 80 / 255  # in some channel, of a background and what is drawn on it


@dataclass(frozen=True)
class ColorPrompt:
    """A prompt that names a color: of the background, or of the icon itself."""

    prompt: str
    color: str


@dataclass(frozen=True)
class RelationPrompt:
    """A prompt with two things.

    Attributes:
        prompt: "a cat to the left of a red car, noto style".
        relation: How the first thing lies to the second.
        concepts: Of each thing.
        indices: Their images.
    """

    prompt: str
    relation: str
    concepts: tuple[str, str]
    indices: tuple[int, int]


def background_prompts(known: Drawings, indices: Sequence[int], seed: int) -> list[ColorPrompt]:
    """One for each index whose image leaves the border free, with a color other than white that it can be seen on."""
    rng = random.Random(seed)
    made = []
    for index in indices:
        real = images_of(known, [index])[0]
        if named_color(border_color(real)) != "white":  # a square sign, say, hides what is behind it
            continue
        drawn = drawn_color(real)
        names = [name for name in COLORS if name != "white" and (drawn is None or _apart(drawn, name))]
        color = rng.choice(names)
        article = "an" if color[0] in "aeiou" else "a"
        made.append(ColorPrompt(f"{known.canonical_caption(index)} on {article} {color} background", color))
    return made


def icon_prompts(known: Drawings, count: int, seed: int) -> list[ColorPrompt]:
    """Of icons in one color that captions may name ("a teal wolf head, solid style"); none where a data set has none.

    A data set that has them says which in `one_color`, a bool for each image.
    """
    able: Sequence[bool] = getattr(known, "one_color", ())
    indices = [index for index, yes in enumerate(able) if yes]
    rng = random.Random(seed)
    colors = [name for name in INKS if name != "white"]  # to be seen on white
    made = []
    for index in sorted(rng.sample(indices, min(count, len(indices)))):
        color = rng.choice(colors)
        phrase = known.concepts[index].words("en", color)[0]
        style = known.canonical_caption(index).removeprefix(known.concepts[index].phrase)
        made.append(ColorPrompt(phrase + style, color))
    return made


def relation_prompts(known: Drawings, indices: Sequence[int], seed: int) -> list[RelationPrompt]:
    """One for each index, with another concept of the same style as the second thing."""
    rng = random.Random(seed)
    of_style: dict[str, list[int]] = {}
    for index, style in enumerate(known.styles):
        of_style.setdefault(style, []).append(index)
    made = []
    for number, index in enumerate(indices):
        own = known.concepts[index].phrase
        others = [other for other in of_style[known.styles[index]] if known.concepts[other].phrase != own]
        if not others:
            continue
        other = rng.choice(others)
        relation = RELATIONS[number % len(RELATIONS)]
        concepts = own, known.concepts[other].phrase
        style = known.canonical_caption(index).removeprefix(own)  # ", noto style"
        prompt = f"{own} {_PHRASES[relation]} {concepts[1]}{style}"
        made.append(RelationPrompt(prompt, relation, concepts, (index, other)))
    return made


def background_right(images: Tensor, asked: Sequence[ColorPrompt]) -> float:
    """Share of images [N, 3, H, W] whose border has the color that was asked for, of all that have a name."""
    hits = [named_color(border_color(image)) == one.color for image, one in zip(images, asked, strict=True)]
    return sum(hits) / len(hits)


def icon_right(images: Tensor, asked: Sequence[ColorPrompt]) -> float:
    """Share of images [N, 3, H, W] of which what is drawn has the color that was asked for."""
    hits = 0
    for image, one in zip(images, asked, strict=True):
        color = drawn_color(image)
        hits += color is not None and named_color(color) == one.color
    return hits / len(asked)


def relation_right(judge: Judge, images: Tensor, asked: Sequence[RelationPrompt]) -> float:
    """Share of images [N, 3, H, W] of which each half fits its own thing better than the other one: chance is 25 %."""
    hits = 0
    for image, one in zip(images, asked, strict=True):
        scores = judge.concept_scores(torch.stack(halves(image, one.relation)), one.concepts)  # [2 halves, 2 things]
        hits += bool(scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0])
    return hits / len(asked)


def halves(image: Tensor, relation: str) -> tuple[Tensor, Tensor]:
    """Where the first and the second thing should be: [3, S, S] -> the middle squares of two halves, [3, S/2, S/2]."""
    half, quarter = image.shape[-1] // 2, image.shape[-1] // 4
    across = image[:, quarter : quarter + half] if relation in ("left", "right") else image[..., quarter:][..., :half]
    if relation in ("left", "right"):
        parts = across[..., :half], across[..., half:]
    else:
        parts = across[:, :half], across[:, half:]
    return parts if relation in ("left", "above") else (parts[1], parts[0])


def real_scenes(known: Drawings, asked: Sequence[RelationPrompt]) -> Tensor:
    """What should be drawn: both real images at half size on white, [N, 3, S, S]."""
    scenes = []
    for one in asked:
        first, second = F.avg_pool2d(images_of(known, one.indices), 2)  # [3, S/2, S/2]
        if one.relation in ("right", "below"):
            first, second = second, first
        half = first.shape[-1]
        scene = torch.ones(3, 2 * half, 2 * half)
        low = half // 2
        if one.relation in ("left", "right"):
            scene[:, low : low + half, :half], scene[:, low : low + half, half:] = first, second
        else:
            scene[:, :half, low : low + half], scene[:, half:, low : low + half] = first, second
        scenes.append(scene)
    return torch.stack(scenes)


def _apart(drawn: Tensor, name: str) -> bool:
    return bool((drawn - torch.tensor(COLORS[name]) / 255).abs().amax() > _APART)
