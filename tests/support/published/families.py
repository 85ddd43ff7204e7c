"""Small models of random weights of all families of language models that draw, as published; needs transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from support.published import chameleon, emu3, emu3_models, emu35, janus, liquid, lumina2, simplear


class Source(NamedTuple):
    """A family's files, and how it trains guidance; its images have 4 x 4 codes."""

    model: Path
    images: Path | None = None
    """None: the image tokenizer is in the model's files."""
    dropped: list[int] | None = None
    """What a caption is replaced by in its project's training; None: the model's null prompt, made of the caption."""


def write_anole(folder: Path) -> Source:
    made = chameleon.write_meta(chameleon.model_of(True), folder / "model")
    words = chameleon.tokenizer()
    return Source(made, dropped=[words.token_to_id(name) for name in ("<s>", "<racm3:break>")])


def write_lumina(folder: Path) -> Source:
    """Told from an Anole by its name; what its project drops is all that is in front of the image."""
    made = chameleon.write_transformers(chameleon.model_of(False), folder / "Lumina-mGPT-7B-512")
    chameleon.write_images(made / "vqgan.ckpt")
    words = chameleon.tokenizer()
    names = ("<racm3:break>", "<reserved08802>", "<reserved08802>")  # 2 x 2 cells of 2 x 2 codes
    return Source(made, dropped=[words.token_to_id(name) for name in names])


def write_lumina2(folder: Path) -> Source:
    return Source(lumina2.write(folder / "model"), dropped=lumina2.start(4, 4))


def write_liquid(folder: Path) -> Source:
    names = ("<bos>", "<unconditional>", "<boi>")
    made = liquid.write(liquid.model_of(), folder / "model")
    return Source(made, dropped=[liquid.tokenizer().token_to_id(name) for name in names])


def write_emu3(folder: Path) -> Source:
    made = emu3_models.write_project(folder / "model")
    return Source(made, made / "vision", [emu3.special("<|extra_203|>"), *emu3.image_start(4, 4)])


def write_emu35(folder: Path) -> Source:
    return Source(emu35.write(folder / "model"), dropped=emu35.null())


def write_simplear(folder: Path) -> Source:
    made = simplear.write(simplear.model_of(), folder / "model")
    dropped = [simplear.tokenizer().token_to_id(name) for name in ("<|t2i|>", "<|soi|>")]
    return Source(made, made / "DV8x16x16", dropped)


WRITERS: dict[str, Callable[[Path], Source]] = {
    "janus": lambda folder: Source(janus.write_deepseek(janus.model_of(), folder / "model")),
    "chameleon": write_anole,
    "lumina": write_lumina,
    "lumina2": write_lumina2,
    "liquid": write_liquid,
    "emu3": write_emu3,
    "emu35": write_emu35,
    "simplear": write_simplear,
}
