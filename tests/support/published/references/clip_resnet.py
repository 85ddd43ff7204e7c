"""Makes clip_resnet.safetensors with OpenAI's CLIP: PYTHONPATH=tests python -m MODULE OPENAI

MODULE is support.published.references.clip_resnet, OPENAI a checkout of github.com/openai/CLIP. Weights are drawn by
name; the file holds names and shapes, and the embeddings of `images` and `ids`.
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

SIDE, LENGTH, VOCAB, WIDTH, TEXT_WIDTH, DIMENSIONS = 64, 12, 60, 16, 64, 24
LAYERS = (1, 2, 1, 1)
RN50 = (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)


def images() -> Tensor:
    """Normalized images [2, 3, SIDE, SIDE]."""
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def drawn(name: str, shape: list[int]) -> Tensor:
    """A weight; what a batch norm divides by is above 0."""
    noise = weight(name, shape)
    return noise.abs() + 0.5 if name.endswith("running_var") else noise


def openai(source: Path, *options: Any) -> nn.Module:
    spec = importlib.util.spec_from_file_location("openai_model", source / "clip" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CLIP(*options)


def main(source: str) -> None:
    from support.published.references.clips import ids

    model = openai(Path(source), DIMENSIONS, SIDE, LAYERS, WIDTH, None, LENGTH, VOCAB, TEXT_WIDTH, 1, 2)
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    model.load_state_dict({key: drawn(key, list(value.shape)) for key, value in state.items()}, strict=False)
    model.eval()
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for part, value in (("images", model.encode_image(images())), ("texts", model.encode_text(ids()))):
            tensors[part] = (value / value.norm(dim=-1, keepdim=True)).contiguous()
    with torch.device("meta"):
        whole = openai(Path(source), *RN50).state_dict()
    shapes = {
        "small": {key: list(value.shape) for key, value in state.items()},
        "RN50": {key: list(value.shape) for key, value in whole.items()},
    }
    save_file(tensors, Path(__file__).with_suffix(".safetensors"), {"shapes": json.dumps(shapes)})


if __name__ == "__main__":
    main(sys.argv[1])
