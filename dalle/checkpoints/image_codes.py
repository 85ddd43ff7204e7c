"""The image codes that a model folder's model draws, by its image tokenizer or as they were recorded without one."""

from __future__ import annotations

from dataclasses import replace

from dalle.checkpoints.model_folder import ModelFolder
from dalle.config import from_dict, renamed
from dalle.image_tokenizers import ImageCodes, ImageTokenizerConfig, codes_of

KEY = "image_codes"
"""Where a config.yaml records them, of a model that was converted without its image tokenizer."""


def recorded_codes(folder: ModelFolder) -> ImageCodes | None:
    """What the codes of a model in a folder are; None if the folder does not say it.

    Raises:
        ValueError: the config.yaml, or that of its image tokenizer, is damaged.
    """
    if KEY in folder.config:
        found: ImageCodes = from_dict(ImageCodes, folder.config[KEY], folder.origin)
        return found
    if "image_tokenizer" not in folder.components:
        return None
    part = folder.component("image_tokenizer")
    own = codes_of(from_dict(ImageTokenizerConfig, renamed(part.config["model"]), part.origin))
    return replace(own, factor=0)  # one with the same codes may draw larger images of them
