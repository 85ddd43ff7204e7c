"""python -m dalle eval classify: measure the zero-shot classification accuracy of a CLIP."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dalle.cli.classify import add_clip_options, add_label_options, labels_of, templates_given
from dalle.cli.streams import utf8_argument


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("eval classify", help="zero-shot classification accuracy of a CLIP")
    command.add_argument(
        "images",
        metavar="IMAGES",
        help="folder with a subfolder per class, parquet files, a data set on the hub, or emoji",
    )
    command.add_argument(
        "--by",
        type=utf8_argument,
        metavar="COLUMN",
        help="column with the class (label); for emoji: style, group or name (style)",
    )
    command.add_argument(
        "--image", type=utf8_argument, metavar="COLUMN", help="column with images (default: found by name)"
    )
    command.add_argument("--split", help="split of the data set (default: test_pair for emoji, else train)")
    add_label_options(command)
    command.add_argument("--confusion", type=Path, metavar="FILE", help="write the confusion matrix as a PNG")
    command.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="fit the probability of `none of these` and write it (JSON)"
    )
    add_clip_options(command)
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dalle.apps.zeroshot import ZeroShotClassifier
    from dalle.apps.zeroshot.accuracy import evaluate_classifier
    from dalle.apps.zeroshot.calibration import calibrate, check_fit
    from dalle.apps.zeroshot.confusion import confusion_image
    from dalle.data.labeled import open_labeled_images
    from dalle.files import check_file
    from dalle.images.png import write_png

    inputs = [args.images, *filter(None, [args.labels_file])]
    if args.confusion is not None:
        check_file(args.confusion, "--confusion", inputs)
    if args.calibrate is not None:
        check_file(args.calibrate, "--calibrate", inputs)
    data = open_labeled_images(args.images, args.by, args.split, args.image)
    labels, given = labels_of(args), templates_given(args)
    templates = data.templates if given is None else given
    kinds = args.subclasses or (labels is None and data.subclasses)
    classifier = ZeroShotClassifier.from_pretrained(
        labels or data.labels, args.clip, templates, args.device, subclasses=kinds
    )
    if args.calibrate is not None:
        check_fit(classifier)  # before all images are looked at
    with tqdm(total=len(data.records), unit="image", disable=None) as bar:
        result = evaluate_classifier(classifier, data, args.batch_size, args.workers, bar.update)
    for reason in result.skipped:
        print(f"dalle eval classify: skipped {reason}", file=sys.stderr)
    if args.confusion is not None:
        args.confusion.parent.mkdir(parents=True, exist_ok=True)
        write_png(confusion_image(result.confusion, classifier.labels), args.confusion, {})
    if not args.json:
        print(f"{args.images}, {result.metrics['images']} images, {len(classifier.labels)} labels")
        _print(result.metrics)
    fitted: dict[str, float] = {}
    try:
        if args.calibrate is not None:
            calibration, measured = calibrate(classifier, data, args.batch_size, args.workers)
            calibration.write(args.calibrate)
            fitted = {"temperature": calibration.temperature, "none_bias": calibration.none_bias} | measured
    finally:  # a fit that fails does not take the accuracy with it
        if args.json:
            more = {"labels": classifier.labels, "confusion": result.confusion.tolist(), "skipped": result.skipped}
            found = {"source": args.images} | result.metrics | fitted | more
            print(json.dumps(found, indent=2, ensure_ascii=False))
    if not args.json:
        _print(fitted)


def _print(found: dict[str, Any]) -> None:
    for name in (name for name in found if name != "images"):
        print(f"  {name:<24} {found[name]:10.4f}  {_MEANING[name]}")


_MEANING = {
    "top_1": "accuracy",
    "top_5": "fraction of images whose class is among the 5 most probable",
    "mean_per_class": "accuracy of each class, averaged over classes",
    "temperature": "divides the logits of labels and null words",
    "none_bias": "added to the logit of none",
    "right": "fraction of right answers, a label or none, about 2 to 10 labels; half of them with the right one",
    "calibration_error": "mean difference between the probability of an answer and its accuracy",
    "nats": "cross-entropy of the right answer",
    "right_before": "right, without calibration",
    "calibration_error_before": "calibration_error, without calibration",
    "nats_before": "nats, without calibration",
}
