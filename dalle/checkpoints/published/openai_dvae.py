"""OpenAI's dVAE (arXiv 2102.12092, appendix A): encoder.pkl and decoder.pkl, pickled modules of the package dall_e."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.state import Published, count, rename_tensors, shape
from dalle.checkpoints.published.stored_state import named_tensors
from dalle.image_tokenizers.dvae import DVAEConfig

FAMILY = "OpenAI's dVAE"
LICENSE = "modified MIT (github.com/openai/DALL-E, LICENSE)"
_IMAGE_SIZE = 256  # pixels, of its training images
_RULES = (
    (r"blocks\.input\.(\w)", r"input.\1"),
    (r"blocks\.group_(\d+)\.block_(\d+)\.res_path\.conv_(\d+)\.(\w)", r"groups.\1.\2.convs.\3.\4"),
    (r"blocks\.group_(\d+)\.block_(\d+)\.id_path\.(\w)", r"groups.\1.\2.shortcut.\3"),
    (r"blocks\.output\.conv\.(\w)", r"output.\1"),
)


def is_there(source: Path) -> bool:
    """Whether a folder contains both files."""
    return (source / "encoder.pkl").is_file() and (source / "decoder.pkl").is_file()


def read(source: Path) -> Published:
    """Read the dVAE in a folder with encoder.pkl and decoder.pkl.

    Raises:
        ValueError: a file is damaged, or holds something else.
    """
    return of_tensors({part: named_tensors(read_pickled(source / f"{part}.pkl")) for part in ("encoder", "decoder")})


def of_tensors(published: Mapping[str, Mapping[str, Tensor]]) -> Published:
    """The dVAE from the tensors of its "encoder" and "decoder", by their published names.

    Raises:
        ValueError: they are of something else.
    """
    tensors: dict[str, Tensor] = {}
    for part in ("encoder", "decoder"):
        own, _ = rename_tensors(published[part], _RULES)
        tensors |= {f"{part}.{_from_0(name)}": value for name, value in own.items()}
    config = DVAEConfig(
        image_size=_IMAGE_SIZE,
        codebook_size=shape(tensors, "encoder.output.weight", 4)[0],
        groups=count(tensors, r"encoder\.groups\.(\d+)"),
        blocks_per_group=count(tensors, r"encoder\.groups\.\d+\.(\d+)"),
        hidden=shape(tensors, "encoder.input.weight", 4)[0],
        code_channels=shape(tensors, "decoder.input.weight", 4)[0],
    )
    return Published(FAMILY, LICENSE, config, tensors, [])


def _from_0(name: str) -> str:
    """Convert a name: the published ones count from 1, and call weights and biases w and b."""
    *path, kind = name.split(".")
    return ".".join(
        [str(int(step) - 1) if step.isdigit() else step for step in path] + [{"w": "weight"}.get(kind, "bias")]
    )
