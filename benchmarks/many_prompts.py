"""What a file of prompts costs beside generation: python benchmarks/many_prompts.py [--prompts 64] [--rounds 3]

Generates the same images in turns, by the pipeline alone and by `dalle sample --prompts-file` in the same process,
which also encodes, writes and records them. Seconds are of the processor: other jobs on the machine count little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dalle import TextToImage
from dalle.cli.sample import SampleConfig
from dalle.cli.sample_many import sample_many

WORDS = ("a red heart", "a palm tree", "a blue fish", "लाल दिल", "a smiling face", "a green leaf", "a yellow star")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--together", type=int, default=32, help="images generated together (%(default)s)")
    args = parser.parse_args()
    prompts = [f"{WORDS[i % len(WORDS)]}, {i}" for i in range(args.prompts)]
    pipe = TextToImage.from_pretrained(device="cpu")
    pipe(prompts[: args.together])  # compiles kernels
    print(f"{args.prompts} prompts, one image each, {args.together} together, {torch.get_num_threads()} threads")
    print("| --write | pipeline alone, images/s of the processor | with the file | ratio |\n| --- | --- | --- | --- |")
    for kind in ("folders", "shards", "parquet"):
        alone, whole = [], []
        for _ in range(args.rounds):
            start = time.process_time()
            for first in range(0, len(prompts), args.together):
                pipe(prompts[first : first + args.together])
            alone.append(time.process_time() - start)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "prompts.jsonl"
                file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
                out = Path(folder) / "drawn"
                settings = SampleConfig(prompts_file=file, n=1, out=out, write=kind, batch_size=args.together)
                start = time.process_time()
                assert sample_many(settings, pipe, {}, "benchmark") == 0
                whole.append(time.process_time() - start)
        ratio = statistics.median(a / b for a, b in zip(alone, whole, strict=True))
        rates = [args.prompts / statistics.median(times) for times in (alone, whole)]
        print(f"| {kind} | {rates[0]:.2f} | {rates[1]:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
