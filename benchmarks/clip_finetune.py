"""What fine-tuning a CLIP gains and forgets: python benchmarks/clip_finetune.py --out runs/clip-finetune-table

The CLIP that ships is fine-tuned on images that it has not seen, in the ways that the documentation names: all weights,
one tower, the upper blocks, LoRA, the sigmoid loss; then mixed with what it began with (WiSE-FT). Each is measured by
retrieval on held-out images of the new data set (gained) and by the style of held-out emoji, zero-shot (kept). The
first row is the start. Options of the recipe may follow as key=value, for example run.steps=200 "data={kind: pairs,
path: my_images}". A run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("clip_finetune.py")

import dalle
import train
from dalle.__main__ import main as command
from dalle.apps.clip_report import Source, retrieval_of
from dalle.apps.zeroshot.accuracy import evaluate_classifier
from dalle.apps.zeroshot.classifier import ZeroShotClassifier
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.data import open_data
from dalle.training.init_config import resolve_recipe

RECIPE = Path("configs/folder/clip.yaml")
WAYS: dict[str, tuple[str, ...]] = {
    "all": (),
    "image locked": ("lock=image",),
    "text locked": ("lock=text",),
    "upper blocks": ("lock=image:3,text:2",),
    "lora": ("lora={rank: 8}", "optim.lr=1.0e-3"),
    "sigmoid": ("loss=sigmoid",),
}
SHARES = ("0.25", "0.5", "0.75")
USUAL = (
    *("data={kind: shapes}", "optim.lr=1.0e-4", "optim.warmup=20", "run.steps=200"),
    *("run.batch_size=128", "run.accumulation=1", "run.tracker=none", "run.report=false"),
)


def tuned(way: str, start: str, folder: Path, overrides: Sequence[str]) -> Path:
    """The run folder of a way."""
    run = folder / way.replace(" ", "-")
    code = train.main(
        [str(RECIPE), f"init_from={start}", *USUAL, *WAYS[way], *overrides, f"run.dir={run}", "resume=auto"]
    )
    if code:
        raise SystemExit(code)
    return run


def measured(source: str | Path, overrides: Sequence[str]) -> dict[str, float]:
    """Retrieval on the new data set's validation split, and the style of emoji, of a CLIP."""
    clip = dalle.load_clip(source)
    recipe = resolve_recipe(RECIPE, [*USUAL, *overrides])
    new, _ = retrieval_of(clip, open_data(recipe.data, "validation", clip.config.image_size), (1, 5))
    emoji = Source("emoji").labeled()
    classifier = ZeroShotClassifier(clip, emoji.labels, emoji.templates)
    kept = evaluate_classifier(classifier, emoji).metrics["top_1"]
    return {name: value for name, value in new.items() if name != "images"} | {"style top_1": kept}


def main() -> None:
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/clip-finetune-table"), help="folder (%(default)s)")
    parser.add_argument("--way", action="append", choices=[*WAYS], help="only these; may be repeated (default: all)")
    parser.add_argument("--start", default="models/emoji/clip", help="CLIP to fine-tune (%(default)s)")
    args, overrides = parser.parse_known_args()
    table = {"start": measured(args.start, overrides)}
    for way in args.way or WAYS:
        run = tuned(way, args.start, args.out, overrides)
        table[way] = measured(run / "model", overrides)
        if way != "all":
            continue
        for share in SHARES:
            mixed = args.out / f"mixed-{share}"
            if not mixed.exists() and command(
                ["export", str(run), str(mixed), "--interpolate", share, "--with", args.start]
            ):
                raise SystemExit(2)
            table[f"all, mixed {share}"] = measured(mixed, overrides)
    (args.out / "metrics.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    columns = list(table["start"])
    print("| way | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for way, row in table.items():
        print(f"| {way} | " + " | ".join(f"{row[column]:.1%}" for column in columns) + " |")


if __name__ == "__main__":
    sys.exit(run_tool(main))
