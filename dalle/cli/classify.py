"""python -m dalle classify: images to labels that are only named."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle.apps.zeroshot import Labels, Prediction


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("classify", help="put images to labels that are only named, with CLIP")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_label_options(command)
    command.add_argument("--top", type=int, default=5, help="labels shown for each image (%(default)s)")
    command.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="only labels of at least this probability, such as 0.5; where none is, 'none of these' is the answer",
    )
    add_clip_options(command)
    command.set_defaults(run=_run)


def add_label_options(command: argparse.ArgumentParser) -> None:
    """The options that say which labels there are, and what CLIP reads for them."""
    command.add_argument("--labels", metavar="A,B,...", help="labels, with commas between them")
    command.add_argument(
        "--labels-file",
        metavar="FILE",
        help="labels, one a line; after a tab the words that CLIP reads for it, with tabs between them",
    )
    command.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="sentence with {} for the label, such as 'a photo of a {}'; may be repeated, vectors are averaged",
    )
    command.add_argument(
        "--templates",
        metavar="SET",
        help="sentences that ship: plain, images-en, -hi, -ne, emoji-en, ..., style-en, ...; several with commas "
        "(default: emoji-en with the CLIP that ships, else images-en)",
    )


def add_clip_options(command: argparse.ArgumentParser) -> None:
    """The options of every command that reads images with a CLIP."""
    command.add_argument(
        "--clip", metavar="SOURCE", help="file or folder of a CLIP, or a hub id (default: the one that ships)"
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    command.add_argument(
        "--workers", type=int, default=0, help="processes that read images; 0: none beside (%(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print JSON, not a table")


def labels_of(args: argparse.Namespace) -> Labels | None:
    """The labels of a command line; None if it gives none."""
    from dalle.apps.zeroshot import read_labels

    if args.labels is not None and args.labels_file is not None:
        raise ValueError("--labels and --labels-file are both given: give one of them")
    if args.labels_file is not None:
        return read_labels(args.labels_file)
    if args.labels is not None:
        return [label.strip() for label in args.labels.split(",")]
    return None


def templates_given(args: argparse.Namespace) -> str | list[str] | None:
    """The templates of a command line; None if it gives none."""
    if args.template is not None and args.templates is not None:
        raise ValueError("--template and --templates are both given: give one of them")
    return args.template or args.templates


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.zeroshot import ZeroShotClassifier
    from dalle.data.base import BadRecord
    from dalle.data.custom.folder import image_files

    labels = labels_of(args)
    if labels is None:
        raise ValueError("no labels: give --labels cat,dog or --labels-file FILE")
    records = [record for path in args.images for record in image_files(path)]
    classifier = ZeroShotClassifier.from_pretrained(labels, args.clip, templates_given(args), args.device)
    results: list[dict[str, Any]] = []
    broken: list[BadRecord] = []
    found = classifier.predict(records, args.top, args.batch_size, args.workers, args.threshold)
    for result in tqdm(found, total=len(records), unit="image", disable=None if len(records) > 1 else True):
        if isinstance(result, BadRecord):
            broken.append(result)
            results.append({"image": result.name, "error": result.reason})
            continue
        results.append(_plain(result))
        if not args.json:
            tqdm.write(_table(result), file=sys.stdout)
    if len(broken) == len(records):
        more = f"; none of {len(records)} images can be read" if len(records) > 1 else ""
        raise ValueError(f"{broken[0]}{more}")
    for error in broken:
        print(f"dalle classify: skipped {error}", file=sys.stderr)
    if args.json:
        shown = {"labels": classifier.labels, "templates": classifier.templates, "images": results}
        print(json.dumps(shown, indent=2, ensure_ascii=False))


def _plain(result: Prediction) -> dict[str, Any]:
    rows = zip(result.labels, result.probabilities, strict=True)
    labels = [{"label": label, "probability": round(value, 6)} for label, value in rows]
    none = {} if result.none is None else {"none": round(result.none, 6)}
    return {"image": result.image, "labels": labels, **none}


def _table(result: Prediction) -> str:
    rows = zip(result.labels, result.probabilities, strict=True)
    lines = [f"  {value:7.2%}  {label}" for label, value in rows]
    if not lines and result.none is not None:
        lines = [f"  {result.none:7.2%}  none of these"]
    return "\n".join([result.image, *lines])
