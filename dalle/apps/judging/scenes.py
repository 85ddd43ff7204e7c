"""Prompts for a color or for a spatial relation of two objects, and the accuracy of images sampled for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.apps.judging.colors import COLORS, border_color, foreground_color, named_color
from dalle.apps.judging.drawings import Drawings, load_images
from dalle.apps.judging.judge import Judge
from dalle.data.drawings.captions import INKS, RELATIONS

_PHRASES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_MIN_CONTRAST = 80 / 255  # of a drawing to its background, in at least one channel


@dataclass(frozen=True)
class ColorPrompt:
    """A prompt for a color, of the background or of the icon itself."""

    prompt: str
    color: str


@dataclass(frozen=True)
class RelationPrompt:
    """A prompt for two objects.

    Attributes:
        prompt: such as "a cat to the left of a red car, noto style".
        relation: of the first object to the second.
        concepts: of the two objects.
        indices: real images of the two objects.
    """

    prompt: str
    relation: str
    concepts: tuple[str, str]
    indices: tuple[int, int]


def background_prompts(drawings: Drawings, indices: Sequence[int], seed: int) -> list[ColorPrompt]:
    """One prompt for each image that leaves its border free, with a color that contrasts with it, but not white."""
    rng = random.Random(seed)
    prompts = []
    for index in indices:
        image = load_images(drawings, [index])[0]
        if named_color(border_color(image)) != "white":  # such as a square sign, which would hide the background
            continue
        foreground = foreground_color(image)
        names = [name for name in COLORS if name != "white" and (foreground is None or _contrasts(foreground, name))]
        color = rng.choice(names)
        article = "an" if color[0] in "aeiou" else "a"
        prompts.append(ColorPrompt(f"{drawings.canonical_caption(index)} on {article} {color} background", color))
    return prompts


def icon_prompts(drawings: Drawings, count: int, seed: int) -> list[ColorPrompt]:
    """Prompts for icons in one color ("a teal wolf head, solid style"); none if the data set has no such icons.

    A data set that has them says which they are in `one_color`, a bool for each image.
    """
    is_one_color: Sequence[bool] = getattr(drawings, "one_color", ())
    indices = [index for index, one_color in enumerate(is_one_color) if one_color]
    rng = random.Random(seed)
    colors = [name for name in INKS if name != "white"]  # they are drawn on white
    prompts = []
    for index in sorted(rng.sample(indices, min(count, len(indices)))):
        color = rng.choice(colors)
        phrase = drawings.concepts[index].words("en", color)[0]
        style = drawings.canonical_caption(index).removeprefix(drawings.concepts[index].phrase)
        prompts.append(ColorPrompt(phrase + style, color))
    return prompts


def relation_prompts(drawings: Drawings, indices: Sequence[int], seed: int) -> list[RelationPrompt]:
    """One prompt for each image, with another concept in the same style as the second object."""
    rng = random.Random(seed)
    by_style: dict[str, list[int]] = {}
    for index, style in enumerate(drawings.styles):
        by_style.setdefault(style, []).append(index)
    prompts = []
    for number, index in enumerate(indices):
        concept = drawings.concepts[index].phrase
        others = [i for i in by_style[drawings.styles[index]] if drawings.concepts[i].phrase != concept]
        if not others:
            continue
        other = rng.choice(others)
        relation = RELATIONS[number % len(RELATIONS)]
        concepts = concept, drawings.concepts[other].phrase
        style = drawings.canonical_caption(index).removeprefix(concept)  # ", noto style"
        prompt = f"{concept} {_PHRASES[relation]} {concepts[1]}{style}"
        prompts.append(RelationPrompt(prompt, relation, concepts, (index, other)))
    return prompts


def background_accuracy(images: Tensor, prompts: Sequence[ColorPrompt]) -> float:
    """Fraction of images [N, 3, H, W] whose border has the prompted color, of all colors with a name."""
    correct = [named_color(border_color(image)) == item.color for image, item in zip(images, prompts, strict=True)]
    return sum(correct) / len(correct)


def icon_color_accuracy(images: Tensor, prompts: Sequence[ColorPrompt]) -> float:
    """Fraction of images [N, 3, H, W] whose foreground has the prompted color."""
    correct = 0
    for image, item in zip(images, prompts, strict=True):
        color = foreground_color(image)
        correct += color is not None and named_color(color) == item.color
    return correct / len(prompts)


def relation_accuracy(judge: Judge, images: Tensor, prompts: Sequence[RelationPrompt]) -> float:
    """Fraction of images [N, 3, H, W] each of whose halves fits its own object better than the other; chance: 25 %."""
    correct = 0
    for image, item in zip(images, prompts, strict=True):
        halves = torch.stack(object_halves(image, item.relation))
        scores = judge.concept_log_probs(halves, item.concepts)  # [2 halves, 2 objects]
        correct += bool(scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0])
    return correct / len(prompts)


def object_halves(image: Tensor, relation: str) -> tuple[Tensor, Tensor]:
    """Where the first and the second object belong: [3, S, S] -> the central squares of two halves, [3, S/2, S/2]."""
    half, quarter = image.shape[-1] // 2, image.shape[-1] // 4
    if relation in ("left", "right"):
        band = image[:, quarter : quarter + half]  # the middle half of the rows
        halves = band[..., :half], band[..., half:]
    else:
        band = image[..., quarter : quarter + half]
        halves = band[:, :half], band[:, half:]
    return halves if relation in ("left", "above") else (halves[1], halves[0])


def compose_scenes(drawings: Drawings, prompts: Sequence[RelationPrompt]) -> Tensor:
    """Correct images of the prompts: both real images at half size on white, [N, 3, S, S]."""
    scenes = []
    for item in prompts:
        first, second = F.avg_pool2d(load_images(drawings, item.indices), 2)  # [3, S/2, S/2]
        if item.relation in ("right", "below"):
            first, second = second, first
        half = first.shape[-1]
        quarter = half // 2
        scene = torch.ones(3, 2 * half, 2 * half)
        if item.relation in ("left", "right"):
            scene[:, quarter : quarter + half, :half], scene[:, quarter : quarter + half, half:] = first, second
        else:
            scene[:, :half, quarter : quarter + half], scene[:, half:, quarter : quarter + half] = first, second
        scenes.append(scene)
    return torch.stack(scenes)


def _contrasts(color: Tensor, name: str) -> bool:
    """Whether a drawing of a color [3] in [0, 1] can be seen on a background of the named one."""
    return bool((color - torch.tensor(COLORS[name]) / 255).abs().amax() > _MIN_CONTRAST)
