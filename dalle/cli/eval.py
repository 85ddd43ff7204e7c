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
    command.add_argument("--batch-size", type=int, default=argparse.SUPPRESS, help="images per batch (default: 64)")
    command.add_argument(
        "--limit",
        type=int,
        default=argparse.SUPPRESS,
        help="maximum images per split, spread evenly over it (default: 1000 of train)",
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument(
        "--clip",
        default=argparse.SUPPRESS,
        help="CLIP that judges the images of an unCLIP (default: the model's own)",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    drawn = command.add_argument_group("evaluating generated images of a DALL-E, instead of its likelihood")
    drawn.add_argument("--draw", type=int, metavar="N", help="number of prompts per split (of train and test_pair)")
    drawn.add_argument("--judge", metavar="FOLDER", help="folder of a judge trained by `dalle judge`")
    # An option that is not given is missing: only one that was given can be refused
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    drawn.add_argument("--candidates", type=int, help="candidates per prompt (default: 16)", **given)
    drawn.add_argument("--seed", type=int, help="seed of candidates and choices (default: 0)", **given)
    drawn.add_argument(
        "--language", action="append", help="language of prompts: en, hi, ne; may be repeated (en)", **given
    )
    drawn.add_argument("--out", type=Path, help="folder of results (runs/evaluation)", **given)
    drawn.add_argument(
        "--clip-score", metavar="CLIP", help="also compute the CLIP score (mean cosine times 100)", **given
    )
    add_options(drawn, SamplingConfig, default="the model's own")
    command.set_defaults(run=_run)


_OF_LIKELIHOOD = ("batch_size", "limit", "clip")
_OF_SAMPLES = ("candidates", "seed", "language", "out", "clip_score", *(field.name for field in fields(SamplingConfig)))


def _run(args: argparse.Namespace) -> None:
    from dalle.data import AnyDataConfig

    data = from_dict(AnyDataConfig, apply_overrides({"kind": "drawings"}, args.data), "command line")
    # Without a judge generated images have no measure here, and a judge judges nothing else
    if (args.draw is None) != (args.judge is None):
        raise ValueError("--draw and --judge go together: give the number of prompts and the folder of a judge")
    _check_used(args)
    tables = {"": _evaluate(args, data)} if args.draw is None else _evaluate_samples(args, data)
    if args.json:
        header: dict[str, Any] = {"source": args.source, "data": data.kind}
        print(json.dumps(header | ({"splits": tables[""]} if args.draw is None else {"drawn": tables}), indent=2))
        return
    from dalle.evaluation.table import table

    for name, rows in tables.items():
        print(f"{args.source}{', ' if name else ''}{name}\n{table(rows)}")


def _check_used(args: argparse.Namespace) -> None:
    """Refuse an option that was given and that nothing of the call uses."""
    drawn = args.draw is not None
    for name in _OF_LIKELIHOOD if drawn else _OF_SAMPLES:
        if name in args:
            todo = "leave it out" if drawn else "give --draw and --judge, or leave it out"
            is_for = "an evaluation without --draw" if drawn else "generated images"
            raise ValueError(f"--{name.replace('_', '-')} is for {is_for}: {todo}")


def _evaluate(args: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Metrics of each split."""
    from tqdm import tqdm

    from dalle.device import pick_device
    from dalle.evaluation.run import evaluate

    args.batch_size = getattr(args, "batch_size", 64)  # which is to be lowered if memory runs out
    given = {name: getattr(args, name) for name in _OF_LIKELIHOOD if name in args}
    device = pick_device(args.device)
    with tqdm(unit="image", disable=None) as bar:
        return dict(evaluate(args.source, data, args.split, device=device, progress=bar.update, **given))


def _evaluate_samples(args: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Metrics of generated images for each split and language, and for scenes."""
    from tqdm import tqdm

    from dalle.apps.judging.classifier import load_classifier
    from dalle.apps.judging.drawings import check_annotated, open_plain
    from dalle.apps.judging.evaluate import SampleEvaluation, SampleOptions
    from dalle.apps.judging.judge import Judge
    from dalle.checkpoints.load import load_clip
    from dalle.checkpoints.published.efficientnet import load_efficientnet_lite0
    from dalle.device import pick_device
    from dalle.evaluation.run import check_stage
    from dalle.files import check_folder
    from dalle.pipelines.text_to_image import TextToImage

    chosen = {name: getattr(args, name) for name in ("candidates", "seed", "out") if name in args}
    if "language" in args:
        chosen["languages"] = tuple(args.language)
    options = SampleOptions(args.draw, **chosen)
    # All before the model is loaded, which takes longer
    check_folder(options.out)
    check_annotated(data)
    check_stage(args.source, "dalle")
    device = pick_device(args.device)
    classifier = load_classifier(args.judge, device)
    pipe = TextToImage.from_pretrained(args.source, device)
    given = {f.name: getattr(args, f.name) for f in fields(SamplingConfig) if f.name in args}
    pipe.sampling = from_dict(SamplingConfig, to_dict(pipe.sampling) | given, "command line")  # null is an answer, too
    judge = Judge(classifier, open_plain(data, "all", pipe.image_size))
    scorer = load_clip(args.clip_score, device) if "clip_score" in args else None
    with tqdm(unit="prompt", disable=None) as bar:
        network = load_efficientnet_lite0(device=device)
        evaluation = SampleEvaluation(pipe, judge, network, data, options, scorer, bar.update)
        tables = {
            f"{split}, {language}": evaluation.evaluate_split(split, language)
            for split in args.split or ("train", "test_pair")
            for language in options.languages
        }
        return tables | {"scenes": evaluation.evaluate_scenes()}
