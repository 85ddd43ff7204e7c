"""Images with classes: a folder with a subfolder for each, a table with a column of them, or the embedded emoji.

Shapes: N images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dalle.data.base import BadRecord, Pair, read_image
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.folder import image_files
from dalle.data.custom.open_source import open_source
from dalle.data.custom.records import IndexedRecords, Record, Records, as_record, image_bytes
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.data.drawings.captions import STYLES, Concept, styled_template
from dalle.files import expand_home

EMOJI = "emoji"  # in place of a folder or file: the embedded data set
_EMOJI_SIZE = 128  # pixels, as stored
_STYLED_THINGS = 64  # more, up to all, classified no more images of the validation split (docs/log.md)


@dataclass(frozen=True)
class LabeledImages:
    """Images with their classes.

    Attributes:
        records: N images.
        classes: the class of each; None where the data does not have one.
        labels: the classes that occur, with their synonyms.
        templates: name of a set of templates that suits them, or templates.
        subclasses: whether the words are not synonyms but kinds of their class (`dalle.evaluation.zero_shot`).
    """

    records: Records
    classes: list[str | None]
    labels: dict[str, tuple[str, ...]]
    templates: str | tuple[str, ...]
    subclasses: bool = False


class LabeledPairs:
    """Labeled images as pairs whose captions are their classes.

    Args:
        data: the images.
        image_size: height and width of the images, in pixels.
    """

    def __init__(self, data: LabeledImages, image_size: int):
        self.data, self.image_size = data, image_size

    def __len__(self) -> int:
        return len(self.data.records)

    def pair(self, index: int, seed: int) -> Pair:
        """Image `index`, uint8 [image_size, image_size, 3], and its class."""
        record, name = self.data.records[index], self.data.classes[index]
        if name is None:
            raise BadRecord(record.key, "it has no class")
        return Pair(read_image(image_bytes(record), record.key, self.image_size), name, key=record.key)

    def captions(self) -> Iterator[str]:
        """Every class once."""
        yield from self.data.labels


def check_no_columns(source: str, **columns: str | None) -> None:
    """Refuse columns that are named of the emoji, which are no table.

    Raises:
        ValueError: there is one.
    """
    for name, column in columns.items():
        if source == EMOJI and column is not None:
            raise ValueError(f"{name}={column} is a column of a table, and emoji are none: leave it out")


def open_labeled_images(
    source: str, by: str | None = None, split: str | None = None, image: str | None = None
) -> LabeledImages:
    """Open images with their classes.

    Args:
        source: a folder with a subfolder for each class; Parquet files or a data set of the hub; or "emoji", the
            embedded images.
        by: for a table, the column with the class ("label" if None); for emoji, "style" ("style" if None), "group" or
            "name".
        split: for a data set of the hub ("train" if None) or emoji ("test_pair" if None).
        image: for a table, the column with images; None: found by its name.

    Raises:
        ValueError: the source does not exist, or it has no classes; or an option is for another kind of source.
    """
    check_no_columns(source, image=image)
    if source == EMOJI:
        return _emoji(by or "style", split or "test_pair")
    folder = expand_home(source)
    if by is None and folder.is_dir():
        for name, value in (("split", split), ("image", image)):
            if value is not None:
                raise ValueError(
                    f"{name}={value} is for tables and data sets of the hub, and the subfolders of {source} are its "
                    "classes: leave it out"
                )
        return _folder(folder)
    try:
        config = CustomConfig(path=source, image=image, caption=by or "label")
        rows = open_source(config, source, split or "train").rows()
    except ValueError as error:
        if any(folder.glob("*/*")):
            raise ValueError(f"{error}; if its subfolders are the classes, leave out --by") from error
        raise
    return _from_classes(_RecordSequence(rows), [next(iter(rows.captions(row)), None) for row in range(len(rows))])


def _emoji(by: str, split: str) -> LabeledImages:
    pairs = DrawingsDataset(DrawingsConfig(sets=("emoji",)), split, _EMOJI_SIZE)
    own = [concept.names["en"] for concept in pairs.concepts]
    classes = {"style": pairs.styles, "group": pairs.groups, "name": own}
    if by not in classes:
        raise ValueError(f"emoji have no classes by {by!r}: choose from {', '.join(classes)}")
    # As PNG, so that they are decoded as everybody's files are
    records = [
        as_record(Image.fromarray(pairs.pair(index, 0).image), pairs.canonical_caption(index))
        for index in range(len(pairs))
    ]
    names: list[str | None] = list(classes[by])
    if by == "name":
        return LabeledImages(records, names, {name: (name,) for name in dict.fromkeys(own)}, "emoji-en")
    # What a CLIP of the emoji knows: the things of the training split, in the order of Unicode's list
    known = _known_emoji()
    if by == "style":
        # Captions name a style only beside a thing, so its prompts do, too
        things = list(known)[:: len(known) // _STYLED_THINGS]
        templates = tuple(styled_template(thing) for thing in things)
        return LabeledImages(records, names, {style: words["en"][:1] for style, words in STYLES.items()}, templates)
    # No caption names a group: it is all that belongs to it
    members: dict[str, list[str]] = {}
    for concept, group in known.items():
        members.setdefault(group, []).append(concept.names["en"])
    return LabeledImages(
        records, names, {group: tuple(words) for group, words in members.items()}, "plain", subclasses=True
    )


def _known_emoji() -> dict[Concept, str]:
    """The concepts of the training split -> their groups."""
    train = DrawingsDataset(DrawingsConfig(sets=("emoji",)), "train", _EMOJI_SIZE)
    return dict(zip(train.concepts, train.groups, strict=True))


def _folder(root: Path) -> LabeledImages:
    records = image_files(root)
    parts = [Path(record.key).relative_to(root).parts for record in records]
    outside = next((record.key for record, path in zip(records, parts, strict=True) if len(path) == 1), None)
    if outside is not None:
        raise ValueError(f"{outside} lies in no subfolder: expected {root}/CLASS/IMAGE, a subfolder for each class")
    return _from_classes(records, [path[0] for path in parts])


def _from_classes(records: Records, classes: list[str | None]) -> LabeledImages:
    names = sorted(Counter(name for name in classes if name is not None))
    if not names:
        raise ValueError("no image has a class: expected a name, or a number of a class that has one")
    return LabeledImages(records, classes, {name: (name.replace("_", " "),) for name in names}, "images-en")


class _RecordSequence:
    """Indexed records as the sequence that `embed_images` reads."""

    def __init__(self, rows: IndexedRecords):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Record:
        return self.rows.record(number)
