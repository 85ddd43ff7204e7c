"""dalle: autoregressive text-to-image. Public names are imported on first use: `import dalle` does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle.apps.search import ImageIndex
    from dalle.apps.vqgan_clip.api import paint
    from dalle.apps.zeroshot import ZeroShotClassifier
    from dalle.checkpoints.load import load_clip, load_image_tokenizer, load_model, load_text_tokenizer
    from dalle.checkpoints.load_unclip import load_diffusion, load_prior
    from dalle.pipelines.text_to_image import TextToImage
    from dalle.pipelines.unclip import UnCLIP

__version__ = "0.2.0"

__all__ = [
    "ImageIndex",
    "TextToImage",
    "UnCLIP",
    "ZeroShotClassifier",
    "__version__",
    "load_clip",
    "load_diffusion",
    "load_image_tokenizer",
    "load_model",
    "load_prior",
    "load_text_tokenizer",
    "paint",
]

_HOMES = {
    "ImageIndex": "dalle.apps.search",
    "TextToImage": "dalle.pipelines.text_to_image",
    "UnCLIP": "dalle.pipelines.unclip",
    "ZeroShotClassifier": "dalle.apps.zeroshot",
    "load_clip": "dalle.checkpoints.load",
    "load_diffusion": "dalle.checkpoints.load_unclip",
    "load_image_tokenizer": "dalle.checkpoints.load",
    "load_model": "dalle.checkpoints.load",
    "load_prior": "dalle.checkpoints.load_unclip",
    "load_text_tokenizer": "dalle.checkpoints.load",
    "paint": "dalle.apps.vqgan_clip.api",
}


if not TYPE_CHECKING:  # type checkers that see __getattr__ accept any name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'dalle' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
