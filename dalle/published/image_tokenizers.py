"""Which family a published image tokenizer is of, by what its files hold."""

from __future__ import annotations

from pathlib import Path

from dalle.published import openai_dvae, taming_vqgan
from dalle.published.state import Published


def read_image_tokenizer(source: Path) -> Published:
    """The image tokenizer in a file or folder that somebody has published.

    Raises:
        ValueError: it is of no known family, or damaged; one line that names the file.
    """
    for family in (openai_dvae, taming_vqgan):
        if family.is_there(source):
            try:
                return family.read(source)
            except ValueError as error:
                told = str(error) if str(source) in str(error) else f"{source} is not {family.FAMILY}: {error}"
                raise ValueError(told) from error
    raise ValueError(
        f"{source} is no image tokenizer: expected a folder made by train.py (config.yaml), encoder.pkl and "
        "decoder.pkl of OpenAI, or one .ckpt of taming-transformers"
    )
