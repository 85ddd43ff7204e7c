"""python -m dalle classify: classify images zero-shot by labels, with a CLIP."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from dalle.cli.streams import utf8_argument

if TYPE_CHECKING:
    from dalle.apps.zeroshot import Labels, Prediction


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("classify", help="zero-shot image classification with CLIP")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_label_options(command)
    command.add_argument("--top", type=int, default=5, help="labels shown for each image (%(default)s)")
    command.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="show only labels of at least this probability, such as 0.5; if there is none, show 'none of these'",
    )
    command.add_argument(
        "--calibration",
        metavar="FILE",
        help="for --threshold: a file of `dalle eval classify --calibrate` (default: calibration.json of the CLIP)",
    )
    add_clip_options(command)
    command.set_defaults(run=_run)


def add_label_options(command: argparse.ArgumentParser) -> None:
    """Add the options for labels, and those of `add_template_options`."""
    command.add_argument("--labels", type=utf8_argument, metavar="A,B,...", help="labels, separated by commas")
    command.add_argument(
        "--labels-file",
        metavar="FILE",
        help="labels, one per line; optionally followed by texts to give CLIP instead, separated by tabs",
    )
    command.add_argument(
        "--subclasses",
        action="store_true",
        help="the texts of --labels-file are kinds of their label, of which an image need fit one, not synonyms",
    )
    add_template_options(command)


def add_template_options(command: argparse.ArgumentParser) -> None:
    """Add the options for prompt templates."""
    command.add_argument(
        "--template",
        action="append",
        type=utf8_argument,
        metavar="TEXT",
        help="template with {} for the label, such as 'a photo of a {}'; may be repeated to average embeddings",
    )
    command.add_argument(
        "--templates",
        metavar="SET",
        help="built-in templates, separated by commas: plain, images-en, -hi, -ne, emoji-en, ..., style-en, ... "
        "(default: emoji-en with the built-in CLIP, else images-en)",
    )


def add_clip_options(command: argparse.ArgumentParser) -> None:
    """Add the option for the CLIP, and those of `add_embedding_options`."""
    command.add_argument(
        "--clip", metavar="SOURCE", help="file or folder of a CLIP, or a hub id (default: the built-in one)"
    )
    add_embedding_options(command)


def add_embedding_options(command: argparse.ArgumentParser) -> None:
    """Add the options of commands that embed images with a CLIP."""
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--batch-size", type=int, default=64, help="images per batch (%(default)s)")
    command.add_argument(
        "--workers", type=int, default=0, help="processes that read images; 0 reads in this one (%(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def labels_of(args: argparse.Namespace) -> Labels | None:
    """Return the labels given on the command line; None if there are none."""
    from dalle.apps.zeroshot import read_labels

    if args.labels is not None and args.labels_file is not None:
        raise ValueError("--labels and --labels-file are both given: give only one of them")
    if args.subclasses and args.labels_file is None:
        raise ValueError("--subclasses needs --labels-file, with the kinds of each label after it, separated by tabs")
    if args.labels_file is not None:
        return read_labels(args.labels_file)
    if args.labels is not None:
        return [label.strip() for label in args.labels.split(",")]
    return None


def templates_given(args: argparse.Namespace) -> str | list[str] | None:
    """Return the templates given on the command line; None if there are none."""
    if args.template is not None and args.templates is not None:
        raise ValueError("--template and --templates are both given: give only one of them")
    return args.templates if args.template is None else list(args.template)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.zeroshot import ZeroShotClassifier
    from dalle.apps.zeroshot.classifier import check_answer
    from dalle.data.base import BadRecord
    from dalle.data.custom.folder import image_files

    labels = labels_of(args)
    if labels is None:
        raise ValueError("no labels: give --labels cat,dog or --labels-file FILE")
    if args.calibration is not None and args.threshold is None:
        raise ValueError("--calibration is for the probability of none: give --threshold 0.5, too")
    check_answer(args.top, args.threshold)  # before the CLIP is loaded
    records = [record for path in args.images for record in image_files(path)]
    classifier = ZeroShotClassifier.from_pretrained(
        labels, args.clip, templates_given(args), args.device, args.calibration, args.subclasses
    )
    results: list[dict[str, Any]] = []
    broken: list[BadRecord] = []
    # Only the built-in CLIP's doubts were measured, and another's text tower may take seconds for the other words
    doubts = args.clip is None and not classifier.clip.config.sigmoid
    predictions = classifier.predict(records, args.top, args.batch_size, args.workers, args.threshold, doubts)
    # None: no bar where stderr is no terminal
    for result in tqdm(predictions, total=len(records), unit="image", disable=None if len(records) > 1 else True):
        if isinstance(result, BadRecord):
            broken.append(result)
            results.append({"image": result.name, "error": result.reason})
            continue
        results.append(_plain(result))
        if not args.json:
            # Not print, which would tear the bar on stderr apart
            tqdm.write(_table(result, args.threshold is None), file=sys.stdout)
    # Some unreadable images are skipped with a warning; a run that read none has failed
    if len(broken) == len(records):
        more = f"; none of {len(records)} images can be read" if len(records) > 1 else ""
        raise ValueError(f"{broken[0]}{more}")
    for error in broken:
        print(f"dalle classify: skipped {error}", file=sys.stderr)
    if args.json:
        report = {"labels": classifier.labels, "templates": classifier.templates, "images": results}
        print(json.dumps(report, indent=2, ensure_ascii=False))


def _plain(result: Prediction) -> dict[str, Any]:
    rows = zip(result.labels, result.probabilities, strict=True)
    labels = [{"label": label, "probability": round(value, 6)} for label, value in rows]
    none = {} if result.none is None else {"none": round(result.none, 6)}
    return {"image": result.image, "labels": labels, **none}


def _table(result: Prediction, warns: bool) -> str:
    from dalle.apps.zeroshot.classifier import DOUBTFUL
    from dalle.files import printable

    rows = zip(result.labels, result.probabilities, strict=True)
    lines = [f"  {value:7.2%}  {label}" for label, value in rows]
    if not lines and result.none is not None:
        lines = [f"  {result.none:7.2%}  none of these"]
    elif warns and result.none is not None and result.none > DOUBTFUL:
        lines.append(f"  perhaps none of these: words for other things fit better ({result.none:.2%})")
    return "\n".join([printable(result.image), *lines])
