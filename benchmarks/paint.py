"""How fast painting is, and in how much memory: python benchmarks/paint.py [--vqgan-clip FOLDER]

Seconds of the processor for a step and for the presets, on the models that ship, with one thread. With a checkout of
github.com/nerdyrodent/VQGAN-CLIP as --vqgan-clip, a step of its loop (its own cutouts, augmentations, quantization,
prompts, the same optimizer) runs on the same models with the same cutouts in turns with ours: nothing of it is loaded
but these definitions of its generate.py.
"""

from __future__ import annotations

import ast
import math
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("paint.py")

import torch
import torch.nn.functional as F
from torch import nn

import dalle
from dalle.apps.vqgan_clip.api import CLIP_FOLDER, TOKENIZER, load_painter
from dalle.apps.vqgan_clip.options import PRESETS, PaintOptions
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool

PROMPT = "a red heart, 3d style"
DEFINITIONS = (
    "ReplaceGrad",
    "ClampWithGrad",
    "Prompt",
    "MakeCutouts",
    "vector_quantize",
    "replace_grad",
    "clamp_with_grad",
)
AUGMENTS = {"affine": "Af", "perspective": "Pe", "jitter": "Ji", "erasing": "Er"}  # ours and theirs, their default ones


def theirs(folder: Path, cutouts: int) -> Callable[[], object]:
    """A step of VQGAN-CLIP's loop."""
    import kornia.augmentation

    names: dict[str, object] = {"torch": torch, "nn": nn, "F": F, "K": kornia.augmentation, "math": math}
    names["args"] = types.SimpleNamespace(augments=[list(AUGMENTS.values())])
    tree = ast.parse((folder / "generate.py").read_text(encoding="utf-8"))
    for node in tree.body:
        name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""
        if getattr(node, "name", name) in DEFINITIONS:
            exec(compile(ast.Module([node], []), "generate.py", "exec"), names)  # noqa: S102, a checkout the user names
    there = types.SimpleNamespace(**names)
    tokenizer = dalle.load_image_tokenizer(TOKENIZER).requires_grad_(False)
    clip = dalle.load_clip(CLIP_FOLDER).requires_grad_(False)
    codebook = tokenizer.codebook_embeddings()
    codes = torch.randint(len(codebook), (8 * 8,), generator=torch.Generator().manual_seed(0))
    z = codebook[codes].view(1, 8, 8, -1).movedim(3, 1).clone().requires_grad_()
    lowest, highest = (m[None, :, None, None] for m in (codebook.amin(0), codebook.amax(0)))
    optimizer = torch.optim.Adam([z], lr=0.1)
    cut = there.MakeCutouts(clip.config.image_size, cutouts)
    prompt = there.Prompt(clip.encode_text([PROMPT]))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nearest = there.vector_quantize(z.movedim(1, 3), codebook).movedim(3, 1)
        image = there.clamp_with_grad(tokenizer.decode_latents(nearest), 0, 1)
        prompt(clip.encode_image(cut(image)).float()).backward()
        optimizer.step()
        with torch.inference_mode():
            z.copy_(z.maximum(lowest).minimum(highest))

    return step


def seconds(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median processor time of each kind of step, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn:  # the first of each does not count
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vqgan-clip", type=Path, help="checkout of github.com/nerdyrodent/VQGAN-CLIP")
    parser.add_argument("--cutouts", type=int, nargs="+", default=[8, 32], help="cutouts of a step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each kind (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for cutouts in args.cutouts:
        alike = PaintOptions(
            prompt=PROMPT, cutouts=cutouts, cutout=("pool",), augment=",".join([*AUGMENTS, "noise"]), start="codes"
        )
        steps: dict[str, Callable[[], object]] = {"ours": load_painter(alike, "cpu").take_step}
        if args.vqgan_clip is not None:
            steps["VQGAN-CLIP's"] = theirs(args.vqgan_clip, cutouts)
        found = seconds(steps, args.rounds)
        told = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in found.items())
        ratio = f": {found['ours'] / found[name]:.2f} of its time" if (name := "VQGAN-CLIP's") in found else ""
        print(f"a step of {cutouts} cutouts: {told}{ratio}", flush=True)
    for preset, (count, cutouts) in PRESETS.items():
        painter = load_painter(PaintOptions(prompt=PROMPT, preset=preset), "cpu")
        step = seconds({"step": painter.take_step}, args.rounds)["step"]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux, and it only grows
        print(
            f"{preset}: {count} steps of {cutouts} cutouts, {count * step:.0f} s, {memory:.1f} GiB at most", flush=True
        )


if __name__ == "__main__":
    sys.exit(run_tool(main))
