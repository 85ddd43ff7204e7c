"""What guessing several tokens a step is worth: python benchmarks/jacobi.py [--batches 1 4 16] [--windows 4 8 16]

Draws prompts that the shipped model knows and others, in three languages, with its own sampling options, one token
after the other and by windows, side by side. Prints the mean steps of a batch, the time of a batch, and both against
one-by-one drawing; and how many codes are the same (all, but for floating-point ties).
"""

from __future__ import annotations

import sys
import time

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("jacobi.py")

import torch
from torch import Tensor

from dalle import TextToImage
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.generation.generate import generate
from dalle.generation.options import EngineOptions

KNOWN = ["a palm tree", "a rocket", "a red heart, 3d style", "a slice of pizza"]
KNOWN += ["कुत्ते का चेहरा", "छाता", "रातो मुटु", "ताडको रूख"]
OTHERS = ["a cat riding a green bicycle", "an elephant on a blue background", "गुलाबी हाथी", "निलो कुकुर र घर"]


def draw(pipe: TextToImage, prompt: str, batch: int, window: int) -> tuple[Tensor, int, float]:
    """Codes, steps, and seconds of one batch."""
    calls: list[int] = []
    text = pipe.text_tokenizer.pad(pipe.text_tokenizer.encode_ragged([prompt]), pipe.model.config.text_length)  # type: ignore[union-attr]
    start = time.perf_counter()
    codes = generate(
        pipe.model,
        text,
        [list(range(batch))],
        pipe.sampling,
        EngineOptions(window=window, batch_size=batch),
        progress=lambda done, total: calls.append(done),
    ).cpu()
    return codes, len(calls), time.perf_counter() - start


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--prompts", type=int, default=12, help="of batches of 1; larger batches have fewer")
    parser.add_argument("--rounds", type=int, default=2, help="the fastest of several rounds counts")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    pipe = TextToImage.from_pretrained(device=args.device, dtype=getattr(torch, args.dtype))
    prompts = [*KNOWN, *OTHERS][: args.prompts]
    draw(pipe, prompts[0], 1, 1)
    print(f"{pipe.model.image_head.weight.device}, {args.dtype}, {torch.get_num_threads()} threads")
    print("batch  window  steps  fewer  seconds  faster  ms a step  same codes")
    for batch in args.batches:
        windows = [1, *args.windows]
        steps, seconds, same = dict.fromkeys(windows, 0), dict.fromkeys(windows, 0.0), dict.fromkeys(windows, 0.0)
        some = prompts[:: max(1, min(batch, len(prompts) // 2))]
        for prompt in some:
            best, drawn = dict.fromkeys(windows, float("inf")), dict[int, Tensor]()
            for turn in range(args.rounds):
                for window in windows:  # in turn, so that a busy moment hits them all alike
                    codes, count, spent = draw(pipe, prompt, batch, window)
                    best[window] = min(best[window], spent)
                    drawn[window] = codes
                    steps[window] += 0 if turn else count
            for window in windows:
                seconds[window] += best[window]
                same[window] += (drawn[window] == drawn[1]).float().mean().item() / len(some)
        for window in windows:
            print(
                f"{batch:5}  {window:6}  {steps[window] / len(some):5.1f}  {steps[1] / steps[window]:4.2f}x"
                f"  {seconds[window] / len(some):7.2f}  {seconds[1] / seconds[window]:5.2f}x"
                f"  {1e3 * seconds[window] / steps[window]:9.1f}  {same[window]:10.4f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(run_tool(main))
