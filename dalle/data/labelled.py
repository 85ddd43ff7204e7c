"""Images with a class: a folder with a subfolder for each, a table with a column of them, or the embedded emoji."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dalle.data.base import BadRecord, Pair, read_image
from dalle.data.custom.dataset import CustomConfig, open_source
from dalle.data.custom.folder import image_files
from dalle.data.custom.records import IndexedRecords, Record, Records, as_record, image_bytes
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.data.drawings.captions import GROUPS, STYLES

EMOJI = "emoji"  # stands for the embedded data set where a folder or a file is asked for
_EMOJI_LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "style": {style: words["en"] for style, words in STYLES.items()},
    "group": GROUPS,
}
_SIDE = 128  # pixels of the stored images
_SETS = {"style": "style-en", "group": "emoji-en"}


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Attributes:
        records: N images.
        classes: class of each; None where the data does not say.
        labels: the classes that there are, with the words that they go by.
        templates: name of the set of templates that suits them.
    """

    records: Records
    classes: list[str | None]
    labels: dict[str, tuple[str, ...]]
    templates: str


class LabelledPairs:
    """Labelled images as pairs whose captions are their classes.

    Args:
        data: the images.
        image_size: height and width of the images, in pixels.
    """

    def __init__(self, data: Labelled, image_size: int):
        self.data, self.image_size = data, image_size

    def __len__(self) -> int:
        return len(self.data.records)

    def pair(self, index: int, seed: int) -> Pair:
        """Image `index`, uint8 [image_size, image_size, 3], and its class."""
        record, name = self.data.records[index], self.data.classes[index]
        if name is None:
            raise BadRecord(record.key, "its class is not told")
        return Pair(read_image(image_bytes(record), record.key, self.image_size), name, key=record.key)

    def captions(self) -> Iterator[str]:
        """Every class once."""
        yield from self.data.labels


def labelled_images(source: str, by: str | None = None, split: str | None = None, image: str | None = None) -> Labelled:
    """Images with their classes.

    Args:
        source: a folder with a subfolder for each class; parquet files or a data set of the hub; or "emoji", the
            embedded images.
        by: of a table the column with the class, a name or a number that has one; of the emoji "style" or "group".
        split: of the hub's sets ("train" if None), or of the emoji ("test_pair").
        image: of a table the column with images; None: one of the usual names.

    Raises:
        ValueError: nothing is there, or it does not tell classes.
    """
    if source == EMOJI:
        return _emoji(by or "style", split or "test_pair")
    if by is None and Path(source).expanduser().is_dir():
        return _folder(Path(source).expanduser())
    rows = open_source(CustomConfig(path=source, image=image, caption=by or "label"), source, split or "train").rows()
    return _labelled(_Numbered(rows), [next(iter(rows.captions(row)), None) for row in range(len(rows))])


def _emoji(by: str, split: str) -> Labelled:
    if by not in _EMOJI_LABELS:
        raise ValueError(f"the emoji are not told apart by {by!r}: choose from {', '.join(_EMOJI_LABELS)}")
    pairs = DrawingsDataset(DrawingsConfig(sets=("emoji",)), split, _SIDE)
    names = pairs.styles if by == "style" else pairs.groups
    records = [
        as_record(Image.fromarray(pairs.pair(index, 0).image), pairs.canonical_caption(index))
        for index in range(len(pairs))
    ]
    return Labelled(records, list(names), _EMOJI_LABELS[by], _SETS[by])


def _folder(root: Path) -> Labelled:
    records = image_files(root)
    parts = [Path(record.key).relative_to(root).parts for record in records]
    loose = next((record.key for record, own in zip(records, parts, strict=True) if len(own) == 1), None)
    if loose is not None:
        raise ValueError(f"{loose} lies in no subfolder: expected {root}/CLASS/IMAGE, a subfolder for each class")
    return _labelled(records, [own[0] for own in parts])


def _labelled(records: Records, classes: list[str | None]) -> Labelled:
    names = sorted(Counter(name for name in classes if name is not None))
    if not names:
        raise ValueError("no image has a class: expected a name, or a number of a class that has one")
    return Labelled(records, classes, {name: (name.replace("_", " "),) for name in names}, "images-en")


class _Numbered:
    """Rows as a sequence."""

    def __init__(self, rows: IndexedRecords):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Record:
        return self.rows.record(number)
