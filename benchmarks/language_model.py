"""A language model that draws, at full size: memory and speed: python benchmarks/language_model.py [--tokens 64]

Writes a Janus-Pro-1B of random weights (bfloat16, 4.2 GB, in transformers' layout, with SigLIP and text head as
published) into a temporary folder, and then, each in a process of its own and in turns: inspects it; loads it as int8
and as bfloat16 and draws a whole image of 576 tokens with guidance; and does the same with transformers' own
`JanusForConditionalGeneration` in bfloat16. --tokens says how many tokens this one draws; its cache has the length of
a whole image anyway, so that each takes equally long. The text tokenizer is one of bytes alone.

Memory is the largest resident set (Linux) beyond what Python, its modules and a buffer take; kept are all parameters
and buffers. The limit is reading the weights of a step once, at the speed at which memory was read between the tokens;
reading the cache is not in it. Tokens/s are counted from the first token to the last. With one thread
(OMP_NUM_THREADS=1) all seconds are the processor's, so that others on the core do not count; else they are the clock's.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("language_model.py")

import torch
from machine import Memory, describe, median

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published import janus
from dalle.checkpoints.published.summary import inspect
from dalle.checkpoints.tensors import write_tensors
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.pipelines.text_to_image import TextToImage

PROMPT = "a red fox in the snow"
BEGIN, PAD, IMAGE = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"  # noqa: RUF001
SPECIAL = (BEGIN, PAD, IMAGE, "<|User|>", "<|Assistant|>")
DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16}
KINDS = (*DTYPES, "transformers")
ALONE = torch.get_num_threads() == 1
now = time.process_time if ALONE else time.perf_counter
BETWEEN = 32  # tokens from one reading of memory to the next


def write(folder: Path, args: argparse.Namespace) -> int:
    """Write a checkpoint of random weights, one tensor in memory at a time, and return the number of its parameters."""
    import transformers

    text = {"model_type": "llama", "hidden_size": args.width, "intermediate_size": args.hidden, "rms_norm_eps": 1e-6}
    text |= {"num_hidden_layers": args.depth, "num_attention_heads": args.heads, "num_key_value_heads": args.heads}
    sides = {"projection_dim": args.width}
    config = transformers.JanusConfig(
        text_config=text | {"vocab_size": args.words, "max_position_embeddings": 16_384},
        vision_config=dict(sides),
        vq_config=sides | {"image_token_embed_dim": args.width},
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        state = transformers.JanusForConditionalGeneration(config).state_dict()
    torch.manual_seed(0)
    lazy = {
        name: LazyTensor(value.shape, torch.bfloat16, partial(_random, name, value.shape))
        for name, value in state.items()
    }
    write_tensors(lazy, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(_tokenizer())
    return sum(value.numel() for value in state.values())


def _random(name: str, shape: torch.Size) -> torch.Tensor:
    """Weights that neither grow nor fade from layer to layer: norms of 1, no biases, matrices by their inputs."""
    if len(shape) < 2:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.bfloat16)
    inputs = 1 if "embed" in name else shape[1:].numel()
    return torch.randn(shape).mul_(inputs**-0.5).bfloat16()


def _tokenizer() -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return str(tokenizer.to_str()).encode()


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory now, or at most since `begin_anew`."""
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def begin_anew() -> int:
    """Forget the largest resident set so far; returns the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


class EnoughError(Exception):
    """As many tokens are drawn as were asked for."""


class Clock:
    """Is called after each token, and reads memory from time to time, which does not count."""

    def __init__(self, memory: Memory, limit: int | None = None) -> None:
        self.memory, self.limit = memory, limit
        self.begin = now()
        self.paused = 0.0
        self.at: list[float] = []
        self.reading: list[float] = []

    def __call__(self, *_: Any) -> Any:
        """As a callback of progress, or as a processor of logits, which it returns as they are."""
        self.at.append(now() - self.paused)
        if len(self.at) % BETWEEN == 1:
            start = now()
            self.memory.way()
            self.reading.append(now() - start)
            self.paused += now() - start
        if len(self.at) == self.limit:
            raise EnoughError
        return _[-1]

    def told(self, step_bytes: int) -> dict[str, float]:
        """Figures of a drawing that has just ended."""
        whole = now() - self.paused - self.begin
        rate = (len(self.at) - 1) / (self.at[-1] - self.at[0])
        read = self.memory.bytes / median(self.reading)
        return {
            "tokens": len(self.at),
            "seconds_to_first_token": self.at[0] - self.begin,
            "seconds_of_tokens": self.at[-1] - self.begin,
            "seconds": whole,
            "tokens_per_second": rate,
            "read_bytes_per_second": read,
            "limit": read / step_bytes,
            "share_of_limit": rate * step_bytes / read,
        }


def size(*modules: torch.nn.Module | None) -> int:
    """Bytes of all parameters and buffers."""
    kept = [module for module in modules if module is not None]
    return sum(tensor.nbytes for module in kept for tensor in (*module.parameters(), *module.buffers()))


def ours(
    folder: Path, kind: str, tokens: int | None, memory: Memory
) -> tuple[Callable[[], TextToImage], Callable[[TextToImage], Any]]:
    """How to load and to draw here."""

    def draw(pipe: TextToImage) -> dict[str, float]:
        model, clock = pipe.model, Clock(memory, tokens)
        with suppress(EnoughError):
            pipe(PROMPT, seed=1, progress=clock)
        return clock.told(size(model.transformer, model.head_hidden, model.image_head))

    return lambda: TextToImage.from_pretrained(folder, "cpu", DTYPES[kind]), draw


def peer(folder: Path, tokens: int, memory: Memory) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """How to load and to draw with transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def load() -> Any:
        return transformers.JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def draw(model: Any) -> dict[str, float]:
        words = janus.text_tokenizer(
            (folder / "tokenizer.json").read_bytes(), model.config.text_config.vocab_size, False
        )
        ids = torch.tensor(words.encode_ragged([PROMPT]))
        settings = model.generation_config
        settings.pad_token_id, settings.bos_token_id = words.pad_id, words.id_of(BEGIN)
        settings.generation_kwargs = {"boi_token_id": words.id_of(IMAGE)}
        vision = model.model.vision_model.config
        whole, vision.num_image_tokens = vision.num_image_tokens, min(tokens, vision.num_image_tokens)
        clock = Clock(memory)
        codes = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_mode="image", guidance_scale=5, do_sample=True,
            max_length=ids.shape[1] + whole, logits_processor=transformers.LogitsProcessorList([clock]),
        )  # fmt: skip
        if tokens >= whole:
            model.decode_image_tokens(codes)
        inner = model.model
        return clock.told(size(inner.language_model.layers, inner.language_model.norm, inner.generation_head))

    return load, draw


