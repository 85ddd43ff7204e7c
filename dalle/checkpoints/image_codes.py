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
    recorded = (folder.config.get("parts") or {}).get("image_tokenizer")
    place = folder.path / str(recorded["path"] if isinstance(recorded, dict) and "path" in recorded else "")
    if recorded is None or not (place / "config.yaml").is_file() or place == folder.path:
        return None  # whose loader says so
    part = ModelFolder(place)  # not `component`, which reads it whole for its hash
    own = codes_of(from_dict(ImageTokenizerConfig, renamed(part.config.get("model") or {}), part.origin))
    return replace(own, factor=0)  # one with the same codes may draw larger images of them
