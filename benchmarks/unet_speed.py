"""Training and sampling with the U-Net of unCLIP, beside diffusers': python benchmarks/unet_speed.py [--size 32]

Both are of the same shape with the same weights; before anything is timed the script says how far their outputs are
apart. A training step is a forward pass, squared error, backward pass and AdamW; sampling is forward passes alone. In
bfloat16 both run under autocast. Times are of the processor (all threads together), so that other work on the machine
counts little. diffusers: pip install diffusers
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("unet_speed.py")

import torch
from diffusers import UNet2DConditionModel
from machine import describe, median
from torch import Tensor, nn

from dalle.checkpoints.modules import load_weights
from dalle.checkpoints.published.unet import unet_config, unet_tensors
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.models.unet import UNet
from dalle.training.optim import OptimConfig, build_optimizer
from dalle.training.run.malloc import keep_freed_memory

WIDTHS, LAYERS, CONTEXT, TOKENS = (64, 128, 128), 1, 128, 28


class Theirs(nn.Module):
    """diffusers' U-Net, asked as ours is."""

    def __init__(self) -> None:
        super().__init__()
        down = ["ResnetDownsampleBlock2D"] * (len(WIDTHS) - 1)
        self.net = UNet2DConditionModel(
            in_channels=3, out_channels=3, down_block_types=[*down, "SimpleCrossAttnDownBlock2D"],
            up_block_types=["SimpleCrossAttnUpBlock2D", *(name.replace("Down", "Up") for name in down)],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=WIDTHS, layers_per_block=LAYERS,
            cross_attention_dim=CONTEXT, attention_head_dim=64, class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )  # fmt: skip

    def forward(self, x: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        return self.net(x, steps, context, class_labels=x.new_zeros(len(x), 4 * WIDTHS[0])).sample


class Ours(nn.Module):
    """Our U-Net with diffusers' weights and its embedding of steps."""

    def __init__(self, theirs: Theirs) -> None:
        super().__init__()
        config = unet_config(dict(theirs.net.config))
        tensors = unet_tensors(config, theirs.net.state_dict())[0]
        self.net = load_weights(UNet(config, 3, 3, CONTEXT), tensors, "diffusers").train()
        self.time_proj, self.time_embedding = theirs.net.time_proj, theirs.net.time_embedding

    def forward(self, x: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        return self.net(x, self.time_embedding(self.time_proj(steps)), context)


def rate(work: Callable[[], object], images: int, repeats: int) -> float:
    """Images for each second of the processor."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return images / median(times)


def measure(net: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], bfloat16: bool, repeats: int) -> dict[str, float]:
    """Images a second in training and in sampling."""
    optimizer = build_optimizer(net, OptimConfig())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = net(*inputs).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def sample() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            net(*inputs)

    return {"training": rate(step, len(inputs[0]), repeats), "sampling": rate(sample, len(inputs[0]), repeats)}


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=32, help="pixels a side (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images at a time (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each time, whose median counts (%(default)s)")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    inputs = (
        torch.randn(args.batch, 3, args.size, args.size),
        torch.randint(0, 1000, (args.batch,)),
        torch.randn(args.batch, TOKENS, CONTEXT),
    )
    theirs = Theirs()
    ours = Ours(theirs)
    with torch.no_grad():
        apart = (ours(*inputs) - theirs(*inputs)).abs().max().item()
    print(json.dumps({"machine": describe(torch.device("cpu")), "threads": torch.get_num_threads(), "apart": apart}))
    for bfloat16 in (False, True):
        for name, net in (("diffusers", theirs), ("ours", ours)):
            found = measure(net, inputs, bfloat16, args.repeats)
            told = {key: round(value, 1) for key, value in found.items()}
            print(json.dumps({"net": name, "dtype": "bfloat16" if bfloat16 else "float32", **told}), flush=True)


if __name__ == "__main__":
    sys.exit(run_tool(main))
