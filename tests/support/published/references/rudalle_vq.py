"""Makes rudalle_vq.safetensors with ruDALL-E's own code.

PYTHONPATH=tests python -m support.published.references.rudalle_vq RUDALLE, which is a checkout of ai-forever/ru-dalle;
needs taming-transformers-rom1504. The weights are drawn by name (`weight`), so that the file holds only their names and
shapes, and what the model makes of `images`.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.published.references.transformers import package
from support.published.references.weights import weight

CODES, WIDTH = 40, 16
GAIN = 3.0  # of the weights: more codes are then met


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Options(dict[str, Any]):
    """A dict whose entries are attributes too, as OmegaConf's."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def main(rudalle: str) -> None:
    sys.modules["pywt"] = types.ModuleType("pywt")  # wavelets, which this decoder has none of
    package("rudalle"), package("rudalle.vae", Path(rudalle) / "rudalle" / "vae")
    network = Options(ch=32, ch_mult=[1, 2, 2], num_res_blocks=2, attn_resolutions=[8], resolution=32)
    network |= {"in_channels": 3, "out_ch": 3, "z_channels": 16, "double_z": False, "dropout": 0.0}
    options = Options(ddconfig=network, n_embed=CODES, embed_dim=WIDTH, kl_weight=1e-8)
    vae = importlib.import_module("rudalle.vae.model").VQGanGumbelVAE(Options(model=Options(params=options))).eval()
    shapes = {name: list(value.shape) for name, value in vae.model.state_dict().items()}
    vae.model.load_state_dict({name: weight(name, shape, GAIN) for name, shape in shapes.items()})
    codes = vae.get_codebook_indices(images(), disable_gumbel_softmax=True)
    with torch.no_grad():
        pictures = vae.decode(codes)
    made = {"codes": codes.view(2, 8, 8), "pictures": pictures.contiguous()}
    save_file(made, Path(__file__).with_suffix(".safetensors"), metadata={"shapes": json.dumps(shapes)})


if __name__ == "__main__":
    main(sys.argv[1])
