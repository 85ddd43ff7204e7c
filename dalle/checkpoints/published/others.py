"""Detects published weights of unsupported families by their tensor names.

Projects reuse each other's code and names, so a file may match the names, and even the shapes, of a supported family
and yet compute something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MODELS = (  # whole models, the most telling names first
    (
        r"(.+\.)?lora_(A|B|down|up)\..*weight",
        "a LoRA without its model (peft's merge_and_unload merges it into the model)",
    ),
    (r"vision_gen_(enc|dec)_model\..+", "a JanusFlow, which draws by a rectified flow"),
    (
        r"(language_model\.model|model\.language_model)\..+",
        "a DeepSeek-VL or another model that reads images and draws none",
    ),
    (r"showo\..+", "a Show-o, which draws its tokens in no order"),
    (r"(.+\.)?(pos_1LC|lvl_embed\.weight)", "a VAR or another model that draws scale by scale"),
    (r"(first_stage_model|model\.diffusion_model)\..+", "a latent diffusion model"),
    (r"(.+\.)?(double_blocks|joint_blocks)\.\d+\..+", "a diffusion transformer (FLUX, Stable Diffusion 3)"),
    (
        r"(text_model\.)?model\.embed_tokens\..+",
        "a language model that draws no images, or one without its own config.json beside it",
    ),
    (r"layers\.\d+\.attention\.wq\..+", "a language model in Meta's layout (Chameleon, Anole)"),
    (r"(.+\.)?encoder_attn\..+", "an encoder and decoder (DALL-E mini)"),
    (r"l_text_pos_embeddings\..+", "a ruDOLPH"),
)
_PARTS = (  # image tokenizers and CLIPs
    (r"(.+\.)?(norm_layer|conv_y)\..+", "a MoVQGAN"),
    (r"blocks\.group_\d+\.group\..+", "FLAVA's copy of OpenAI's encoder, which has no decoder"),
    (r"(encoder|decoder)\.(down|up)_blocks?\..+", "an autoencoder in the layout of diffusers or transformers"),
    (r"visual\.trunk\..+", "a CLIP of open_clip whose image tower is of timm and no SigLIP's"),
    (r"bert\..+", "a Chinese-CLIP"),
    (
        r"text\.transformer\.(?!embeddings\.|encoder\.layer\.|pooler\.).+",
        "a CLIP of open_clip with a text tower of its own",
    ),
    (r"text_model\.(roberta|embeddings\.LayerNorm)\..+", "an AltCLIP or another CLIP with a BERT"),
)


def reject_unsupported(names: Iterable[str]) -> None:
    """Reject weights of a family that is known but not supported.

    Raises:
        ValueError: they are of such a family, which the message names.
    """
    _reject(names, (*_MODELS, *_PARTS))


def reject_models(names: Iterable[str]) -> None:
    """The same for whole models alone: of weights that may still be an image tokenizer's or a CLIP's.

    Raises:
        ValueError: they are of such a family, which the message names.
    """
    _reject(names, _MODELS)


def _reject(names: Iterable[str], families: Sequence[tuple[str, str]]) -> None:
    names = list(names)
    for pattern, what in families:
        found = next(filter(re.compile(pattern).fullmatch, names), None)
        if found is not None:
            raise ValueError(f"it is {what}, which is not supported (it holds {found})")
