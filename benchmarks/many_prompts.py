"""What a file of prompts costs beside generation: python benchmarks/many_prompts.py [--prompts 10000 --write shards]

Generates images by the pipeline alone and by `dalle sample --prompts-file` in the same process, which also encodes,
writes and records them. Seconds are of the processor: other jobs on the machine count little. The pipeline alone draws
--alone of the prompts before the file and as many after it, so that a machine that slows down meets both. Memory is the
resident memory, by quarters of the file's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("many_prompts.py")

import torch

from dalle import TextToImage
from dalle.cli.parser import CommandLine
from dalle.cli.sample import SampleConfig
from dalle.cli.sample_many import read_rows, sample_many
from dalle.cli.tool import run_tool

WORDS = ("a red heart", "a palm tree", "a blue fish", "लाल दिल", "a smiling face", "a green leaf", "a yellow star")
_HEAD = "| --write | pipeline alone, images/s | with the file | ratio | by the clock | memory by quarters, MB |"


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """A list to which the process's resident memory in MB is appended twice a second."""
    found: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    found.append(int(line.split()[1]) / 1000)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def alone(pipe: TextToImage, prompts: list[str], together: int) -> float:
    """Images a second of the processor by the pipeline alone."""
    start = time.process_time()
    for first in range(0, len(prompts), together):
        pipe(prompts[first : first + together])
    return len(prompts) / (time.process_time() - start)


def measure(pipe: TextToImage, prompts: list[str], some: int, together: int, kind: str) -> tuple[list[float], str]:
    """Rates by the pipeline alone, with the file and by the clock, and the memory."""
    before = alone(pipe, prompts[:some], together)
    with tempfile.TemporaryDirectory() as folder, watched_memory() as memory:
        file = Path(folder) / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
        settings = SampleConfig(prompts_file=file, n=1, out=Path(folder) / "drawn", write=kind, batch_size=together)
        start, clock = time.process_time(), time.perf_counter()
        assert sample_many(settings, read_rows(settings), pipe, {}, "benchmark") == 0
        seconds, clock = time.process_time() - start, time.perf_counter() - clock
        report = json.loads((settings.out / "report.json").read_text("utf-8"))
        assert report["images"] == len(prompts) and not report["failed"]
    rate = statistics.mean((before, alone(pipe, prompts[-some:], together)))
    cuts = [memory[i * len(memory) // 4 : (i + 1) * len(memory) // 4] for i in range(4)]
    return [rate, len(prompts) / seconds, len(prompts) / clock], ", ".join(
        f"{statistics.median(cut):.0f}" for cut in cuts if cut
    )


def main() -> None:
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--alone", type=int, default=256, help="of these by the pipeline alone (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--together", type=int, default=32, help="images generated together (%(default)s)")
    parser.add_argument("--write", choices=("folders", "shards", "parquet"), help="one of them; else all in turn")
    parser.add_argument("--model", help="folder of the model; the one that ships if not given")
    args = parser.parse_args()
    prompts = [f"{WORDS[i % len(WORDS)]}, {i}" for i in range(args.prompts)]
    pipe = TextToImage.from_pretrained(args.model, device="cpu")
    pipe(prompts[: args.together])  # compiles kernels
    print(f"{args.prompts} prompts, one image each, {args.together} together, {torch.get_num_threads()} threads")
    print(f"{_HEAD}\n| --- | --- | --- | --- | --- | --- |")
    for kind in ("folders", "shards", "parquet") if args.write is None else (args.write,):
        for _ in range(args.rounds):
            some = min(args.alone, len(prompts))
            (own, whole, clock), memory = measure(pipe, prompts, some, args.together, kind)
            print(f"| {kind} | {own:.2f} | {whole:.2f} | {whole / own:.2f} | {clock:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    sys.exit(run_tool(main))
