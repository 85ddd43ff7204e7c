"""What a training will look at, said before it begins: how many records, images and captions, and one of each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dalle.data.base import BadRecord, PairDataset, PairStream
from dalle.data.custom.dataset import Pairs, PairsStream, StreamValidation

_TRIES = 20  # broken records that are passed over for an example
_COUNTED = 100_000  # records of which captions are counted one by one: some seconds
_SHOWN = 60  # characters of a caption


@dataclass(frozen=True)
class Summary:
    """A data set in numbers.

    Attributes:
        training: pairs of the training split; None of a stream, whose end nobody knows.
        validation: of the split that validates, likewise.
        captions: of the training split; None where they are made up or not counted.
        example: name and caption of one.
        digest: differs where records have come, gone or been renamed.
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
            f"one of them is {self.example}"
        )


def summary_of(training: PairDataset | PairStream, held_out: PairDataset) -> Summary:
    """Look at both splits; of a stream at its first record."""
    if isinstance(training, PairsStream):
        record = next(iter(training.source.shards(images=False)[0].records()), None)
        example = "none" if record is None else _shown(record.key, (record.captions or ("",))[0])
        return Summary(None, None, None, example, "")
    assert not isinstance(training, PairStream)
    captions, names = None, f"{len(training)}/{len(held_out)}"
    if isinstance(training, Pairs):
        if len(training) <= _COUNTED:
            captions = sum(len(training.rows.captions(int(row))) for row in training.members)
        names = "\0".join(training.rows.keys)
    validation = len(held_out) if not isinstance(held_out, StreamValidation) else None
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    return Summary(len(training), validation, captions, _example(training), digest)


def changed(summary: Summary, file: Path) -> str | None:
    """Keep a run's summary in a file; where another is kept there, a line on what has changed since."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    now = asdict(summary)
    file.write_text(json.dumps(now, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if before is None or before.get("digest") == summary.digest:
        return None
    return (
        f"the data set has changed since this run began: it had {before.get('training')} images to train on, now "
        f"{summary.training}; what follows is not what the uninterrupted run would have seen"
    )


def _example(data: PairDataset) -> str:
    for number in range(min(_TRIES, len(data))):
        try:
            pair = data.pair(number, 0)
        except BadRecord:
            continue
        return _shown(pair.key or f"number {number}", pair.caption)
    return "none: all that were tried are broken"


def _shown(name: str, caption: str) -> str:
    return f"{name}: {caption if len(caption) <= _SHOWN else caption[:_SHOWN] + '...'}"
