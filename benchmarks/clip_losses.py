"""Softmax and sigmoid loss of a CLIP in large batches, in one table: python benchmarks/clip_losses.py

Both train the CLIP of a recipe for as many steps on the same pairs, 1,024 at a time in micro-batches (GradCache), and
are then measured as `dalle eval clip` does: retrieval on held-out images of known things (test_pair) and of unknown
things (test_concept), style and group by zero-shot on test_pair. Recipe options may follow as key=value, for example
run.steps=600. A run that was interrupted goes on.

Towers, images and runs are smaller than the recipe's, and the pairs are emoji on white with English captions, so that
both losses take some three minutes of one core: enough to tell which learns more from as many pairs, not how good a
CLIP becomes. `--full` trains as the recipe says (2.5 s for each 384 pairs on one core), so it is for a GPU; its table
has the goals of the CLIP that ships.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("clip_losses.py")

import dalle
import train
from dalle.apps.clip_report import Source, retrieval_of
from dalle.apps.zeroshot.accuracy import evaluate_classifier
from dalle.apps.zeroshot.classifier import ZeroShotClassifier
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.models.clip import CLIP

LOSSES = ("softmax", "sigmoid")
SMALL = (
    *("model.image_size=48", "model.patch_size=8", "model.text_length=16", "augment=0"),
    *("model.vision={width: 128, depth: 3, heads: 2}", "model.text={width: 128, depth: 2, heads: 2}"),
    # Emoji alone, whole and on white, in English: what is learned fastest
    "data={kind: drawings, sets: [emoji], languages: [en], scenes: 0, backgrounds: 0, inks: 0, shift: 0, scale: 1}",
    *("run.steps=100", "optim.warmup=20", "optim.ema=0.97", "run.validate_every=100", "run.report=false"),
)
GOALS = {
    "test_pair image_to_text@1": 0.3,
    "test_pair image_to_text@10": 0.8,
    "test_concept image_to_text@10": 0.5,
    "style top_1": 0.6,
    "group top_1": 0.5,
}


def trained(recipe: str, loss: str, out: Path, overrides: Sequence[str]) -> Path:
    """The model folder of a run with a loss."""
    code = train.main([recipe, f"run.dir={out / loss}", f"loss={loss}", "resume=auto", *overrides])
    if code:
        raise SystemExit(code)
    return out / loss / "model"


def metrics_of(clip: CLIP) -> dict[str, float]:
    """Retrieval and zero-shot accuracy on the embedded images."""
    found: dict[str, float] = {}
    for split in ("test_pair", "test_concept"):
        pairs = Source("emoji", split=split).captioned(clip.config.image_size)
        metrics, _ = retrieval_of(clip, pairs, (1, 10))
        found |= {f"{split} {name}": value for name, value in metrics.items() if name != "images"}
    for by in ("style", "group"):
        data = Source("emoji", by=by).labeled()
        classifier = ZeroShotClassifier(clip, data.labels, data.templates, subclasses=data.subclasses)
        found[f"{by} top_1"] = evaluate_classifier(classifier, data).metrics["top_1"]
    return found


def main() -> None:
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="configs/emoji/clip.yaml", help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/clip-losses"), help="folder of the runs (%(default)s)")
    parser.add_argument("--batch", type=int, default=1024, help="pairs a step (%(default)s)")
    parser.add_argument("--full", action="store_true", help="towers, images and steps of the recipe, for a GPU")
    parser.add_argument("--micro", type=int, default=128, help="pairs at a time (%(default)s)")
    parser.add_argument("--other", action="append", default=[], metavar="CLIP", help="one more CLIP to measure")
    args, overrides = parser.parse_known_args()
    if args.batch % args.micro:
        parser.error(f"--batch {args.batch} is no multiple of --micro {args.micro}")
    size = [f"run.batch_size={args.batch}", f"run.accumulation={args.batch // args.micro}", "run.tracker=none"]
    usual = size if args.full else [*size, *SMALL]
    clips = {loss: str(trained(args.recipe, loss, args.out, [*usual, *overrides])) for loss in LOSSES}
    clips |= {source: source for source in args.other}
    table = {name: metrics_of(dalle.load_clip(source)) for name, source in clips.items()}
    (args.out / "metrics.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    goals = GOALS if args.full else {}
    print("| metric | " + " | ".join([*table, *(["goal"] if goals else [])]) + " |")
    print("|---" * (len(table) + 1 + bool(goals)) + "|")
    for metric in next(iter(table.values())):
        row = [f"{of_clip[metric]:.1%}" for of_clip in table.values()]
        goal = [f"{goals[metric]:.0%}" if metric in goals else ""] if goals else []
        print(f"| {metric} | " + " | ".join([*row, *goal]) + " |")


if __name__ == "__main__":
    sys.exit(run_tool(main))
