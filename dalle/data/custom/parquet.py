"""Tables through Hugging Face datasets: parquet files here, or a data set of the hub, loaded whole or streamed."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from dalle.data.custom.records import (
    FileSpan,
    Record,
    Rows,
    Shard,
    Source,
    caption_column,
    captions_of,
    has_captions,
    image_column,
)
from dalle.remote import PATIENCE, failures

_SHARDS = 16  # of a saved set that is streamed
_CHUNK = 16  # records that a stream reads at a time
_KEY = "__key__"  # of the WebDataset layout


class TableSource(Source):
    """A table with a column of images and one of captions (a text, or a list of texts).

    A record's key is what its column data.key holds; else FILE/ROW, or only ROW for a data set of the hub.

    Args:
        load: Loads it through `datasets`, streaming or not.
        where: What to call it in errors.
        files: The parquet files, where they are here.
        image, caption, key: Names of columns; None: the usual ones.
        captioned: Whether there must be captions.

    Raises:
        ValueError: it cannot be loaded, or has not these columns.
    """

    def __init__(
        self,
        load: Callable[[bool], Any],
        where: str,
        files: list[Path],
        image: str | None,
        caption: str | None,
        key: str | None,
        captioned: bool = True,
    ):
        self.load, self.where, self.files = load, where, files
        self.image, self.caption, self.key, self.captioned = image, caption, key, captioned

    def rows(self) -> TableRows:
        with explained(self.where):
            table = self.load(False)
        names = table.column_names
        table = self._undecoded(table)
        if (key := self._key(names)) is not None:
            keys = [str(value) for value in table.select_columns([key])[:][key]]
        elif self.files:
            keys = [f"{file.name}/{row}" for file in self.files for row in range(row_count(file))]
        else:
            keys = [str(row) for row in range(len(table))]
        return TableRows(table, keys, self._image(names), self._caption(names))

    def shards(self, images: bool = True) -> list[Shard]:
        with explained(self.where):
            stream = self.load(True)
            names = list(stream.features or next(iter(stream)))
        image, caption, key = self._image(names), self._caption(names), self._key(names)
        assert caption is not None, "streams are for training, which needs captions"
        stream = self._undecoded(stream)
        if not images:
            stream = stream.select_columns(list(dict.fromkeys([caption] + ([key] if key else []))))
        count = stream.num_shards
        named = [file.name for file in self.files]
        if len(named) != count:
            named = [str(number) for number in range(count)]

        parts = [stream.shard(num_shards=count, index=number) for number in range(count)]
        read = partial(self._records, image=image if images else None, caption=caption, key=key)
        return [Shard(name, partial(read, part, name)) for name, part in zip(named, parts, strict=True)]

    def _records(self, part: Any, name: str, image: str | None, caption: str, key: str | None) -> Iterator[Record]:
        row = 0
        for chunk in part.iter(_CHUNK):  # by `iter`, as `__iter__` would share records among the loader's workers
            for at, captions in enumerate(chunk[caption]):
                own = f"{name}/{row}" if key is None else str(chunk[key][at])
                content, fault = (None, None) if image is None else image_of(chunk[image][at])
                yield Record(own, captions_of(captions, lines=caption == "txt"), content, fault)
                row += 1

    def _image(self, names: list[str]) -> str:
        return image_column(self.image, [name for name in names if name != _KEY], self.where)

    def _caption(self, names: list[str]) -> str | None:
        others = [name for name in names if name != _KEY]
        if not self.captioned and not has_captions(self.caption, others):
            return None
        return caption_column(self.caption, others, self.where)

    def _key(self, names: list[str]) -> str | None:
        if self.key is None:
            return _KEY if _KEY in names else None
        if self.key not in names:
            raise ValueError(
                f"{self.where} has no column {self.key!r}: there are {', '.join(names)}; set data.key to one"
            )
        return self.key

    def _undecoded(self, table: Any) -> Any:
        """With images as bytes, so that a broken one is met where it can be skipped, and passing by costs little."""
        import datasets

        for name, feature in (table.features or {}).items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
        return table


class TableRows(Rows):
    """Records of a memory-mapped Arrow table; a caption that is the number of a class is its name."""

    def __init__(self, table: Any, keys: list[str], image: str, caption: str | None):
        self.keys, self.image, self.caption = keys, image, caption
        self.table = table.select_columns(list(dict.fromkeys([image, caption] if caption else [image])))
        self.texts = table.select_columns([caption]) if caption else None
        self.classes: list[str] | None = getattr(table.features[caption], "names", None) if caption else None

    def record(self, row: int) -> Record:
        found = self.table[row]
        image, fault = image_of(found[self.image])
        return Record(self.keys[row], self._captions(found), image, fault)

    def captions(self, row: int) -> tuple[str, ...]:
        return () if self.texts is None else self._captions(self.texts[row])

    def _captions(self, found: dict[str, Any]) -> tuple[str, ...]:
        if self.caption is None:
            return ()
        value = found[self.caption]
        if self.classes is not None and isinstance(value, int):
            value = self.classes[value] if value >= 0 else None  # -1 is a class that is not told
        return captions_of(value, lines=self.caption == "txt")


def image_of(value: Any) -> tuple[bytes | FileSpan | None, str | None]:
    """What a column of images holds, or why it is no image."""
    if isinstance(value, dict):
        value = value.get("bytes") or (FileSpan(value["path"]) if value.get("path") else None)
    if isinstance(value, (bytes, FileSpan)):
        return value, None
    if value is None:
        return None, "there is no image"
    return None, f"expected an image's bytes, got {type(value).__name__} {str(value)[:40]!r}"


def parquet_source(
    files: list[Path], image: str | None, caption: str | None, key: str | None, captioned: bool = True
) -> TableSource:
    """Parquet files on this machine.

    Raises:
        ValueError: one of them is not a whole parquet file.
    """
    if not sum(row_count(file) for file in files):
        raise ValueError(
            f"{files[0]}: there are no rows in {'it' if len(files) == 1 else f'any of {len(files)} files'}"
        )

    def load(stream: bool) -> Any:
        import datasets

        return datasets.load_dataset(
            "parquet", data_files=[glob.escape(str(f)) for f in files], split="train", streaming=stream
        )

    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return TableSource(load, where, files, image, caption, key, captioned)


def hub_source(
    name: str, split: str, image: str | None, caption: str | None, key: str | None, captioned: bool = True
) -> TableSource:
    """A data set of the hub, `owner/name`, or a folder in the layout of one."""

    def load(stream: bool) -> Any:
        import datasets

        with _asked_once(name):
            return datasets.load_dataset(name, split=split, streaming=stream)

    return TableSource(load, f"{name} (no folder here, so taken as a hub id)", [], image, caption, key, captioned)


@contextmanager
def _asked_once(name: str) -> Iterator[None]:
    """Where the hub does not answer, load what has been fetched before, without asking six times more."""
    import datasets
    import huggingface_hub

    switches: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        huggingface_hub.dataset_info(name, timeout=PATIENCE)
    except huggingface_hub.errors.HfHubHTTPError:  # it answers; what is wrong loading will tell
        pass
    except failures():
        for module in switches:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def saved_source(
    root: Path, split: str, image: str | None, caption: str | None, key: str | None, captioned: bool = True
) -> TableSource:
    """What `save_to_disk` of Hugging Face datasets wrote into a folder.

    Raises:
        ValueError: it has splits, and not this one; or it has none, and another than "train" is wanted.
    """
    with explained(str(root)):
        import datasets

        found = datasets.load_from_disk(str(root))
    splits = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    if split not in splits:
        raise ValueError(
            f"{root} has no split {split!r}: there are {', '.join(map(str, splits))}; set data.split to one"
        )
    table = splits[split]

    def load(stream: bool) -> Any:
        return table.to_iterable_dataset(num_shards=max(1, min(_SHARDS, len(table)))) if stream else table

    return TableSource(load, str(root), [], image, caption, key, captioned)


def row_count(file: Path) -> int:
    """Rows of a parquet file, from its footer."""
    try:
        return parquet.read_metadata(file).num_rows
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is not a whole parquet file ({reason}): copy it anew or leave it out") from error


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Loading without progress bars, and with one line for what goes wrong."""
    import datasets
    from datasets.exceptions import DatasetsError

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except StopIteration as error:
        raise ValueError(f"{where}: there are no records in it") from error
    except (OSError, ValueError, DatasetsError, pyarrow.ArrowException) as error:
        reason = (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{where} cannot be loaded: {reason}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
