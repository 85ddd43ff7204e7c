"""How near drawing comes to what the machine can do: python benchmarks/sample_speed.py [--batches 1 8 32 64]

A step of drawing reads every weight once and multiplies it with as many rows as there are candidates. So the script
measures how fast memory is read, also while it draws (other users of a machine come and go), and how fast large
matrices are multiplied; says how many tokens a second these two allow; and draws, with an untrained transformer
(by default of width 768, 12 layers, 64 + 256 tokens, 16,384 codes). Reading the cache is not in the limit.

Beside it draw others' models of the same shape by their own loops (benchmarks/peers.py), float32 on a CPU, bfloat16 on
a GPU, without guidance: Hugging Face's transformers where it is installed, and with --mindalle FOLDER and --llamagen
FOLDER checkouts of these projects. --json FILE keeps all figures, `python benchmarks/plot.py FILE` draws them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("sample_speed.py")

import torch
from machine import Memory, describe, median, multiplication, seconds
from peers import PEERS

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.generation.generate import generate
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.kernels import switches
from dalle.kernels.linear import quantize
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig

KINDS = ("float32", "bfloat16", "int8")


def build(args: argparse.Namespace, kind: str, device: torch.device) -> tuple[DALLE, int, int]:
    """A model, how many weights a step reads, and how many bytes these are."""
    config = DALLEConfig(
        transformer=TransformerConfig(width=args.width, depth=args.depth, heads=args.heads),
        text_vocab=args.codes,
        text_length=args.text,
        image_vocab=args.codes,
        grid=(args.rows, args.rows),
    )
    torch.manual_seed(0)
    model = DALLE(config).to(device).eval()
    if kind == "int8":
        quantize(model)
    else:
        model.to(getattr(torch, kind))
    parts = [model.transformer, model.image_head]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return model, sum(tensor.numel() for tensor in tensors), sum(tensor.nbytes for tensor in tensors)


class Ours:
    """Draws, and reads memory from time to time meanwhile: as fast as it is then, for other users come and go."""

    def __init__(self, model: DALLE, batch: int, memory: Memory, compiled: bool) -> None:
        device = model.image_head.weight.device
        self.model, self.batch, self.memory, self.compiled = model, batch, memory, compiled
        self.text = torch.randint(1, model.config.text_vocab, (1, model.config.text_length), device=device)
        self.every = max(1, model.config.image_length // 32)

    def __call__(self) -> tuple[float, float]:
        """Seconds of a drawing, and bytes a second that were read beside it."""
        reading: list[float] = []

        def progress(done: int, total: int) -> None:
            if done // self.batch % self.every == 0:
                reading.append(self.memory.seconds())

        whole = seconds(
            lambda: generate(
                self.model,
                self.text,
                [list(range(self.batch))],
                SamplingConfig(top_k=256),
                EngineOptions(batch_size=self.batch, compiled=self.compiled),
                progress=progress,
            ),
            self.memory.device,
        )
        return whole - sum(reading), self.memory.bytes / median(reading)


def measure(
    args: argparse.Namespace, kind: str, batch: int, device: torch.device, memory: Memory, operations: float
) -> dict[str, Any]:
    """Rates of all who draw, in turns."""
    model, weights, size = build(args, kind, device)
    ours = Ours(model, batch, memory, args.compiled)
    others: dict[str, Callable[[], object]] = {}
    if args.plain:
        others["dalle, torch only"] = lambda: _plainly(ours)
    if not args.alone and kind == ("bfloat16" if device.type == "cuda" else "float32"):
        made = {name: make(args, device, getattr(torch, kind)) for name, make in PEERS.items()}
        others |= {name: (lambda draw=draw: draw(batch)) for name, draw in made.items() if draw is not None}
    first = {name: seconds(way, device) for name, way in (("dalle", ours), *others.items())} if args.warm else {}
    rates: dict[str, list[float]] = {name: [] for name in ("dalle", *others)}
    limits, reads = [], []
    tokens = batch * args.rows**2
    for _ in range(args.rounds):
        spent, read = ours()
        rates["dalle"].append(tokens / spent)
        limits.append(min(batch * read / size, operations / (2 * weights)))
        reads.append(read)
        for name, way in others.items():
            rates[name].append(tokens / seconds(way, device))
    found = {
        "kind": kind,
        "batch": batch,
        "weight_bytes": size,
        "bytes_per_second": median(reads),
        "operations_per_second": operations,
        "limit": median(limits),
        "share_of_limit": median([rate / limit for rate, limit in zip(rates["dalle"], limits, strict=True)]),
        "tokens_per_second": {name: median(values) for name, values in rates.items()},
        "first_seconds": first,
    }
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def _plainly(ours: Ours) -> None:
    with switches.force_backend(native="off"):
        generate(
            ours.model,
            ours.text,
            [list(range(ours.batch))],
            SamplingConfig(top_k=256),
            EngineOptions(batch_size=ours.batch),
        )


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in (("width", 768), ("depth", 12), ("heads", 12), ("text", 64), ("rows", 16), ("codes", 16_384)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--mindalle", type=Path, metavar="FOLDER")
    parser.add_argument("--llamagen", type=Path, metavar="FOLDER")
    parser.add_argument("--alone", action="store_true", help="leave the others out")
    parser.add_argument("--plain", action="store_true", help="draw without compiled code and packed weights too")
    parser.add_argument("--compiled", action="store_true", help="on a GPU: by torch.compile (take --warm with it)")
    parser.add_argument("--warm", action="store_true", help="draw once before what counts, and state that time apart")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device = torch.device(args.device)
    about = describe(device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = []
    for kind in args.kinds:
        dtype = torch.float32 if kind == "int8" else getattr(torch, kind)
        memory, operations = Memory(device, dtype), multiplication(device, dtype)
        print(f"{kind}: reads {memory.rate() / 1e9:.1f} GB/s, multiplies {operations / 1e9:.0f} GFLOP/s")
        for batch in args.batches:
            found = measure(args, kind, batch, device, memory, operations)
            results.append(found)
            told = ", ".join(f"{who} {rate:.1f}" for who, rate in found["tokens_per_second"].items())
            share = found["share_of_limit"]
            print(
                f"  batch {batch:>2}: limit {found['limit']:6.1f} tokens/s; {told} ({share:.0%} of the limit)",
                flush=True,
            )
    if args.json is not None:
        shape = {name: getattr(args, name) for name in ("width", "depth", "heads", "text", "rows", "codes")}
        args.json.write_text(json.dumps({"about": about, "shape": shape, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(run_tool(main))
