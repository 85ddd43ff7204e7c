"""Updates an index: new and changed images are embedded, those whose file is gone are dropped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dalle.apps.embed import embed_images, fingerprint
from dalle.apps.search import ann, store
from dalle.apps.search.sources import Item, absolute, identity, items_of
from dalle.apps.search.store import Manifest, Source, Table
from dalle.data.custom.records import Record
from dalle.generation.progress import Progress
from dalle.models.clip import CLIP

logger = logging.getLogger(__name__)

EXACT = 100_000  # up to so many vectors a search looks at all of them
_SEGMENT_ROWS, _SEGMENT_SECONDS = 16_384, 30.0  # what a kill can lose at most


@dataclass(frozen=True)
class Report:
    """The changes that an update made to an index."""

    images: int  # that are in it now
    embedded: int  # new or changed, and taken up from a run that was stopped
    unchanged: int
    dropped: int  # whose file is gone, or can no longer be read
    broken: list[str]  # what could not be read, and why


def update(
    folder: Path,
    sources: Sequence[Source],
    clip: CLIP | Callable[[], CLIP],
    clip_name: str = "",
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Make `folder` the index of the images in `sources`, embedding only those that it does not know.

    Args:
        folder: of the index; made if it is not there.
        sources: where images come from; empty: those of the last time.
        clip: makes the vectors; it must be the one that made those which are there. A function that loads it is called
            only if there are images to embed.
        clip_name: where it came from, so that a search finds it again; "" is the one that ships.
        batch_size: images at a time.
        workers: processes that read images; 0 reads them in this one.
        progress: called after each batch with the images done and in all.

    Raises:
        ValueError: a source is not there or holds no images (the index is then left as it was), another CLIP made the
            index, or another process writes to it.
    """
    if not sources and not (folder / store.NAME).exists():
        raise ValueError(f"{folder} is not there yet: say which images are to be indexed")
    with store.locked(folder):
        there = store.read_manifest(folder) if (folder / store.NAME).exists() else None
        old = store.open_table(folder, there) if there is not None else None
        wanted = [absolute(source) for source in sources] or (there.sources if there is not None else [])
        own: CLIP | None = None
        if there is None or isinstance(clip, CLIP):
            own = _checked(clip, folder, there)
            clip_hash, dimensions = fingerprint(own), own.config.embed_dim
        else:
            clip_hash, dimensions = there.clip_hash, there.dimensions
        broken: list[str] = []
        items = list(_listed(wanted, broken))
        known = _StoredVectors(old, store.open_segments(folder, clip_hash))
        unknown = [item for item in items if item not in known]
        if unknown:
            own = own or _checked(clip, folder, there)
            broken += _embed(folder, unknown, own, batch_size, workers, progress)
        # With the segments that have just been written
        known = _StoredVectors(old, store.open_segments(folder, clip_hash))
        indexed = [item for item in items if item in known]
        if not indexed:
            if not broken:
                raise ValueError(f"no images in {', '.join(source.path for source in wanted)}")
            raise ValueError(f"none of {len(items) or len(broken)} images can be read: {broken[0]}")
        made = Manifest(clip_name, clip_hash, dimensions, len(indexed), wanted, ("", 0), None, 1)
        if there is not None:
            made = replace(made, clip=clip_name or there.clip, generation=there.generation + 1)
        _write(folder, made, indexed, known, there)
        unchanged = sum(known.is_old(item) for item in indexed)
        dropped = len(known.before) - sum(item.identity in known.before for item in indexed)
        return Report(len(indexed), len(indexed) - unchanged, unchanged, dropped, broken)


def _checked(clip: CLIP | Callable[[], CLIP], folder: Path, there: Manifest | None) -> CLIP:
    """The CLIP, loaded if need be; ValueError if another made the index."""
    own = clip if isinstance(clip, CLIP) else clip()
    if there is not None and (found := fingerprint(own)) != there.clip_hash:
        raise ValueError(clip_mismatch(folder, there, found))
    return own


def clip_mismatch(folder: Path, manifest: Manifest, given: str) -> str:
    """The message of an error: a CLIP is not the one that made an index."""
    name = manifest.clip or "the one that ships"
    return (
        f"{folder} was made with another CLIP ({name}, {manifest.clip_hash[:12]}) than the one given ({given[:12]}): "
        "give that one, or index the images into another folder"
    )


def _listed(sources: Sequence[Source], broken: list[str]) -> Iterator[Item]:
    """The images of all sources; one that two of them hold is there once. What was passed over goes to `broken`."""
    seen: set[str] = set()
    for number, source in enumerate(sources):
        for item in items_of(source, number):
            if isinstance(item, str):
                broken.append(item)
            elif item.identity not in seen:
                seen.add(item.identity)
                yield item


