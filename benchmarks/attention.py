"""What sparse attention costs, and what its masks cover: python benchmarks/attention.py [--text 256 --side 32 ...]

One layer's attention at the paper's shape (256 text tokens, 32 x 32 of the image, 16 heads of 64 channels). Training:
forward and backward with the dense mask, in blocks, and full attention, which needs no mask. Drawing: one token on top
of a cache, at places all over the image, in torch's functions and in compiled code. --flex adds FlexAttention, compiled
(on a CPU it has a forward pass only). Ratios are taken side by side, round by round; the table has their medians.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("attention.py")

import torch
from machine import describe, median, seconds

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.kernels import sparse, switches
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.masks import Kind, mask
from dalle.kernels.native import bindings
from dalle.kernels.pattern import LayerMask, Pattern, SparseMask
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer import Attention, Context
from dalle.models.transformer_config import TransformerConfig

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYERS: tuple[Kind, ...] = ("row", "column", "row", "conv")
COLUMNS = ("covered", "dense_ms", "full_ms", "flex_ms", "auto_ms", "over_dense", "over_full")
PLACES, CACHES = 16, 8  # of the image, where a token is drawn; layers, whose keys and values no cache of a CPU holds


class Shape:
    """What the options say, and what is made of it."""

    def __init__(self, args: argparse.Namespace, kind: Kind, dtype: torch.dtype) -> None:
        self.args, self.kind, self.dtype = args, kind, dtype
        self.device = torch.device(args.device)
        self.length = args.text + args.side**2 - 1  # the last image token is no input
        self.seen = mask(kind, args.text, args.side, args.side)[: self.length, : self.length].to(self.device)
        self.pattern = Pattern(kind, args.text, args.side)

    def mask(self, start: int, end: int) -> LayerMask:
        return "causal" if self.kind == "full" else SparseMask(self.pattern, self.seen[start:end, :end])

    def pass_(self, backward: bool) -> Callable[[], object]:
        """Attention of a whole sequence."""
        shape = (self.args.batch, self.length, 3, self.args.heads, self.args.channels)
        packed = torch.randn(shape, dtype=self.dtype, device=self.device, requires_grad=backward)

        def work() -> None:
            with torch.set_grad_enabled(backward):
                mixed = sparse.attend(*packed.permute(2, 0, 3, 1, 4), self.mask(0, self.length))
                if backward:
                    mixed.backward(mixed.detach())
                    packed.grad = None

        return work

    def steps(self) -> Callable[[], object]:
        """Tokens drawn at places all over the image: what stands between the products with weights, in some layers."""
        args = self.args
        width = args.heads * args.channels
        module = Attention(TransformerConfig(width=width, depth=1, heads=args.heads)).to(self.device, self.dtype)
        module.qkv = module.out = torch.nn.Identity()  # type: ignore[assignment]
        room = (CACHES, args.batch, args.heads, self.length, args.channels)
        cache = KVCache(*room, device=self.device, dtype=self.dtype)
        cache.keys.normal_()
        cache.values.normal_()
        x = torch.randn(args.batch, 1, 3 * width, dtype=self.dtype, device=self.device)
        last = self.length - 1
        places = [args.text + (last - args.text) * i // (PLACES - 1) for i in range(PLACES)]

        @torch.no_grad()
        def work() -> None:
            for place in places:
                cache.position = place
                for layer in range(CACHES):
                    module(x, self.mask(place, place + 1), Context(cache=cache), layer)

        return work


def by(way: str, work: Callable[[], object], compiled: bool = False) -> Callable[[], object]:
    """The work in one of the ways."""

    def run() -> None:
        with switches.force_backend(sparse=way):  # type: ignore[arg-type]
            if compiled:
                work()
            else:
                with switches.force_backend(native="off"):
                    work()

    return run


def rows(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    for name in args.types:
        shapes = {kind: Shape(args, kind, TYPES[name]) for kind in get_args(Kind)}
        for kind, shape in shapes.items():
            if kind == "full":
                continue
            covered = float(shape.seen.sum() / shape.seen.numel())
            for what, backward in (("forward", False), ("forward and backward", True)):
                work, full = shape.pass_(backward), shapes["full"].pass_(backward)
                ways = {"dense": by("dense", work), "full": by("auto", full), "auto": by("auto", work)}
                if args.flex and not backward:
                    ways["flex"] = by("flex", work)
                yield {
                    "type": name,
                    "kind": kind,
                    "what": what,
                    "covered": covered,
                    **ratios(ways, args),
                }
            work, full = shape.steps(), shapes["full"].steps()
            ways = {"dense": by("dense", work), "full": by("auto", full), "auto": by("auto", work)}
            yield {"type": name, "kind": kind, "what": "drawing", **ratios(ways, args)}
            if shape.device.type == "cpu" and bindings.functions():
                ways = {"full": by("auto", full, True), "auto": by("auto", work, True)}
                yield {
                    "type": name,
                    "kind": kind,
                    "what": "drawing, compiled code",
                    **ratios(ways, args),
                }
        if args.depth:
            work, full = model_step(args, TYPES[name], LAYERS), model_step(args, TYPES[name], ("full",))
            ways = {"dense": by("dense", work), "full": by("auto", full), "auto": by("auto", work)}
            what = f"losses of {args.depth} layers, forward and backward"
            yield {"type": name, "kind": ", ".join(LAYERS), "what": what, **ratios(ways, args)}


def model_step(args: argparse.Namespace, dtype: torch.dtype, kinds: tuple[Kind, ...]) -> Callable[[], object]:
    """Losses of a model, forward and backward; half precision as in training, by autocast."""
    shape = TransformerConfig(width=args.heads * args.channels, depth=args.depth, heads=args.heads)
    model = DALLE(
        DALLEConfig(transformer=shape, text_length=args.text, grid=(args.side, args.side), attention=kinds)
    ).to(args.device)
    text = torch.randint(1, 4096, (args.batch, args.text), device=args.device)
    codes = torch.randint(0, 1024, (args.batch, args.side**2), device=args.device)

    def work() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = model.losses(text, codes)
        (losses["text"] / 8 + losses["image"] * 7 / 8).backward()
        model.zero_grad()

    return work


def ratios(ways: dict[str, Callable[[], object]], args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of each way, and how many times faster `auto` is, by round."""
    for run in ways.values():
        run()
    taken = [{way: seconds(run, torch.device(args.device)) for way, run in ways.items()} for _ in range(args.rounds)]
    found = {f"{way}_ms": 1e3 * median([one[way] for one in taken]) for way in ways}
    return found | {f"over_{way}": median([one[way] / one["auto"] for one in taken]) for way in ways if way != "auto"}


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=int, default=256, help="text tokens")
    parser.add_argument("--side", type=int, default=32, help="rows and columns of the image")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--channels", type=int, default=64, help="of a head")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--depth", type=int, default=4, help="layers of the whole model; 0: none")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too, compiled")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.manual_seed(0)
    about, found = describe(torch.device(args.device)), []
    print(" | ".join(str(value) for value in about.values()))
    names = [name.replace("_", " ") for name in COLUMNS]
    print(f"| | | | {' | '.join(names)} |\n|{'---|' * (3 + len(names))}")
    for row in rows(args):
        found.append(row)
        numbers = [f"{row[name]:.2f}" if name in row else "" for name in COLUMNS]
        print(f"| {row['type']} | {row['kind']} | {row['what']} | {' | '.join(numbers)} |", flush=True)
    if args.json is not None:
        options = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"about": about, "options": options, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
