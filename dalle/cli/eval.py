"""python -m dalle eval: measures of trained weights on the splits of a data set; with --draw of what a model draws."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dalle.config import apply_overrides, from_dict


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("eval", help="measures of a tokenizer, a CLIP or a DALL-E on splits of a data set")
    command.add_argument("source", metavar="SOURCE", help="weights: a folder, a published file, or a hub id")
    command.add_argument(
        "data", nargs="*", metavar="key=value", help="options of the data set (default: the embedded drawings)"
    )
    command.add_argument("--split", action="append", help="of the data set; may be given again (default: all)")
    command.add_argument("--batch-size", type=int, default=64, help="images at a time (default: %(default)s)")
    command.add_argument(
        "--limit", type=int, help="at most so many images of a split, evenly spread over it (default: 1000 of train)"
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON, not a table")
    drawn = command.add_argument_group("drawings of a DALL-E, judged in place of its nats")
    drawn.add_argument("--draw", type=int, metavar="N", help="prompts of each split (default: train, test_pair)")
    drawn.add_argument("--judge", metavar="FOLDER", help="folder of the judge that `dalle judge` has trained")
    drawn.add_argument("--candidates", type=int, default=16, help="of each prompt (default: %(default)s)")
    drawn.add_argument("--seed", type=int, default=0, help="of candidates and choices (default: %(default)s)")
    drawn.add_argument("--language", action="append", help="of the prompts: en, hi, ne; may be given again (en)")
    drawn.add_argument("--out", type=Path, default=Path("runs/evaluation"), help="codes and sheets (%(default)s)")
    drawn.add_argument("--clip-score", metavar="CLIP", help="mean cosine with the prompt by this CLIP, times 100, too")
    drawn.add_argument("--guidance", type=float, help="this and the next three: the model's own if not given")
    drawn.add_argument("--temperature", type=float)
    drawn.add_argument("--top-k", type=int)
    drawn.add_argument("--top-p", type=float)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.data import AnyDataConfig

    data = from_dict(AnyDataConfig, apply_overrides({"kind": "drawings"}, args.data), "command line")
    if (args.draw is None) != (args.judge is None):
        raise ValueError("--draw and --judge go together: how many prompts, and who judges the drawings")
    tables = {"": _measured(args, data)} if args.draw is None else _judged(args, data)
    if args.json:
        told: dict[str, Any] = {"source": args.source, "data": data.kind}
        print(json.dumps(told | ({"splits": tables[""]} if args.draw is None else {"drawn": tables}), indent=2))
        return
    from dalle.evaluation.table import table

    for name, found in tables.items():
        print(f"{args.source}{', ' if name else ''}{name}\n{table(found)}")


def _measured(args: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Measures by split."""
    from tqdm import tqdm

    from dalle.device import pick_device
    from dalle.evaluation.run import evaluate

    device = pick_device(args.device)
    with tqdm(unit="image", disable=None) as bar:
        return dict(evaluate(args.source, data, args.split, args.batch_size, args.limit, device, bar.update))


def _judged(args: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Measures of drawings by split and language, and of scenes."""
    from tqdm import tqdm

    from dalle.apps.judging.classifier import load_classifier
    from dalle.apps.judging.drawings import open_plain
    from dalle.apps.judging.drawn import DrawOptions, Examination
    from dalle.apps.judging.judge import Judge
    from dalle.checkpoints.load import load_clip
    from dalle.checkpoints.published.efficientnet import load_efficientnet_lite0
    from dalle.cli.outputs import check_folder
    from dalle.device import pick_device
    from dalle.evaluation.run import check_stage
    from dalle.pipeline import TextToImage

    options = DrawOptions(args.draw, args.candidates, args.seed, tuple(args.language or ("en",)), args.out)
    check_folder(args.out)
    check_stage(args.source, "dalle")
    device = pick_device(args.device)
    pipe = TextToImage.from_pretrained(args.source, device)
    pipe.sampling = pipe.sampling.updated(
        guidance=args.guidance, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p
    )
    judge = Judge(load_classifier(args.judge, device), open_plain(data, "all", pipe.image_size))
    scorer = None if args.clip_score is None else load_clip(args.clip_score, device)
    with tqdm(unit="prompt", disable=None) as bar:
        network = load_efficientnet_lite0(device=device)
        examination = Examination(pipe, judge, network, data, options, scorer, bar.update)
        found = {
            f"{split}, {language}": examination.split(split, language)
            for split in args.split or ("train", "test_pair")
            for language in options.languages
        }
        return found | {"scenes": examination.scenes()}
