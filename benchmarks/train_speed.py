"""How near training comes to what the machine multiplies: python benchmarks/train_speed.py [--batches 4 16]

One step of an untrained transformer (by default of width 768, 12 layers, 64 + 256 tokens, 16,384 codes; --size takes
larger ones): forward and backward pass, clipping, AdamW. In turns with it the script measures how fast large matrices
are multiplied, so that other users of a machine count for both, and says which share of that rate the operations of
the step make (three forward passes, masked pairs of tokens left out: what `python -m dalle plan` counts).

Others' models of the same shape do the same step (benchmarks/peers.py): minDALL-E's with --mindalle FOLDER, a
checkout of it, DALLE-pytorch's where it is installed; both with torch's AdamW as it comes, and under autocast in
bfloat16. On a GPU also the peak of memory is said. --json FILE keeps all figures.

On a CPU freed memory is kept by the process, as in train.py, which speeds the others up too; --alone leaves them out,
and --others measures them alone, with memory as Python starts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("train_speed.py")

import torch
from machine import describe, median, multiplication, seconds
from peers import LOSSES
from torch import Tensor, nn

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig
from dalle.training.optim import EMA, OptimConfig, build_optimizer, clipped_step, gradient_norm
from dalle.training.planning.plan import operations
from dalle.training.planning.setup import ModelSize
from dalle.training.run.compiling import compile_blocks
from dalle.training.run.malloc import keep_freed_memory

KINDS = ("float32", "bfloat16")
SIZES = {"350M": (1024, 24, 16), "760M": (1536, 24, 16), "1.3B": (2048, 24, 16)}  # width, layers, heads


class Step:
    """One step after the other of one model."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        kind: str,
        step: Callable[[], object] | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.step = model, loss, optimizer, step or self._clipped
        self.device, self.kind = next(model.parameters()).device, kind

    def __call__(self, text: Tensor, codes: Tensor) -> None:
        low = self.kind == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            loss = self.loss(text, codes)
        loss.backward()
        self.step()
        self.optimizer.zero_grad()

    def _clipped(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 4.0)
        self.optimizer.step()


def ours(args: argparse.Namespace, config: DALLEConfig, device: torch.device, kind: str) -> Step:
    """dalle's model, loss and optimizer."""
    torch.manual_seed(0)
    model = DALLE(config).to(device)
    if args.compile:
        compile_blocks(model, device)

    def loss(text: Tensor, codes: Tensor) -> Tensor:
        losses = model.losses(text, codes)
        return losses["text"] / 8 + losses["image"] * 7 / 8

    average = EMA(model, 0.999) if args.average else None
    optimizer = build_optimizer(model, OptimConfig())

    def step() -> None:
        norm = gradient_norm(model.parameters())
        clipped_step(optimizer, norm, 4.0)
        if average is not None:
            average.update(1000, norm.isfinite())

    return Step(model, loss, optimizer, kind, step)


def others(args: argparse.Namespace, device: torch.device, kind: str) -> dict[str, Step]:
    """The same of those that are there."""
    made = {} if args.alone else {name: make(args, device) for name, make in LOSSES.items()}
    found = {}
    for name, pair in made.items():
        if pair is not None:
            model, loss = pair
            trained = [p for p in model.parameters() if p.requires_grad]
            found[name] = Step(model, loss, torch.optim.AdamW(trained, lr=3e-4), kind)
    return found


def measure(
    args: argparse.Namespace, config: DALLEConfig, kind: str, batch: int, device: torch.device
) -> dict[str, Any]:
    """Rates of all who train, in turns."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    text = torch.randint(1, args.codes, (batch, args.text), device=device)
    codes = torch.randint(0, args.codes, (batch, args.rows**2), device=device)
    ways = {} if args.others else {"dalle": ours(args, config, device, kind)}
    peak = None
    for way in ways.values():
        for _ in range(2):  # the first makes the moments, and compiles
            seconds(lambda way=way: way(text, codes), device)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    more = others(args, device, kind)
    for way in more.values():
        seconds(lambda way=way: way(text, codes), device)
    ways |= more
    spent: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    products = []
    tokens, work = batch * (args.text + args.rows**2), batch * operations(ModelSize.of(config), checkpointing=False)
    for _ in range(args.rounds):
        for name, way in ways.items():
            before = multiplication(device, getattr(torch, kind), rounds=3)
            spent[name].append(seconds(lambda way=way: way(text, codes), device))
            products.append(max(before, multiplication(device, getattr(torch, kind), rounds=3)))
            shares[name].append(work / spent[name][-1] / products[-1])
    return {
        "kind": kind,
        "batch": batch,
        "operations": work,
        "operations_per_second": median(products),
        "share_of_products": {name: median(found) for name, found in shares.items()},
        "tokens_per_second": {name: tokens / median(times) for name, times in spent.items()},
        "seconds": spent,
        "peak_bytes": peak,
    }


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(SIZES), help="width, layers and heads of a usual size")
    for name, default in (("width", 768), ("depth", 12), ("heads", 12), ("text", 64), ("rows", 16), ("codes", 16_384)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--mindalle", type=Path, metavar="FOLDER")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--alone", action="store_true", help="leave the others out")
    who.add_argument("--others", action="store_true", help="leave dalle out")
    parser.add_argument("--compile", action="store_true", help="compile the blocks (run.compile)")
    parser.add_argument("--average", action="store_true", help="average the weights too (optim.ema)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.size is not None:
        args.width, args.depth, args.heads = SIZES[args.size]
    if not args.others:
        keep_freed_memory()
    device = torch.device(args.device)
    shape = TransformerConfig(width=args.width, depth=args.depth, heads=args.heads)
    config = DALLEConfig(
        transformer=shape,
        text_vocab=args.codes,
        text_length=args.text,
        image_vocab=args.codes,
        grid=(args.rows, args.rows),
    )
    about = describe(device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = []
    for kind in args.kinds:
        for batch in args.batches:
            found = measure(args, config, kind, batch, device)
            results.append(found)
            told = ", ".join(
                f"{who} {rate:,.0f} ({found['share_of_products'][who]:.0%})"
                for who, rate in found["tokens_per_second"].items()
            )
            memory = "" if found["peak_bytes"] is None else f"; {found['peak_bytes'] / 1e9:.2f} GB at dalle's peak"
            products = f"of {found['operations_per_second'] / 1e9:,.0f} GFLOP/s of products"
            print(f"{kind}, batch {batch:>2}: tokens/s {told} {products}{memory}", flush=True)
    if args.json is not None:
        sizes = {name: getattr(args, name) for name in ("width", "depth", "heads", "text", "rows", "codes")}
        args.json.write_text(json.dumps({"about": about, "shape": sizes, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
