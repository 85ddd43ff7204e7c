"""Makes llamagen_vq.safetensors with LlamaGen's own code.

PYTHONPATH=tests python -m support.published.references.llamagen_vq LLAMAGEN, which is a checkout of
github.com/FoundationVision/LlamaGen. The weights are drawn by name (`weight`), so that the
file holds only their names and shapes, and what the model makes of `images`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.published.references.weights import weight

CHANNELS, MULTIPLIERS, CODES = 32, [1, 2], 40


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def main(llamagen: str) -> None:
    sys.path.insert(0, llamagen)
    from tokenizer.tokenizer_image import vq_model  # type: ignore[import-not-found]

    model = vq_model.VQModel(vq_model.ModelArgs(codebook_size=CODES, encoder_ch_mult=[1], decoder_ch_mult=[1]))
    model.encoder = vq_model.Encoder(ch=CHANNELS, ch_mult=MULTIPLIERS)
    model.decoder = vq_model.Decoder(ch=CHANNELS, ch_mult=MULTIPLIERS)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: weight(name, shape) for name, shape in shapes.items()})
    model.eval()
    with torch.no_grad():
        _, _, (_, _, flat) = model.encode(2 * images() - 1)
        codes = flat.view(2, 16, 16)
        pictures = model.decode_code(flat, (2, 8, 16, 16))
    file = Path(__file__).with_suffix(".safetensors")
    save_file({"codes": codes, "pictures": pictures.contiguous()}, file, metadata={"shapes": json.dumps(shapes)})


if __name__ == "__main__":
    main(sys.argv[1])