def work(kind: str, folder: Path, tokens: int, own: int | None) -> dict[str, Any]:
    """What one process measures."""
    memory = Memory(torch.device("cpu"), torch.float32)
    torch.zeros(64, 64) @ torch.zeros(64, 64)
    if kind == "inspect":
        before, start = begin_anew(), now()
        text = inspect(folder)
        return {"seconds": now() - start, "peak": resident(peak=True) - before, "text": text}
    load, draw = peer(folder, tokens, memory) if kind == "transformers" else ours(folder, kind, own, memory)
    before, start = begin_anew(), now()
    made = load()
    seconds, peak = now() - start, resident(peak=True) - before
    kept = size(made) if kind == "transformers" else size(made.model, made.image_tokenizer)
    begin_anew()
    with torch.no_grad():
        drawn = draw(made)
    drawing = resident(peak=True) - before
    return {"load_seconds": seconds, "load_peak": peak, "kept": kept, "draw_peak": drawing, **drawn}


def run(kind: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`work` in a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, __file__, "--work", kind, str(folder), "--tokens", str(args.tokens)]
    command += [] if args.own_tokens is None else ["--own-tokens", str(args.own_tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def told(kind: str, found: dict[str, Any]) -> str:
    """One line of figures."""
    gigabytes = {name: found[name] / 1e9 for name in ("kept", "load_peak", "draw_peak")}
    return (
        f"{kind:>12}: keeps {gigabytes['kept']:.2f} GB; loaded in {found['load_seconds']:.0f} s with at most "
        f"{gigabytes['load_peak']:.2f} GB ({found['load_peak'] / found['kept']:.2f} x); {found['tokens']} tokens in "
        f"{found['seconds_of_tokens']:.1f} s (the first after {found['seconds_to_first_token']:.1f}), in all "
        f"{found['seconds']:.1f} s with at most {gigabytes['draw_peak']:.2f} GB: {found['tokens_per_second']:.2f} "
        f"tokens/s, {found['share_of_limit']:.0%} of {found['limit']:.2f} "
        f"({found['read_bytes_per_second'] / 1e9:.1f} GB/s)"
    )


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    shape = (("width", 2048), ("depth", 24), ("heads", 16), ("hidden", 5632), ("words", 102_400))
    for name, default in shape:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, default=576, help="image tokens that transformers draws (%(default)s)")
    parser.add_argument("--own-tokens", type=int, help="stop drawing here after so many (a whole image, with pixels)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here, and take it from here if it is there")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--work", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        print(json.dumps(work(args.work[0], Path(args.work[1]), args.tokens, args.own_tokens)))
        return
    about = describe(torch.device("cpu"))
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dalle-language-model-") as scratch:
        folder = Path(scratch) if args.folder is None else args.folder
        shapes, shape_file = {name: getattr(args, name) for name, _ in shape}, folder / "shape.json"
        if not (folder / "tokenizer.json").is_file():  # which is written last
            folder.mkdir(parents=True, exist_ok=True)
            shape_file.write_text(json.dumps(shapes), encoding="utf-8")
            print(f"{write(folder, args):,} parameters", flush=True)
        elif not shape_file.is_file() or json.loads(shape_file.read_text(encoding="utf-8")) != shapes:
            raise ValueError(f"{folder} has a checkpoint of another shape: give another --folder")
        print(f"{(folder / 'model.safetensors').stat().st_size / 1e9:.2f} GB of weights", flush=True)
        found = run("inspect", folder, args)
        print(found["text"])
        print(f"inspected in {found['seconds']:.1f} s with at most {found['peak'] / 1e9:.2f} GB", flush=True)
        for _ in range(args.rounds):
            for kind in args.kinds:
                results.append({"kind": kind, **run(kind, folder, args)})
                print(told(kind, results[-1]), flush=True)
    rates = {
        kind: median([one["tokens_per_second"] for one in results if one["kind"] == kind])
        for kind in dict.fromkeys(args.kinds)
    }
    if "transformers" in rates:
        others = [f"{kind} {rates[kind] / rates['transformers']:.1f}" for kind in rates if kind in DTYPES]
        print(f"times as fast as transformers: {', '.join(others)}")
    if args.json is not None:
        content = {"about": about, "shape": shapes, "inspect": found, "results": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
