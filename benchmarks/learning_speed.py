"""How fast a DALL-E learns beside DALLE-pytorch's: held-out loss against time, on the same images, codes and machine.

    python benchmarks/learning_speed.py --minutes 20 --share 0.6

Both read the same captions and codes (images of the recipe's training split, encoded once), have about as many
parameters, and train in turns, a minute each, so that other users of the machine count for both. DALLE-pytorch trains
as its train_dalle.py does: Adam, 3e-4, gradients clipped to 0.5 (--peer-lr tries other rates, each a run of its own);
it gets all of --minutes. This project trains as its recipe says, with a schedule over --share of that time. What is
compared is the mean cross-entropy of an image token of the validation split, at the end and each minute. Neither time
includes validation. The peer: `pip install --no-deps dalle-pytorch axial-positional-embedding rotary-embedding-torch
g-mlp-pytorch`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("learning_speed.py")

import torch
import torch.nn.functional as F
from machine import describe
from peers import dalle_pytorch_model
from torch import Tensor, nn

from dalle.checkpoints.load import load_image_tokenizer, load_text_tokenizer
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.data import open_data
from dalle.data.loader import evaluation_batches
from dalle.models.dalle import DALLE
from dalle.training.init_config import resolve_recipe
from dalle.training.optim import EMA, build_optimizer, clipped_step, gradient_norm, learning_rate
from dalle.training.recipe import DALLERecipe

TURN = 60  # seconds of one turn
BATCH = 64


@dataclass(frozen=True)
class Pairs:
    """Captions [N, T] and codes [N, h * w], as token ids."""

    text: Tensor
    codes: Tensor

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The same batch at the same step for everybody: images in an order of their own each epoch."""
        per_epoch = len(self.text) // BATCH
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(self.text), generator=torch.Generator().manual_seed(epoch))
        rows = order[place * BATCH : (place + 1) * BATCH]
        return self.text[rows], self.codes[rows]


@dataclass
class Learner:
    """A model in training.

    Attributes:
        train: one step, given text, codes and the share of the time that is gone.
        nats: mean cross-entropy of an image token of text and codes.
        minutes: how long it may train.
        curve: minutes trained, steps, and held-out nats of an image token.
    """

    name: str
    parameters: int
    minutes: float
    train: Callable[[Tensor, Tensor, float], None]
    nats: Callable[[Tensor, Tensor], float]
    seconds: float = 0.0
    steps: int = 0
    curve: list[tuple[float, int, float]] = field(default_factory=list)

    def turn(self, data: Pairs, held_out: Pairs) -> None:
        """Train for a minute of what is left, then validate."""
        until = min(self.seconds + TURN, self.minutes * 60)
        while self.seconds < until:
            text, codes = data.batch(self.steps)
            start = time.perf_counter()
            self.train(text, codes, self.seconds / (self.minutes * 60))
            self.seconds += time.perf_counter() - start
            self.steps += 1
        parts = [slice(first, first + BATCH) for first in range(0, len(held_out.text), BATCH)]
        sums = [self.nats(held_out.text[part], held_out.codes[part]) * len(held_out.text[part]) for part in parts]
        self.curve.append((self.seconds / 60, self.steps, sum(sums) / len(held_out.text)))
        print(
            f"{self.name}: {self.seconds / 60:.1f} minutes, {self.steps} steps, {self.curve[-1][2]:.4f} nats",
            flush=True,
        )


