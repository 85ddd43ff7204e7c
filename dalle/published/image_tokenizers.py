"""Which family a published image tokenizer is of, by what its files hold."""

from __future__ import annotations

from pathlib import Path

from dalle.config import read_yaml
from dalle.published import openai_dvae, vqgan
from dalle.published.pickles import read_pickled
from dalle.published.state import Published, state_of

_ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
_IMAGE_SIZE = 256  # of the VQGANs where no model.yaml says otherwise


def read_image_tokenizer(source: Path) -> Published:
    """The image tokenizer in a file or folder that somebody has published.

    Raises:
        ValueError: it is of no known family, or damaged; one line that names the file.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if (source / "config.yaml").is_file():
        raise ValueError(f"{source} has a config.yaml: it is a folder of weights as train.py makes them already")
    try:
        if openai_dvae.is_there(source):
            return openai_dvae.read(source)
        files = [source] if source.is_file() else [path for path in sorted(source.rglob("*")) if path.is_file()]
        checkpoints = [path for path in files if path.suffix in _ENDINGS]
        if len(checkpoints) == 1:
            return vqgan.read(state_of(read_pickled(checkpoints[0])), _image_size(source))
    except ValueError as error:
        told = str(error)
        raise ValueError(told if str(source) in told else f"{source} cannot be loaded: {told}") from error
    raise ValueError(
        f"{source} is no image tokenizer: expected a folder made by train.py (config.yaml), encoder.pkl and "
        "decoder.pkl of OpenAI, or one .ckpt or .pt of taming-transformers or LlamaGen"
    )


def _image_size(source: Path) -> int:
    """What taming's model.yaml says, in a folder or beside a file."""
    options = sorted(source.rglob("model.yaml")) if source.is_dir() else [source.with_name("model.yaml")]
    there = [file for file in options if file.is_file()]
    return vqgan.resolution(read_yaml(there[0]), str(there[0])) if there else _IMAGE_SIZE
