"""Training and encoding with VQGANs, beside taming's modules: python benchmarks/vqgan_speed.py [--shapes f16 small]

Both have the same weights and get the same images; before anything is timed the script says how far losses and codes
are apart. A training step is a forward pass, mean absolute error and codebook loss, backward pass and Adam (the
perceptual and adversarial losses are the same networks for both, and left out); encoding is images to codes. In
float32 both compute the same; in bfloat16 both run under autocast.

"f16" is vqgan_imagenet_f16_16384, "small" has few channels for 64x64 images. taming's modules:
pip install --no-deps taming-transformers-rom1504
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("vqgan_speed.py")

import torch
from machine import describe, median, seconds
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import Tensor, nn

from dalle.checkpoints.published.vqgan import read
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.image_tokenizers.vqgan import VQGAN
from dalle.training.optim import OptimConfig, build_optimizer
from dalle.training.run.compiling import compile_blocks
from dalle.training.run.malloc import keep_freed_memory

KINDS = ("float32", "bfloat16")
# Channels, their multiples by level, blocks of a level, attention at, side of images, latent channels, codes
SHAPES: dict[str, tuple[int, tuple[int, ...], int, list[int], int, int, int]] = {
    "f16": (128, (1, 1, 2, 2, 4), 2, [16], 256, 256, 16_384),
    "small": (32, (2, 2, 4), 1, [], 64, 64, 1024),
}
BATCH = {"f16": 1, "small": 16}


class Taming(nn.Module):
    """taming's VQModel, without Lightning."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        channels, multiples, blocks, attended, side, latent, codes = SHAPES[shape]
        options: dict[str, Any] = {
            "ch": channels, "out_ch": 3, "ch_mult": multiples, "num_res_blocks": blocks, "attn_resolutions": attended,
            "in_channels": 3, "resolution": side, "z_channels": latent, "double_z": False, "dropout": 0.0,
        }  # fmt: skip
        self.encoder, self.decoder = Encoder(**options), Decoder(**options)
        self.quantize = VectorQuantizer2(codes, latent, beta=0.25, legacy=False)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, latent, 1), nn.Conv2d(latent, latent, 1)

    def encode(self, images: Tensor) -> Tensor:
        return self.quantize(self.quant_conv(self.encoder(2 * images - 1)))[2][2]

    def loss(self, images: Tensor) -> Tensor:
        vectors, codebook, _ = self.quantize(self.quant_conv(self.encoder(2 * images - 1)))
        made = (self.decoder(self.post_quant_conv(vectors)) + 1) / 2
        return (made - images).abs().mean() + codebook


class Ours(nn.Module):
    """dalle's VQGAN, as the training holds it."""

    def __init__(self, theirs: Taming, side: int) -> None:
        super().__init__()
        published = read({name: value.clone() for name, value in theirs.state_dict().items()}, side)
        self.model = VQGAN(published.config)
        self.model.load_state_dict(published.tensors)
        self.model.to(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images).flatten()

    def loss(self, images: Tensor) -> Tensor:
        made = self.model(images.contiguous(memory_format=torch.channels_last))
        return (made.images - images).abs().mean() + made.losses["codebook"]


def trainer(module: Taming | Ours, kind: str, images: Tensor) -> Callable[[], Tensor]:
    """A step of training, which gives its loss."""
    fused = isinstance(module, Ours)
    optimizer = (
        build_optimizer(module, OptimConfig(lr=4.5e-6, weight_decay=0.0))
        if fused
        else torch.optim.Adam(module.parameters(), lr=4.5e-6, betas=(0.5, 0.9))
    )

    def step() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=kind == "bfloat16"):
            loss = module.loss(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def encoder(module: Taming | Ours, kind: str, images: Tensor) -> Callable[[], Tensor]:
    """Images to codes."""

    def encode() -> Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=kind == "bfloat16"):
            return module.encode(images)

    return encode


def measure(args: argparse.Namespace, shape: str, kind: str, device: torch.device) -> dict[str, Any]:
    """Rates of both, in turns."""
    torch.manual_seed(0)
    side, batch = SHAPES[shape][4], args.batch or BATCH[shape]
    theirs = Taming(shape).to(device)
    ours = Ours(theirs, side).to(device)
    if args.compile:
        compile_blocks(ours, device)
    images = torch.rand(batch, 3, side, side, device=device)
    found: dict[str, Any] = {"shape": shape, "kind": kind, "batch": batch}
    modules: dict[str, Taming | Ours] = {"dalle": ours, "taming": theirs}
    for work, make in (("encode", encoder), ("train", trainer)):
        ways = {name: make(module, kind, images) for name, module in modules.items()}
        first = {name: way() for name, way in ways.items()}
        found[f"{work}_same"] = (
            (first["dalle"] == first["taming"]).float().mean().item()
            if work == "encode"
            else ((first["dalle"] - first["taming"]) / first["taming"]).item()
        )
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                spent[name].append(seconds(way, device))
        found[work] = {name: batch / median(times) for name, times in spent.items()}
    return found


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--batch", type=int, help="images (default: 1 of f16, 16 small ones)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile encoder and decoder (run.compile)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()
    device = torch.device(args.device)
    about = describe(device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = []
    for shape in args.shapes:
        for kind in args.kinds:
            found = measure(args, shape, kind, device)
            results.append(found)
            rates = {work: found[work] for work in ("train", "encode")}
            told = "; ".join(
                f"{work} {rate['dalle']:.3g} and {rate['taming']:.3g} images/s ({rate['dalle'] / rate['taming']:.2f} x)"
                for work, rate in rates.items()
            )
            print(
                f"{shape}, {kind}, {found['batch']} images: {told}; {found['encode_same']:.1%} of the codes the "
                f"same, losses {found['train_same']:+.1e} apart",
                flush=True,
            )
    if args.json is not None:
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