def ours(recipe: DALLERecipe, minutes: float) -> Learner:
    """The recipe's model and optimizer, with its schedule over the time instead of over steps."""
    torch.manual_seed(0)
    model, averaged = DALLE(recipe.model), DALLE(recipe.model).eval()
    optimizer, optim = build_optimizer(model, recipe.optim), replace(recipe.optim, warmup=30)
    ema = EMA(model, recipe.optim.ema or 0.99)
    schedule, steps = 1000, [0]  # the share of the time in thousandths is the step of the schedule

    def train(text: Tensor, codes: Tensor, share: float) -> None:
        model.train()
        rate = learning_rate(optim, int(share * schedule), schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(text, codes)
        (losses["text"] * recipe.text_weight + losses["image"] * recipe.image_weight).backward()
        norm = gradient_norm(model.parameters())
        clipped_step(optimizer, norm, recipe.optim.clip_norm)
        optimizer.zero_grad()
        ema.update(steps[0], norm.isfinite())
        steps[0] += 1

    @torch.no_grad()
    def nats(text: Tensor, codes: Tensor) -> float:
        averaged.load_state_dict(ema.state)
        with torch.autocast("cpu", torch.bfloat16):
            return float(averaged.losses(text, codes)["image"])

    return Learner("dalle", sum(p.numel() for p in model.parameters()), minutes, train, nats)


def dalle_pytorch(recipe: DALLERecipe, depth: int, lr: float, minutes: float) -> Learner:
    """DALLE-pytorch's model with the optimizer and the options of its train_dalle.py."""
    torch.manual_seed(0)
    config = recipe.model
    shape = argparse.Namespace(
        rows=config.grid[0], codes=config.image_vocab, text=config.text_length, width=config.transformer.width,
        depth=depth, heads=config.transformer.heads,
    )  # fmt: skip
    model = dalle_pytorch_model(shape)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr)

    def train(text: Tensor, codes: Tensor, share: float) -> None:
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(text, codes, return_loss=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def nats(text: Tensor, codes: Tensor) -> float:
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(text, codes)
        # One vocabulary: text tokens, padding of each place, then codes. Its mask leaves image tokens the codes only
        logits = logits[:, -config.image_length :, -config.image_vocab :].float()
        return float(F.cross_entropy(logits.flatten(0, 1), codes.flatten()))

    return Learner(f"DALLE-pytorch, lr {lr:g}", sum(p.numel() for p in trained), minutes, train, nats)


def encoded(recipe: DALLERecipe, split: str, count: int) -> Pairs:
    """Captions and codes of `count` images, evenly spread over a split."""
    tokenizer, words = load_image_tokenizer(recipe.image_tokenizer), load_text_tokenizer(recipe.text_tokenizer)
    captions, codes = [], []
    for batch in evaluation_batches(open_data(recipe.data, split, tokenizer.image_size), BATCH, limit=count):
        captions += batch.captions
        with torch.autocast("cpu", torch.bfloat16):
            codes.append(batch.codes(tokenizer, torch.device("cpu")))
    return Pairs(words.encode(captions, recipe.model.text_length), torch.cat(codes))


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the recipe")
    parser.add_argument("--recipe", type=Path, default=Path("configs/emoji/dalle.yaml"), help="%(default)s")
    parser.add_argument("--minutes", type=float, default=20, help="of DALLE-pytorch's training (%(default)s)")
    parser.add_argument("--share", type=float, default=0.6, help="of that time for this project (%(default)s)")
    parser.add_argument("--images", type=int, default=20_000, help="to train on (%(default)s)")
    parser.add_argument(
        "--peer-depth", type=int, help="its layers, of 4/3 the parameters of ours (default: 3/4 of ours)"
    )
    parser.add_argument("--peer-lr", type=float, nargs="+", default=[3e-4], help="%(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    args = parser.parse_intermixed_args()
    recipe = resolve_recipe(args.recipe, args.overrides)
    if not isinstance(recipe, DALLERecipe):
        raise SystemExit(f"{args.recipe} is of stage {recipe.stage}; expected dalle")
    data, held_out = encoded(recipe, "train", args.images), encoded(recipe, "validation", 256)
    depth = args.peer_depth or max(1, round(recipe.model.transformer.depth * 3 / 4))
    learners = [ours(recipe, args.minutes * args.share)]
    learners += [dalle_pytorch(recipe, depth, lr, args.minutes) for lr in args.peer_lr]
    while any(learner.seconds < learner.minutes * 60 for learner in learners):
        for learner in learners:
            if learner.seconds < learner.minutes * 60:
                learner.turn(data, held_out)
    best = min(learners[1:], key=lambda learner: learner.curve[-1][2])
    for learner in learners:
        minutes, steps, nats = learner.curve[-1]
        size = learner.parameters / 1e6
        print(f"{learner.name}: {size:.1f} M parameters, {minutes:.1f} minutes, {steps} steps: {nats:.4f}")
    reached = next((minutes for minutes, _, nats in learners[0].curve if nats <= best.curve[-1][2]), None)
    if reached is not None:
        print(f"its final loss is reached after {reached:.1f} minutes, {reached / args.minutes:.0%} of its time")
    if args.json is not None:
        curves = {learner.name: learner.curve for learner in learners}
        args.json.write_text(json.dumps({"about": describe(torch.device("cpu")), "curves": curves}, indent=1))


if __name__ == "__main__":
    sys.exit(run_tool(main))
