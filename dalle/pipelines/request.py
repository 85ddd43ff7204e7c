"""A request to generate images (prompt, seeds, options), and the checks of a call's arguments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from dalle.generation.options import SamplingConfig
from dalle.images.size import Size
from dalle.pipelines.init_image import InitImage


@dataclass(frozen=True)
class Request:
    """The candidates to generate for one prompt, with their own options.

    Attributes:
        prompt: the prompt.
        seeds: one seed per candidate, at least one.
        sampling: how codes are sampled.
        init_image: image to complete or edit, from `TextToImage.encode_init_image`.
        scored: whether the candidates are scored by CLIP, if there is one.
        negative: negative prompt, which guidance leads away from; None: the model's own, or the null caption.
        size: width and height in pixels, of a model that draws several; None: the pipeline's own.
    """

    prompt: str
    seeds: tuple[int, ...]
    sampling: SamplingConfig
    init_image: InitImage | None = None
    scored: bool = True
    negative: str | None = None
    size: Size | None = None


_MOST = 100_000  # candidates: at 256 x 256 pixels 20 GB
_LONGEST = 100_000  # characters of a prompt, of which a model reads a few thousand at most


def as_list(name: str, values: Any, what: str) -> list[Any]:
    """The values of an argument that takes several; a text or an image is none of these, and one of them alone.

    Args:
        name: of the argument.
        values: what a caller gave.
        what: what they should be, for the message.

    Raises:
        ValueError: they are not several.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is of type {type(values).__name__}: give a list of {what}")
    return list(values)


def as_texts(prompts: Any) -> list[str]:
    """One prompt or several as a list; `check_request` and `check_text` check each.

    Raises:
        ValueError: it is neither.
    """
    return [prompts] if isinstance(prompts, str) else as_list("prompts", prompts, "texts, or one text")


def check_text(text: str, name: str = "prompt") -> None:
    """Check a prompt, or a negative prompt.

    Raises:
        ValueError: it is no text, has a NUL, at which other programs end a text, or is too long to be a prompt.
    """
    if not isinstance(text, str):
        raise ValueError(f"the {name} is of type {type(text).__name__}: give a text")
    if "\0" in text:
        raise ValueError(f"the {name} has a NUL as character {text.index(chr(0)) + 1:,}: remove it")
    if len(text) > _LONGEST:
        raise ValueError(f"the {name} has {len(text):,} characters: at most {_LONGEST:,} are read, so shorten it")


def check_number(name: str, value: Any, whole: bool = False) -> None:
    """Check that an argument is a number, or a whole one: a text or a list would fail far from here, True would not.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise ValueError(f"{name} is {value!r:.40}: give a {'whole number' if whole else 'number'}")


def check_count(name: str, count: int, least: int = 1) -> None:
    """Check how many images a call generates.

    Raises:
        ValueError: no whole number, fewer than `least`, or more than fit in memory.
    """
    check_number(name, count, whole=True)
    if count < least:
        raise ValueError(f"{name} is {count}: generate at least {least}")
    if count > _MOST:
        raise ValueError(f"{name} is {count}: at most {_MOST:,} at a time, as all are kept in memory")


def check_seed(seed: int, n: int = 1) -> None:
    """Check the seed of the first of `n` candidates.

    Raises:
        ValueError: it is no whole number, is negative, or that of the last one is too large.
    """
    check_number("seed", seed, whole=True)
    # Torch's generators take seeds below 2^63, also that of the last candidate. Whole numbers of NumPy end there, too
    if not 0 <= int(seed) <= 2**63 - int(n):
        raise ValueError(f"seed is {seed}: give a number from 0 to 2^63 - n")


def check_request(
    prompts: list[str], n: int, keep: int | None, seed: int, ranks: bool, negative: str | None = None
) -> int:
    """Check the arguments of a pipeline's call.

    Args:
        prompts: the prompts.
        n: candidates per prompt.
        keep: candidates to return; None returns all.
        seed: seed of the first candidate.
        ranks: whether there is a CLIP to choose candidates.
        negative: the negative prompt, if there is one.

    Returns:
        The number of candidates to return.

    Raises:
        ValueError: an argument is of another type or out of range, or candidates are to be chosen without a CLIP.
    """
    if not prompts:
        raise ValueError("no prompt given: give at least one")
    for prompt in prompts:
        check_text(prompt)
    if negative is not None:
        check_text(negative, "negative prompt")
    check_count("n", n)
    check_seed(seed, n)
    keep = n if keep is None else keep
    check_number("keep", keep, whole=True)
    if not 1 <= keep <= n:
        raise ValueError(f"keep is {keep} of n={n} candidates: keep from 1 to {n}")
    if keep < n and not ranks:
        raise ValueError(f"this model has no CLIP to choose {keep} of {n} candidates: give one (clip), or keep all {n}")
    return keep
