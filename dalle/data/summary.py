"""Describes a data set before training: how many images and captions, one example, and whether it has changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dalle.data.base import BadRecord, PairDataset, PairStream
from dalle.data.custom.dataset import CustomDataset
from dalle.data.custom.stream import CustomStream, StreamValidation
from dalle.files import printable, write_text

_TRIES = 20  # records to try for a readable example
_MAX_COUNTED = 100_000  # largest set whose captions are counted, which takes a few seconds
_MAX_CHARS = 60  # characters of the example's caption


@dataclass(frozen=True)
class Summary:
    """A data set in numbers.

    Attributes:
        training: pairs in the training split; None for a stream, whose length is unknown.
        validation: pairs in the validation split; None for a stream.
        captions: captions in the training split; None if they are generated or not counted.
        example: name and caption of one record.
        digest: hash of the record names, which changes if records are added, removed or renamed.
    """

    training: int | None
    validation: int | None
    captions: int | None
    example: str
    digest: str

    def __str__(self) -> str:
        if self.training is None:
            return f"data: read as a stream; the first record is {self.example}"
        captions = "" if self.captions is None else f" with {self.captions:,} captions"
        return (
            f"data: {self.training:,} images{captions} to train on, {self.validation:,} to validate on; "
            f"for example {self.example}"
        )


def summarize(training: PairDataset | PairStream, held_out: PairDataset) -> Summary:
    """Summarize both splits; of a stream only the first record is read."""
    if isinstance(training, CustomStream):
        record = next(iter(training.source.shards(images=False)[0].records()), None)
        example = "none" if record is None else _shown(record.key, (record.captions or ("",))[0])
        return Summary(None, None, None, example, "")
    assert not isinstance(training, PairStream)
    # Generated sets are told apart by their sizes alone
    captions, names = None, f"{len(training)}/{len(held_out)}"
    if isinstance(training, CustomDataset):
        if len(training) <= _MAX_COUNTED:
            captions = sum(len(training.rows.captions(int(row))) for row in training.members)
        names = "\0".join(training.rows.keys)
    validation = len(held_out) if not isinstance(held_out, StreamValidation) else None
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    return Summary(len(training), validation, captions, _example(training), digest)


def record_and_compare(summary: Summary, file: Path) -> str | None:
    """Write a run's summary to `file`; if an earlier one was there and differs, return a warning about the change."""
    # Written in any case: the next resume compares with what this one trains on
    before, now = _earlier(file), asdict(summary)
    write_text(file, json.dumps(now, ensure_ascii=False, indent=1) + "\n")
    if isinstance(before, str):
        return before
    if before is None or before.get("digest") == summary.digest:
        return None
    return (
        f"the data set has changed since this run began: it had {before.get('training')} images to train on, now "
        f"{summary.training}; what follows is not what the uninterrupted run would have seen"
    )


def _earlier(file: Path) -> dict[str, Any] | str | None:
    """The summary in a file; None if there is none, or a warning if it is damaged."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else f"{file} is damaged: whether the data set has changed is not known"


def _example(data: PairDataset) -> str:
    for number in range(min(_TRIES, len(data))):
        try:
            pair = data.pair(number, 0)
        except BadRecord:
            continue
        return _shown(pair.key or f"number {number}", pair.caption)
    return f"none of the first {min(_TRIES, len(data))} can be read"


def _shown(name: str, caption: str) -> str:
    return f"{printable(name)}: {caption if len(caption) <= _MAX_CHARS else caption[:_MAX_CHARS] + '...'}"
