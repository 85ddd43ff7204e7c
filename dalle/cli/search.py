"""python -m dalle search: search an index of images by text, by image, or by both."""

from __future__ import annotations

import argparse
import json
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli.index import check_not_indexed
from dalle.cli.streams import utf8_argument

if TYPE_CHECKING:
    from dalle.apps.search import Hit, ImageIndex


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("search", help="search an index of images by text, by image, or by both")
    command.add_argument("index", type=Path, metavar="INDEX", help="folder made by `dalle index`")
    command.add_argument(
        "text",
        nargs="*",
        type=utf8_argument,
        metavar="TEXT",
        help="what to search for, in any language that the CLIP understands",
    )
    command.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="find images similar to this one (a file, or a data: URL in base64)",
    )
    command.add_argument(
        "--minus",
        action="append",
        type=utf8_argument,
        default=[],
        metavar="TEXT",
        help="find images unlike this text",
    )
    command.add_argument(
        "--minus-image", action="append", default=[], metavar="FILE", help="find images unlike this one"
    )
    command.add_argument(
        "--where",
        action="append",
        type=utf8_argument,
        default=[],
        metavar="CONDITION",
        help="only images that meet a condition: width>=512, path~holiday, caption~dog; may be repeated",
    )
    command.add_argument("--top", type=int, default=20, help="number of results (%(default)s)")
    command.add_argument(
        "--min-score",
        type=float,
        metavar="SCORE",
        help="only images with at least this score (for a SigLIP and one text: at least this probability)",
    )
    command.add_argument(
        "--distinct",
        type=float,
        nargs="?",
        const=0.97,
        metavar="COSINE",
        help="show only the nearest of near-duplicates, by this cosine similarity (%(const)s)",
    )
    command.add_argument(
        "--weights",
        type=utf8_argument,
        metavar="TEXT:W,...",
        help="texts with weights: 'dog:1, snow:-0.5' means less snow",
    )
    command.add_argument(
        "--vector",
        type=Path,
        metavar="FILE",
        help="find images near an embedding by the CLIP of the index: a JSON list of numbers",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--captions", action="store_true", help="find captions that fit --image, instead of images")
    what.add_argument(
        "--duplicates",
        type=float,
        nargs="?",
        const=0.97,
        metavar="COSINE",
        help="list groups of near-duplicates instead of searching (%(const)s)",
    )
    shown = command.add_mutually_exclusive_group()
    shown.add_argument("--html", type=Path, metavar="FILE", help="write a page of thumbnails")
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    shown.add_argument("--show", action="store_true", help="open a page of thumbnails in the browser")
    command.add_argument(
        "--clip", metavar="SOURCE", help="new location of the CLIP that made the index, if it was moved"
    )
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.apps.search import ImageIndex
    from dalle.files import check_file

    if args.top < 1:
        raise ValueError(f"--top is {args.top}: give 1 or more")
    if args.html is not None:
        check_file(args.html, "--html", [*args.image, *args.minus_image, *filter(None, [args.vector])])
    if args.captions:
        _check_unused(args, "--captions", "image")
        if len(args.image) != 1 or args.html or args.show:
            raise ValueError("--captions takes one --image and no other query: give the image to describe")
    if args.duplicates is not None:
        _check_unused(args, "--duplicates")
    index = ImageIndex(args.index, args.clip, args.device)
    if args.html is not None:
        check_not_indexed(args.html, "--html", args.index, index.table)
    if args.captions:
        _captions(index, args)
        return
    if args.duplicates is not None:
        groups = index.near_duplicates(args.duplicates)[: args.top]
        title, hits = f"near-duplicates in {args.index}", [hit for group in groups for hit in group]
        results: Any = [[vars(hit) for hit in group] for group in groups]
        table = "\n\n".join(_table(group) for group in groups) or "no near-duplicates"
    else:
        given = (args.text, args.image)
        hits = index.search(
            *given,
            minus=args.minus,
            minus_image=args.minus_image,
            top=args.top,
            where=args.where,
            weights=_weights(args.weights),
            vector=None if args.vector is None else _vector(args.vector),
            min_score=args.min_score,
            distinct=args.distinct,
        )
        title, results = _title(args), [vars(hit) for hit in hits]
        table = _table(hits) or "no image fits"
    if args.json:
        print(json.dumps({"index": str(args.index), "query": title, "found": results}, indent=2, ensure_ascii=False))
    elif args.html is not None or args.show:
        _page(index, args, title, hits)
    else:
        print(table)


_QUERY = {
    "text": "TEXT",
    "image": "--image",
    "minus": "--minus",
    "minus_image": "--minus-image",
    "vector": "--vector",
    "weights": "--weights",
    "where": "--where",
    "min_score": "--min-score",
    "distinct": "--distinct",
}


def _check_unused(args: argparse.Namespace, what: str, *used: str) -> None:
    """Refuse parts of a query that a command would leave out in silence."""
    given = [shown for name, shown in _QUERY.items() if name not in used and getattr(args, name) not in (None, [])]
    if given:
        raise ValueError(f"{what} is no search, and does not look at {', '.join(given)}: leave one of them out")


def _weights(option: str | None) -> dict[str, float]:
    """Parse "dog:1, snow:-0.5" into weights by text.

    Raises:
        ValueError: a part is not a text and a number, or a text is given twice.
    """
    weights: dict[str, float] = {}
    for part in option.split(",") if option is not None else []:
        # From the right, as texts may have colons
        text, colon, number = part.strip().rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            colon = ""
        if not colon or not text.strip():
            raise ValueError(f"--weights has {part.strip()!r}: expected a text and a number, as in 'dog:1, snow:-0.5'")
        if text.strip() in weights:
            raise ValueError(f"--weights has {text.strip()!r} twice")
        weights[text.strip()] = weight
    return weights


def _vector(file: Path) -> list[float]:
    """Read the numbers of `--vector`.

    Raises:
        ValueError: the file is not there, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(
            f"{file} is no JSON list of numbers, such as [0.1, -0.2]: give the embedding of one image or text"
        )
    return found


def _captions(index: ImageIndex, args: argparse.Namespace) -> None:
    captions = index.captions(args.image[0], args.top)
    if args.json:
        rows = [{"caption": caption, "score": score} for caption, score in captions]
        print(json.dumps({"index": str(args.index), "found": rows}, indent=2, ensure_ascii=False))
    else:
        print("\n".join(f"{score:7.4f}  {caption}" for caption, score in captions))


def _page(index: ImageIndex, args: argparse.Namespace, title: str, hits: list[Hit]) -> None:
    from dalle.apps.search.html import write_page

    # The browser may read the page long after this process has ended: the folder stays
    path = args.html or Path(tempfile.mkdtemp(prefix="dalle-search-")) / "found.html"
    write_page(path, index, title, hits)
    if args.show and not webbrowser.open(path.absolute().as_uri()):
        raise ValueError(f"no browser could be opened: the page is {path}; --html FILE writes it where you want it")
    print(path)


def _title(args: argparse.Namespace) -> str:
    return " ".join(
        [
            *(f"+ {one}" for one in (*args.text, *map(_shown, args.image))),
            *([f"+ {args.vector}"] if args.vector is not None else []),
            *(f"− {one}" for one in (*args.minus, *map(_shown, args.minus_image))),
            *(f"{weight:+g} × {one}" for one, weight in _weights(args.weights).items()),
        ]
    ).removeprefix("+ ")


def _shown(image: str) -> str:
    """The name of an image, of a data: URL its beginning."""
    return f"{image[:40]}…" if image.startswith("data:") and len(image) > 40 else image


def _table(hits: list[Hit]) -> str:
    from dalle.files import printable

    # The first of several captions: a row is a line
    captions = (hit.caption.partition("\n")[0] for hit in hits)
    rows = (
        f"{hit.likeness:7.4f}  {printable(hit.path)}  {caption}".rstrip()
        for hit, caption in zip(hits, captions, strict=True)
    )
    return "\n".join(rows)
