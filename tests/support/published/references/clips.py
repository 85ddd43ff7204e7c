"""Makes clips.safetensors with OpenAI's CLIP, transformers and open_clip: PYTHONPATH=tests python -m MODULE OPENAI

MODULE is published.references.clips, OPENAI a checkout of github.com/openai/CLIP; needs transformers and
open_clip_torch. Weights are drawn by name; the file holds names and shapes, and the embeddings of `images` and `ids`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support.published.references.weights import weight

SIDE, PATCH, LENGTH, VOCAB, WIDTH, TEXT_WIDTH, DIMENSIONS = 32, 8, 12, 60, 64, 128, 24
END = VOCAB - 1


def images() -> Tensor:
    """Normalized images [2, 3, SIDE, SIDE]."""
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def ids() -> Tensor:
    """Captions [3, LENGTH] that end at different places."""
    made = torch.zeros(3, LENGTH, dtype=torch.int64)
    for row, end in enumerate((3, 7, LENGTH - 1)):
        made[row, 0] = VOCAB - 2
        made[row, 1:end] = torch.randint(1, VOCAB - 2, (end - 1,), generator=torch.Generator().manual_seed(row))
        made[row, end] = END
    return made


def openai(source: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("openai_model", source / "clip" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CLIP(DIMENSIONS, SIDE, 2, WIDTH, PATCH, LENGTH, VOCAB, TEXT_WIDTH, 2, 2)


def hugging_face(activation: str) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": TEXT_WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"vocab_size": VOCAB, "max_position_embeddings": LENGTH, "eos_token_id": END, "hidden_act": activation}
    vision = {"hidden_size": WIDTH, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": PATCH, "hidden_act": activation}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIMENSIONS))


def open_clip() -> nn.Module:
    from open_clip.model import CLIP

    vision = {"image_size": SIDE, "patch_size": PATCH, "layers": 2, "width": WIDTH, "head_width": 16}
    text = {"context_length": LENGTH, "vocab_size": VOCAB, "width": TEXT_WIDTH, "heads": 2, "layers": 2}
    return CLIP(DIMENSIONS, vision, text, quick_gelu=False)


def main(source: str) -> None:
    models: dict[str, nn.Module] = {
        "openai": openai(Path(source)),
        "hugging_face": hugging_face("quick_gelu"),
        "hugging_face_gelu": hugging_face("gelu"),
        "open_clip": open_clip(),
    }
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, Any] = {}
    for name, model in models.items():
        state = model.state_dict()
        floating = {key: value for key, value in state.items() if value.is_floating_point() and "mask" not in key}
        model.load_state_dict(state | {key: weight(key, list(value.shape)) for key, value in floating.items()})
        model.eval()
        with torch.no_grad():
            if name.startswith("hugging_face"):
                found = model(input_ids=ids(), pixel_values=images(), attention_mask=(ids() > 0).long())
                embeddings = found.image_embeds, found.text_embeds
            else:
                embeddings = model.encode_image(images()), model.encode_text(ids())
        for part, value in zip(("images", "texts"), embeddings, strict=True):
            tensors[f"{name}.{part}"] = (value / value.norm(dim=-1, keepdim=True)).contiguous()
        shapes[name] = {key: list(value.shape) for key, value in floating.items()}
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):  # ViT-B/32 and ViT-L/14 at full width
        for name, model in (
            ("ViT-B/32", CLIPModel(CLIPConfig())),
            ("ViT-L/14", CLIPModel(_large())),
        ):
            shapes[name] = {key: list(value.shape) for key, value in model.state_dict().items()}
    save_file(tensors, Path(__file__).with_suffix(".safetensors"), {"shapes": json.dumps(shapes)})


def _large() -> Any:
    from transformers import CLIPConfig

    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 14}, projection_dim=768)


if __name__ == "__main__":
    main(sys.argv[1])