class _StoredVectors:
    """The vectors on disk, of the index and of the segments of stopped runs, by image."""

    def __init__(self, old: Table | None, segments: Sequence[Table]):
        self.tables = [*([old] if old is not None else []), *segments]
        self.places: dict[str, tuple[str, int, int]] = {}  # identity -> stamp, table, row
        self.before: set[str] = set()  # identities of the index
        for number, table in enumerate(self.tables):
            start = 0
            for batch in table.batches:
                columns = (batch.column(name).to_pylist() for name in ("path", "offset", "row", "stamp"))
                for row, (path, offset, at, stamp) in enumerate(zip(*columns, strict=True), start):
                    # Segments, which are newer, replace what the index has
                    self.places[identity(path, offset, at)] = stamp, number, row
                start += batch.num_rows
            if table is old:
                self.before = set(self.places)

    def __contains__(self, item: Item) -> bool:
        found = self.places.get(item.identity)
        return found is not None and found[0] == item.stamp

    def is_old(self, item: Item) -> bool:
        return bool(self.before) and self.places[item.identity][1] == 0  # table 0 is the index, where there is one

    def facts(self, item: Item) -> tuple[dict[str, Any], np.ndarray]:
        """Size and hash of an image, and its vector, float16 [D]."""
        _, number, row = self.places[item.identity]
        return self.tables[number].row(row, ("width", "height", "sha256")), self.tables[number].vector(row)


class _Items:
    """Items as records to embed."""

    def __init__(self, items: Sequence[Item]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Record:
        item = self.items[number]
        return replace(item.rows.record(item.number), key=item.path)


def _embed(
    folder: Path,
    items: Sequence[Item],
    clip: CLIP,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> list[str]:
    """Embed images into segments, the last one even if interrupted; returns what could not be read, and why."""
    clip_hash, broken = fingerprint(clip), []
    rows: list[dict[str, Any]] = []
    vectors: list[np.ndarray] = []

    def write_segment() -> None:
        if rows:
            store.write_segment(folder, clip_hash, store.as_batch(rows, np.concatenate(vectors)))
        rows.clear()
        vectors.clear()

    since, done = time.monotonic(), 0
    try:
        for batch in embed_images(clip, _Items(items), batch_size, workers):
            broken += [str(error) for error in batch.broken.values()]
            rows += [
                row_of(items[number], asdict(facts)) for number, facts in zip(batch.numbers, batch.facts, strict=True)
            ]
            vectors.append(batch.vectors.numpy().astype(np.float16))
            done += len(batch.numbers) + len(batch.broken)
            if progress is not None:
                progress(done, len(items))
            if len(rows) >= _SEGMENT_ROWS or time.monotonic() - since > _SEGMENT_SECONDS:
                write_segment()
                since = time.monotonic()
    finally:
        write_segment()
    return broken


def row_of(item: Item, facts: dict[str, Any], source: int = 0) -> dict[str, Any]:
    """The row of an image in a table, with its captions as they are now."""
    captions = "\n".join(item.rows.captions(item.number))
    places = {name: getattr(item, name) for name in ("path", "file", "offset", "size", "row", "stamp")}
    return places | facts | {"caption": captions, "source": source}


def _write(folder: Path, made: Manifest, items: Sequence[Item], known: _StoredVectors, there: Manifest | None) -> None:
    """Write the files of an index, and make them the index."""
    table, approximate = f"images-{made.generation:06d}.arrow", f"near-{made.generation:06d}.faiss"

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(items), store.BLOCK):
            some = items[start : start + store.BLOCK]
            found = [known.facts(item) for item in some]
            rows = [row_of(item, facts, item.source) for item, (facts, _) in zip(some, found, strict=True)]
            yield store.as_batch(rows, np.stack([vector for _, vector in found]))

    size = store.write_table(folder / table, batches(), made.dimensions)
    made = replace(made, table=(table, size))
    if len(items) > EXACT and ann.library() is None:
        logger.warning(
            "%d images: searches look at all of them. With `%s` they look at few, which is faster",
            len(items),
            ann.EXTRA,
        )
    elif len(items) > EXACT:
        trained = folder / there.ann[0] if there is not None and there.ann is not None else None
        ann.build(store.Table(folder / table).blocks, folder / approximate, trained)
        made = replace(made, ann=(approximate, (folder / approximate).stat().st_size))
    store.commit(folder, made)
