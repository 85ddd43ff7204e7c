"""Images and captions a second through the tokenizers: python benchmarks/tokenizer_speed.py [--batches 1 16 64]

Encodes and decodes random images with the image tokenizer, captions of the emoji with the text tokenizer; and, where
taming-transformers-rom1504 is installed (`make test-all` does it), the same VQGAN built of its modules beside ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import islice

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("tokenizer_speed.py")

import torch
from machine import describe, median, seconds
from torch import nn

import dalle
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.data import DrawingsConfig, open_data
from dalle.image_tokenizers import ImageTokenizer

CPU = torch.device("cpu")


def rate(count: int, work: Callable[[], object], rounds: int) -> float:
    """How many a second, the median of some rounds after one that does not count."""
    seconds(work, CPU)
    return count / median([seconds(work, CPU) for _ in range(rounds)])


def taming() -> tuple[nn.Module, nn.Module] | None:
    """Encoder and decoder of taming's VQGAN with 16 x 16 codes of 64 x 64 pixels, or none."""
    try:
        from taming.modules.diffusionmodules.model import Decoder, Encoder
    except ImportError:
        return None
    shape = {
        "ch": 64, "out_ch": 3, "ch_mult": (1, 2, 2), "num_res_blocks": 2, "attn_resolutions": [16], "in_channels": 3,
        "resolution": 64, "z_channels": 64, "double_z": False, "dropout": 0.0,
    }  # fmt: skip
    return Encoder(**shape).eval(), Decoder(**shape).eval()


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default="tokenizers/emoji-vqgan", help="image tokenizer (%(default)s)")
    parser.add_argument("--text", default="tokenizers/emoji-bpe", help="text tokenizer (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in describe(CPU).items()))
    tokenizer: ImageTokenizer = dalle.load_image_tokenizer(args.source)
    theirs = taming()
    for batch in args.batches:
        images = torch.rand(batch, 3, tokenizer.image_size, tokenizer.image_size)
        codes = tokenizer.encode(images)
        encoded = rate(batch, lambda images=images: tokenizer.encode(images), args.rounds)
        decoded = rate(batch, lambda codes=codes: tokenizer.decode(codes), args.rounds)
        print(f"batch {batch:>2}: {args.source} encodes {encoded:.0f}, decodes {decoded:.0f} images/s", end="")
        if theirs is not None:
            small = torch.rand(batch, 3, 64, 64)
            states = theirs[0](small)
            one = rate(batch, lambda small=small: theirs[0](small), args.rounds)
            other = rate(batch, lambda states=states: theirs[1](states), args.rounds)
            print(f"; taming's modules (64 channels) {one:.0f} and {other:.0f}", end="")
        print()
    words = dalle.load_text_tokenizer(args.text)
    captions = list(islice(open_data(DrawingsConfig(sets=("emoji",)), "train", 64).captions(), 5000))
    ids = words.encode(captions, 24)
    print(f"{args.text}: encodes {rate(len(captions), lambda: words.encode(captions, 24), args.rounds):.0f}, ", end="")
    print(f"decodes {rate(len(captions), lambda: words.decode(ids), args.rounds):.0f} captions/s")


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(run_tool(main))
