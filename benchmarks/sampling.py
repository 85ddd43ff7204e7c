"""What the KV cache and sharing a prompt's text are worth in drawing: python benchmarks/sampling.py [--candidates 16]

Draws the same codes three ways with an untrained transformer of the shape of configs/emoji/dalle.yaml, one after the
other in one run, several rounds; prints the median time of each and its ratio to the first.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("sampling.py")

import torch
from torch import Tensor

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.config import from_dict, read_yaml
from dalle.generation.generate import generate
from dalle.generation.sampling import sample
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig

CONFIG = Path(__file__).parents[1] / "configs" / "emoji" / "dalle.yaml"


def without_cache(model: DALLE, text: Tensor, seeds: list[int]) -> Tensor:
    """The whole sequence anew for each token."""
    length = model.config.image_length
    uniform = torch.stack([torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    codes = torch.zeros(len(seeds), 0, dtype=torch.int64)
    rows = text.expand(len(seeds), -1)
    for i in range(length):
        drawn = sample(model(rows, codes)[:, -1].float(), uniform[:, i])
        codes = torch.cat((codes, drawn[:, None]), dim=1)
    return codes


def one_by_one(model: DALLE, text: Tensor, seeds: list[int]) -> Tensor:
    """With the cache, a candidate at a time."""
    return torch.cat([generate(model, text, [[seed]]) for seed in seeds]).flatten(1)


def together(model: DALLE, text: Tensor, seeds: list[int]) -> Tensor:
    """As sample.py draws: with the cache, all candidates in one batch, the text run once."""
    return generate(model, text, [seeds]).flatten(1)


@torch.no_grad()
def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = DALLE(from_dict(DALLEConfig, read_yaml(CONFIG)["model"], str(CONFIG))).eval()
    text = torch.randint(4, model.config.text_vocab, (1, 12))
    seeds = list(range(args.candidates))
    ways: list[Callable[[DALLE, Tensor, list[int]], Tensor]] = [without_cache, one_by_one, together]
    times: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for _ in range(args.rounds):
        codes = []
        for way in ways:
            start = time.perf_counter()
            codes.append(way(model, text, seeds))
            times[way.__name__].append(time.perf_counter() - start)
        same = [(other == codes[0]).float().mean().item() for other in codes]
        assert min(same) > 0.95, f"the ways draw different codes: {same}"
    first = statistics.median(times[ways[0].__name__])
    for name, values in times.items():
        median = statistics.median(values)
        rate = args.candidates * model.config.image_length / median
        print(f"{name:<14} {median:7.2f} s  {rate:7.0f} tokens/s  {first / median:5.1f} x")


if __name__ == "__main__":
    sys.exit(run_tool(main))
