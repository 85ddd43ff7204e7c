"""Makes manifests.json: names and shapes of the published transformers at full width, of each project's own modules.

PYTHONPATH=tests python -m support.published.references.manifests MINDALLE RUDALLE LLAMAGEN, which are checkouts.
Layers are written once, with * for their number.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from functools import partial
from pathlib import Path

import torch
from torch import nn

from support.published.references.transformers import package

LAYER = r"(blocks|layers)\.(\d+)\."


def mindalle(source: Path) -> dict[str, nn.Module]:
    package("omegaconf").OmegaConf = object  # type: ignore[attr-defined]
    package("stage2", source / "dalle" / "models" / "stage2")
    hparams = types.SimpleNamespace(
        embed_dim=1536, n_layers=42, n_dense_layers=42, n_heads=24, ctx_len_img=256, ctx_len_txt=64, embd_pdrop=0.0,
        resid_pdrop=0.0, attn_pdrop=0.0, mlp_bias=True, attn_bias=True, gelu_use_approx=False,
    )  # fmt: skip
    return {"minDALL-E 1.3B": importlib.import_module("stage2.transformer").Transformer1d(16_384, 16_384, hparams)}


def rudalle(source: Path) -> dict[str, nn.Module]:
    package("rudalle"), package("rudalle.dalle", source / "rudalle" / "dalle")
    module = importlib.import_module("rudalle.dalle.model")
    for name in ("get_row_mask", "get_col_mask", "get_conv_mask"):  # whose loops take minutes
        setattr(importlib.import_module("rudalle.dalle.transformer"), name, lambda *_, **__: torch.empty(1152, 1152))
    options = {"cogview_sandwich_layernorm": True, "cogview_pb_relax": True, "image_vocab_size": 8192}
    return {
        name: module.DalleModel("meta", depth, 16_384 + 128, width, heads, 0.1, 0.1, 0.1, **options)
        for name, depth, width, heads in (("ruDALL-E XL", 24, 2048, 16), ("Kandinsky", 64, 3840, 60))
    }


def llamagen(source: Path) -> dict[str, nn.Module]:
    sys.path.insert(0, str(source))
    gpt = importlib.import_module("autoregressive.models.gpt")
    gpt.torch = types.SimpleNamespace(
        **vars(torch) | {"linspace": partial(torch.linspace, device="cpu")}
    )  # it wants numbers
    sizes = {
        "t2i XL": ("GPT-XL", "t2i", 120),
        **{f"c2i {n}": (f"GPT-{n}", "c2i", 1) for n in ("B", "L", "XL", "XXL", "3B")},
    }
    return {
        f"LlamaGen {name}": gpt.GPT_models[size](model_type=kind, cls_token_num=length)
        for name, (size, kind, length) in sizes.items()
    }


def main(*sources: str) -> None:
    found: dict[str, dict[str, list[int]]] = {}
    with torch.device("meta"):
        for make, source in zip((mindalle, rudalle, llamagen), sources, strict=True):
            for name, model in make(Path(source)).items():
                state = model.state_dict()
                shapes = {re.sub(LAYER, r"\1.*.", key): list(value.shape) for key, value in state.items()}
                depth = 1 + max(int(match[2]) for key in state if (match := re.search(LAYER, key)))
                parameters = sum(p.numel() for p in model.parameters())
                found[name] = {"depth": depth, "parameters": parameters, "shapes": shapes}  # type: ignore[dict-item]
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(found, indent=0).replace(",\n", ", ").replace("[\n", "[").replace("\n]", "]") + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
