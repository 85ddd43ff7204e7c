"""python -m dalle eval: evaluate trained weights on splits of a data set; with --draw, images sampled from a DALL-E."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from dalle.cli.parser import add_options
from dalle.config import apply_overrides, from_dict, to_dict
from dalle.generation.options import SamplingConfig


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("eval", help="evaluate trained weights on splits of a data set")
    command.add_argument("source", metavar="SOURCE", help="weights: a folder, a published file, or a hub id")
    command.add_argument(
        "data", nargs="*", metavar="key=value", help="options of the data set (default: the embedded drawings)"
    )
    command.add_argument("--split", action="append", help="split of the data set; may be repeated (default: all)")
    command.add_argument("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    command.add_argument(
        "--limit", type=int, help="maximum images per split, spread evenly over it (default: 1000 of train)"
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--clip", help="CLIP that judges the images of an unCLIP (default: the model's own)")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    drawn = command.add_argument_group("evaluating generated images of a DALL-E, instead of its likelihood")
    drawn.add_argument("--draw", type=int, metavar="N", help="number of prompts per split (of train and test_pair)")
    drawn.add_argument("--judge", metavar="FOLDER", help="folder of a judge trained by `dalle judge`")
    drawn.add_argument("--candidates", type=int, default=16, help="candidates per prompt (default: %(default)s)")
    drawn.add_argument("--seed", type=int, default=0, help="seed of candidates and choices (default: %(default)s)")
    drawn.add_argument("--language", action="append", help="language of prompts: en, hi, ne; may be repeated (en)")
    drawn.add_argument("--out", type=Path, default=Path("runs/evaluation"), help="folder of results (%(default)s)")
    drawn.add_argument("--clip-score", metavar="CLIP", help="also compute the CLIP score (mean cosine times 100)")
    add_options(drawn, SamplingConfig, default="the model's own")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.data import AnyDataConfig

    data = from_dict(AnyDataConfig, apply_overrides({"kind": "drawings"}, args.data), "command line")
    # Without a judge generated images have no measure here, and a judge judges nothing else
    if (args.draw is None) != (args.judge is None):
        raise ValueError("--draw and --judge go together: give the number of prompts and the folder of a judge")
    tables = {"": _evaluate(args, data)} if args.draw is None else _evaluate_samples(args, data)
    if args.json:
        header: dict[str, Any] = {"source": args.source, "data": data.kind}
        print(json.dumps(header | ({"splits": tables[""]} if args.draw is None else {"drawn": tables}), indent=2))
        return
    from dalle.evaluation.table import table

    for name, rows in tables.items():
        print(f"{args.source}{', ' if name else ''}{name}\n{table(rows)}")


def _evaluate(args: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Metrics of each split."""
    from tqdm import tqdm

    from dalle.device import pick_device
    from dalle.evaluation.run import evaluate

    device = pick_device(args.device)
    with tqdm(unit="image", disable=None) as bar:
        return dict(evaluate(args.source, data, args.split, args.batch_size, args.limit, device, bar.update, args.clip))


def _evaluate_samples(args: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Metrics of generated images for each split and language, and for scenes."""
    from tqdm import tqdm

    from dalle.apps.judging.classifier import load_classifier
    from dalle.apps.judging.drawings import open_plain
    from dalle.apps.judging.evaluate import SampleEvaluation, SampleOptions
    from dalle.apps.judging.judge import Judge
    from dalle.checkpoints.load import load_clip
    from dalle.checkpoints.published.efficientnet import load_efficientnet_lite0
    from dalle.device import pick_device
    from dalle.evaluation.run import check_stage
    from dalle.files import check_folder
    from dalle.pipelines.text_to_image import TextToImage

    options = SampleOptions(args.draw, args.candidates, args.seed, tuple(args.language or ("en",)), args.out)
    # Both before the model is loaded, which takes longer
    check_folder(args.out)
    check_stage(args.source, "dalle")
    device = pick_device(args.device)
    pipe = TextToImage.from_pretrained(args.source, device)
    given = {f.name: getattr(args, f.name) for f in fields(SamplingConfig) if f.name in args}
    pipe.sampling = from_dict(SamplingConfig, to_dict(pipe.sampling) | given, "command line")  # null is an answer, too
    judge = Judge(load_classifier(args.judge, device), open_plain(data, "all", pipe.image_size))
    scorer = None if args.clip_score is None else load_clip(args.clip_score, device)
    with tqdm(unit="prompt", disable=None) as bar:
        network = load_efficientnet_lite0(device=device)
        evaluation = SampleEvaluation(pipe, judge, network, data, options, scorer, bar.update)
        tables = {
            f"{split}, {language}": evaluation.evaluate_split(split, language)
            for split in args.split or ("train", "test_pair")
            for language in options.languages
        }
        return tables | {"scenes": evaluation.evaluate_scenes()}
