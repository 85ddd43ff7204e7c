"""Makes siglip_open_clip.safetensors with open_clip and timm: PYTHONPATH=tests python -m MODULE

MODULE is support.published.references.siglip_open_clip; needs open_clip_torch and timm. Weights are drawn by name; the
file holds names and shapes (also those of ViT-B-16-SigLIP), and the embeddings of `images` and `ids`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support.published.references.weights import weight

SIDE, PATCH, LENGTH, VOCAB, WIDTH, TEXT_WIDTH = 32, 8, 12, 60, 128, 128
CONFIG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": SIDE,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": LENGTH,
        "vocab_size": VOCAB,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": TEXT_WIDTH,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


def images() -> Tensor:
    """Normalized images [2, 3, SIDE, SIDE]."""
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def ids() -> Tensor:
    """Captions [3, LENGTH], all of full length, as SigLIP pads them."""
    return torch.randint(1, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def drawn(name: str, shape: list[int]) -> Tensor:
    """A weight; the scale and bias of the loss are those that scores are compared by."""
    return {"logit_scale": torch.tensor(2.0), "logit_bias": torch.tensor(-3.0)}.get(name, weight(name, shape))


def _made(config: dict[str, Any], **small: int) -> nn.Module:
    from open_clip.model import CustomTextCLIP
    from timm import create_model

    own = {name: value for name, value in config.items() if name != "custom_text"}
    model = CustomTextCLIP(**own)
    if small:  # open_clip takes timm's models as they are; the same class with fewer blocks
        own = config["vision_cfg"]
        model.visual.trunk = create_model(own["timm_model_name"], img_size=own["image_size"], num_classes=0, **small)
    return model


def main() -> None:
    found: dict[str, Tensor] = {}
    shapes: dict[str, dict[str, list[int]]] = {}
    for activation in ("exact", "tanh"):
        config = {**CONFIG, "text_cfg": dict(CONFIG["text_cfg"]), "vision_cfg": dict(CONFIG["vision_cfg"])}
        if activation == "tanh":
            config["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
            config["vision_cfg"]["timm_model_name"] = "vit_so400m_patch16_siglip_256"
        small = {"embed_dim": WIDTH, "depth": 3, "num_heads": 2, "patch_size": PATCH, "mlp_ratio": 2.5}
        model = _made(config, **small)
        state = model.state_dict()
        model.load_state_dict({key: drawn(key, list(value.shape)) for key, value in state.items()})
        model.eval()
        with torch.no_grad():
            found[f"{activation}.images"] = model.encode_image(images(), normalize=True).contiguous()
            found[f"{activation}.texts"] = model.encode_text(ids(), normalize=True).contiguous()
            found[f"{activation}.logits"] = model.get_logits(images(), ids())[0].contiguous()
        shapes["small"] = {key: list(value.shape) for key, value in state.items()}
    import open_clip

    with torch.device("meta"):
        whole = _made(open_clip.get_model_config("ViT-B-16-SigLIP"))
    shapes["ViT-B-16-SigLIP"] = {key: list(value.shape) for key, value in whole.state_dict().items()}
    save_file(found, Path(__file__).with_suffix(".safetensors"), {"shapes": json.dumps(shapes)})


if __name__ == "__main__":
    main()
