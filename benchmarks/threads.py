"""How threads should wait for work, on a quiet machine and on a busy one: python benchmarks/threads.py [--busy 2]

GNU's OpenMP, which torch computes with on Linux, lets a thread that waits spin for milliseconds before it sleeps. So
this draws images with an untrained transformer and makes training steps of it, in processes of their own whose
OpenMP spins as it does by default, not at all, or so many times; beside nothing else, or beside --busy processes that
only compute. The ways take turns, and the median of some rounds counts, as other users of a machine come and go.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("threads.py")

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool

WAYS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spins=1000": {"GOMP_SPINCOUNT": "1000"},
    "spins=10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def work(seconds: float) -> dict[str, float]:
    """Images drawn and images trained a second, each for about so long."""
    import torch

    from dalle.generate import generate
    from dalle.model import DALLE, DALLEConfig
    from dalle.transformer import TransformerConfig

    shape = TransformerConfig(width=384, depth=8, heads=6)
    config = DALLEConfig(transformer=shape, text_vocab=4096, text_length=32, image_vocab=1024, grid=(8, 8))
    torch.manual_seed(0)
    model = DALLE(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    text, codes = torch.randint(1, 4096, (8, 32)), torch.randint(0, 1024, (8, 64))

    def draw() -> int:
        return len(generate(model, text[:1], [[0, 1, 2, 3]]))

    def train() -> int:
        loss = model.losses(text, codes)["image"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return len(codes)

    rates = {}
    for name, once in (("drawn", draw), ("trained", train)):
        once()
        images, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            images += once()
        rates[name] = images / (time.perf_counter() - start)
    return rates


def measured(way: str, seconds: float) -> dict[str, float]:
    """`work` in a process of its own."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    command = [sys.executable, __file__, "--work", str(seconds)]
    done = subprocess.run(command, env=environment | WAYS[way], capture_output=True, text=True, check=True)
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside it (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement (%(default)s)")
    parser.add_argument("--work", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        print(json.dumps(work(args.work)))
        return
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way, found in rounds.items():
                found.append(measured(way, args.seconds))
    finally:
        for process in beside:
            process.kill()
    print(f"images a second, {os.cpu_count()} CPUs, {args.busy} processes beside; median of {args.rounds}")
    for way, found in rounds.items():
        medians = {name: statistics.median(rates[name] for rates in found) for name in found[0]}
        print(f"{way:12}  " + "  ".join(f"{name} {rate:7.2f}" for name, rate in medians.items()))


if __name__ == "__main__":
    sys.exit(run_tool(main))
