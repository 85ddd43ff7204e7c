"""python -m dalle judge: train the judge of `dalle eval --draw`, a classifier of drawings, on all images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dalle.config import apply_overrides, from_dict


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser(
        "judge", help="train a classifier of drawings, on all images, as judge for eval --draw"
    )
    command.add_argument(
        "data", nargs="*", metavar="key=value", help="options of the data set (default: the embedded drawings)"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("runs/judge"),
        help="folder of the judge; a judge that is there is replaced (%(default)s)",
    )
    command.add_argument("--epochs", type=int, default=40, help="number of epochs (%(default)s)")
    command.add_argument("--batch-size", type=int, default=128, help="images per step (%(default)s)")
    command.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (%(default)s)")
    command.add_argument("--seed", type=int, default=20, help="seed of weights, order and augmentation (%(default)s)")
    precision_help = "of forward and backward passes; bf16 is faster on a CPU that multiplies it (%(default)s)"
    command.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=precision_help)
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.judging.classifier import IMAGE_SIZE, STAGE, save_classifier
    from dalle.apps.judging.drawings import open_plain
    from dalle.apps.judging.train import JudgeOptions, train_judge
    from dalle.checkpoints.target import check_target
    from dalle.data import AnyDataConfig
    from dalle.device import pick_device
    from dalle.files import check_folder

    data = from_dict(AnyDataConfig, apply_overrides({"kind": "drawings"}, args.data), "command line")
    options = JudgeOptions(args.epochs, args.batch_size, args.lr, args.seed, args.precision)
    check_folder(args.out)
    replaced = check_target(args.out, STAGE)  # training takes long
    drawings = open_plain(data, "all", IMAGE_SIZE)
    steps = options.epochs * max(1, len(drawings) // options.batch_size)  # as train_judge counts them
    with tqdm(total=steps, unit="step") as bar:

        def on_step(step: int, loss: float) -> None:
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss:.3f}")

        judge = train_judge(drawings, options, pick_device(args.device), on_step)
    save_classifier(judge, args.out)
    instead = ", in place of the judge that was there" if replaced else ""
    print(f"{args.out}: {len(judge.concepts)} concepts, {len(judge.styles)} styles, {len(drawings)} images{instead}")
