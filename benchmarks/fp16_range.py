"""What float16 would lose of gradients, block by block, under one loss scale: python benchmarks/fp16_range.py"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

import dalle
from dalle.data import DrawingsConfig, open_data
from dalle.data.loader import evaluation_batches
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

ROOT = Path(__file__).resolve().parents[1]
LARGEST, ZERO = 65504.0, 2.0**-25  # of float16; what is below the second becomes 0


def measure(name: str, model: DALLE, text: Tensor, codes: Tensor) -> None:
    """Print rms and lost shares of the gradients behind each block, and of the block's weights."""
    states: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: object, out: Tensor | tuple[Tensor, ...]) -> None:
        state = out[0] if isinstance(out, tuple) else out
        state.retain_grad()
        states.append(state)

    blocks = list(model.transformer.blocks)
    for block in blocks:
        block.register_forward_hook(keep)
    losses = model.losses(text, codes)
    (losses["text"] / 8 + losses["image"] * 7 / 8).backward()
    gradients = [s.grad for s in states] + [p.grad for p in model.parameters()]
    top = max(float(g.abs().max()) for g in gradients if g is not None)
    best = math.floor(math.log2(LARGEST / top))
    print(f"{name}: largest gradient {top:.3g}, largest scale 2^{best}\n  lost at scale 2^0, 2^16, 2^{best}")
    for number in sorted({0, len(blocks) // 4, len(blocks) // 2, 3 * len(blocks) // 4, len(blocks) - 1}):
        of_weights = torch.cat([p.grad.flatten() for p in blocks[number].parameters() if p.grad is not None])
        for what, gradient in (("stream", states[number].grad), ("weights", of_weights)):
            assert gradient is not None
            lost = ", ".join(f"{_lost(gradient, 2.0**power):.2%}" for power in (0, 16, best))
            print(f"  block {number:2} {what:>8}: rms {gradient.square().mean().sqrt():.2e}, {lost}")


def _lost(gradient: Tensor, scale: float) -> float:
    return ((gradient.abs() * scale < ZERO) & (gradient != 0)).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    for depth in (8, 64):
        config = DALLEConfig(
            transformer=TransformerConfig(width=128, depth=depth, heads=4),
            text_vocab=512,
            text_length=32,
            image_vocab=1024,
            grid=(16, 16),
            attention=("row", "column"),
        )
        text, codes = torch.randint(1, 512, (4, 32)), torch.randint(0, 1024, (4, 256))
        measure(f"random weights, {depth} blocks", DALLE(config), text, codes)
    folder = ROOT / "models/emoji"
    model = dalle.load_model(folder).requires_grad_(True).train()
    data = open_data(DrawingsConfig(sets=("emoji",)), "validation", 64)
    batch = next(iter(evaluation_batches(data, 8, limit=8)))
    text = dalle.load_text_tokenizer(folder / "text_tokenizer").encode(batch.captions, model.config.text_length)
    images = batch.unit_images(torch.device("cpu"))
    codes = dalle.load_image_tokenizer(folder / "image_tokenizer").encode(images).flatten(1)
    measure("models/emoji, trained", model, text, codes)


if __name__ == "__main__":
    main()
