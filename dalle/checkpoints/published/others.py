"""Detects published weights of unsupported families by their tensor names.

Projects reuse each other's code and names, so a file may match the names, and even the shapes, of a supported family
and yet compute something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNSUPPORTED = (
    (r"language_model\.model\..+", "a DeepSeek-VL or another model that reads images and draws none"),
    (r"(.+\.)?(norm_layer|conv_y)\..+", "a MoVQGAN"),
    (
        r"(text_model\.)?model\.(language_model\.)?embed_tokens\..+",
        "a language model that draws no images, or one whose config.json is not beside it",
    ),
    (r"layers\.\d+\.attention\.wq\..+", "a language model in Meta's layout (Chameleon, Anole)"),
    (r"(.+\.)?encoder_attn\..+", "an encoder and decoder (DALL-E mini)"),
    (r"l_text_pos_embeddings\..+", "a ruDOLPH"),
    (r"blocks\.group_\d+\.group\..+", "FLAVA's copy of OpenAI's encoder, which has no decoder"),
    (r"(first_stage_model|model\.diffusion_model)\..+", "a latent diffusion model"),
    (r"(encoder|decoder)\.(down|up)_blocks?\..+", "an autoencoder in the layout of diffusers or transformers"),
    (r"visual\.trunk\..+", "a CLIP of open_clip whose image tower is of timm and no SigLIP's"),
    (r"bert\..+", "a Chinese-CLIP"),
    (
        r"text\.transformer\.(?!embeddings\.|encoder\.layer\.|pooler\.).+",
        "a CLIP of open_clip with a text tower of its own",
    ),
    (r"text_model\.(roberta|embeddings\.LayerNorm)\..+", "an AltCLIP or another CLIP with a BERT"),
)
_ALL = re.compile("|".join(f"({pattern})" for pattern, _ in _UNSUPPORTED))


def reject_unsupported(names: Iterable[str]) -> None:
    """Reject weights of a family that is known but not supported.

    Raises:
        ValueError: they are of such a family, which the message names.
    """
    for name in names:
        found = _ALL.fullmatch(name)
        if found is not None:
            what = next(what for pattern, what in _UNSUPPORTED if re.fullmatch(pattern, name))
            raise ValueError(f"it is {what}, which is not supported (it holds {name})")
