"""A published image tokenizer as an ordinary folder of weights with a card, and what is told of it beforehand."""

from __future__ import annotations

from pathlib import Path

import torch

from dalle import artifact
from dalle.config import to_dict
from dalle.image import ImageTokenizer, build
from dalle.published.image_tokenizers import read_image_tokenizer
from dalle.published.state import Published

_CARD = """# {name}

{family}, converted from {source}: what it holds is what was published there.

{summary}

Its licence and the terms of its use are those of that project. Made by `python -m dalle convert` (docs/checkpoints.md).
"""


def convert(source: Path, out: Path, storage: artifact.Storage) -> Published:
    """Write a published image tokenizer as a folder that `dalle.load_image_tokenizer` and every recipe takes.

    Args:
        source: file or folder as it was published.
        out: folder to write, whole or not at all.
        storage: how the weights are stored.

    Raises:
        ValueError: `out` is there already, or `source` is of no known family, damaged, or lacks something.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: give a folder that is not")
    found = read_image_tokenizer(source)
    artifact.check_fit(_empty(found), found.tensors, str(source))
    config = {"stage": "image_tokenizer", "model": to_dict(found.config), "origin": f"{found.family}, {source.name}"}
    family = found.family[0].upper() + found.family[1:]
    card = _CARD.format(name=out.name, family=family, source=source.name, summary=summary(found))
    artifact.save(out, config, found.tensors, storage=storage, card=card)
    return found


def summary(found: Published) -> str:
    """Lines that say what it is; nothing of the weights is read."""
    module = _empty(found)
    count = sum(parameter.numel() for parameter in module.parameters())
    rows, columns = module.grid
    lines = {
        "pictures": f"{module.image_size}x{module.image_size} to {rows}x{columns} codes of {module.codebook_size:,}",
        "parameters": f"{count:,}, {count * 4 / 1e9:.2f} GB in float32",
        "licence": f"{found.licence}, as its project states it",
        "left out": f"{len(found.dropped):,} tensors of its training" if found.dropped else "nothing",
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def _empty(found: Published) -> ImageTokenizer:
    """The module without its numbers."""
    with torch.device("meta"):
        return build(found.config)
