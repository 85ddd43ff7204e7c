"""Softmax and sigmoid loss of a CLIP in large batches, in one table: python benchmarks/clip_losses.py

Both train the CLIP of a recipe for as many steps on the same pairs, 1,024 at a time in micro-batches (GradCache), and
are then measured as `dalle eval clip` does: retrieval on held-out images of known things (test_pair) and of unknown
things (test_concept), style and group by zero-shot on test_pair. The second table is what the CLIP that ships has to
reach. Recipe options may follow as key=value, for example run.steps=4000. A run that was interrupted goes on.

A step of 1,024 pairs of the recipe takes 18 s on one core (docs/training.md), so 2,000 steps of both losses are
for a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import dalle
import train
from dalle.apps.clip_report import Source, retrieval_of
from dalle.apps.zeroshot.accuracy import evaluate_classifier
from dalle.apps.zeroshot.classifier import ZeroShotClassifier
from dalle.models.clip import CLIP

LOSSES = ("softmax", "sigmoid")
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
        classifier = ZeroShotClassifier(clip, data.labels, data.templates)
        found[f"{by} top_1"] = evaluate_classifier(classifier, data).metrics["top_1"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="configs/emoji/clip.yaml", help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/clip-losses"), help="folder of the runs (%(default)s)")
    parser.add_argument("--batch", type=int, default=1024, help="pairs a step (%(default)s)")
    parser.add_argument("--micro", type=int, default=128, help="pairs at a time (%(default)s)")
    parser.add_argument("--other", action="append", default=[], metavar="CLIP", help="one more CLIP to measure")
    args, overrides = parser.parse_known_args()
    if args.batch % args.micro:
        parser.error(f"--batch {args.batch} is no multiple of --micro {args.micro}")
    size = [f"run.batch_size={args.batch}", f"run.accumulation={args.batch // args.micro}"]
    clips = {loss: str(trained(args.recipe, loss, args.out, [*size, *overrides])) for loss in LOSSES}
    clips |= {source: source for source in args.other}
    table = {name: metrics_of(dalle.load_clip(source)) for name, source in clips.items()}
    (args.out / "metrics.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    print("| metric | " + " | ".join(table) + " | goal |\n|---|" + "---|" * (len(table) + 1))
    for metric in next(iter(table.values())):
        goal = f"{GOALS[metric]:.0%}" if metric in GOALS else ""
        print(f"| {metric} | " + " | ".join(f"{row[metric]:.1%}" for row in table.values()) + f" | {goal} |")


if __name__ == "__main__":
    main()
