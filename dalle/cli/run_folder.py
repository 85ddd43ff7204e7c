"""The output folder of `dalle sample --prompts-file`: what is generated, which parts are complete, and the report.

Its records are all that processes know of each other: nothing is sent, so any of them may start late, die or go on.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dalle import __version__
from dalle.cli.prompts_file import PromptRow
from dalle.cli.sample import SampleConfig
from dalle.files import sha256, write_text

_SECONDS = 2.0  # from one look at the other processes' parts to the next
_BEFORE = {"agreement": 0.0}  # options that older runs do not record, and what they did
_UNKNOWN_BEFORE = ("model_sha256", "clip")  # what older runs do not record, so that it cannot be compared


class RunFolder:
    """The output folder: run.json (what is drawn), parts/ (records of what is complete), report.json (at the end)."""

    def __init__(
        self, settings: SampleConfig, rows: Sequence[PromptRow], size: int, options: dict[str, Any], model_hash: str
    ) -> None:
        self.settings, self.rows, self.options, self.model_hash = settings, rows, options, model_hash
        self.out, self.records = settings.out, settings.out / "parts"
        self.parts = [range(first, min(first + size, len(rows))) for first in range(0, len(rows), size)]
        self.images = [sum(rows[i].n or 1 for i in part) for part in self.parts]  # candidates of each part
        self.finished: set[int] = set()

    def begin(self) -> None:
        """Create the folder, or check that it holds this run.

        Raises:
            ValueError: it holds another run, or other files.
        """
        # Through JSON and back, so that tuples compare equal to the lists in the file
        file, content = self.out / "run.json", json.loads(json.dumps(self._content()))
        if not file.exists():
            # Hidden ones are of other processes that begin now
            others = self.out.exists() and any(not path.name.startswith(".") for path in self.out.iterdir())
            if others and not file.exists():  # of a process that began meanwhile
                raise ValueError(f"{self.out} has files of something else: give a new folder as --out")
            self.out.mkdir(parents=True, exist_ok=True)
            # Processes that get here together write the same
            write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        try:
            found = json.loads(file.read_text("utf-8"))
        except ValueError:
            raise ValueError(f"{file} is damaged: give a new folder as --out") from None
        # What was given then and is not now counts, too
        for key in dict.fromkeys((*content, *found)):
            if key in _UNKNOWN_BEFORE and key not in found:
                continue
            begun, value = found.get(key, _BEFORE.get(key)), content.get(key)
            if begun != value:
                raise ValueError(
                    f"{self.out} was begun with {key} {_shown(begun)}, and this is {_shown(value)}: give the "
                    "same options to go on with it, or a new folder as --out"
                )
        self.records.mkdir(exist_ok=True)
        self.look()

    def _content(self) -> dict[str, Any]:
        settings = self.settings
        assert settings.prompts_file is not None
        # They decide the files; speed may change when a run goes on
        names = ("n", "keep", "distinct", "seed", "clip", "write")
        return {
            "prompts": {"sha256": sha256(settings.prompts_file), "count": len(self.rows)},
            "model_sha256": self.model_hash,
            "prompts_per_part": len(self.parts[0]),
            **{name: getattr(settings, name) for name in names},
            **self.options,
        }

    def look(self) -> set[int]:
        """The parts that are complete, of all processes."""
        names = (path.stem for path in self.records.glob("[0-9]*.json"))  # not the unfinished ones, .part-...
        self.finished = {int(name) for name in names if "-" not in name}
        return self.finished

    def name(self, number: int) -> str:
        """The name of a part that is to be written: NUMBER, or NUMBER-1, NUMBER-2, ... of what is tried again of it."""
        count = len(self._records(number))
        return f"{number:06d}-{count}" if count else f"{number:06d}"

    def record(self, number: int, name: str, content: dict[str, Any]) -> None:
        """Note that a part is complete, or what was tried again of it."""
        write_text(self.records / f"{name}.json", json.dumps(content, ensure_ascii=False) + "\n")
        self.finished.add(number)

    def failed_rows(self, number: int) -> list[int]:
        """The rows of a complete part that could not be drawn, at the last attempt."""
        places = {failed["place"] for failed in self._records(number)[-1]["failed"]}
        return [index for index in self.parts[number] if self.rows[index].place in places]

    def _records(self, number: int) -> list[dict[str, Any]]:
        """The records of a part: of its first attempt, then of what was tried again."""
        found: list[dict[str, Any]] = []
        name = f"{number:06d}"
        while (file := self.records / f"{name}.json").exists():
            found.append(json.loads(file.read_text("utf-8")))
            name = f"{number:06d}-{len(found)}"
        return found

    def report(self) -> tuple[int, list[str]]:
        """Write report.json of all parts; returns how many prompts failed, and the unfamiliar words, most often first.

        Those are of prompts that have been drawn: the model has hardly seen them in training.
        """
        seconds, kept, failed, words = 0.0, 0, [], Counter[str]()
        for number in range(len(self.parts)):
            records = self._records(number)
            seconds += sum(one["seconds"] for one in records)
            kept += sum(one["kept"] for one in records)
            failed += records[-1]["failed"]
            for one in records:
                words.update(one.get("unfamiliar", {}))
        whole: dict[str, Any] = {
            "prompts": len(self.rows),
            "candidates": sum(self.images),
            "images": kept,
            "seconds": round(seconds, 1),  # of all processes together
            "software": f"dalle {__version__}",
            "failed": failed,
            "unfamiliar": dict(words.most_common()),
        }
        write_text(self.out / "report.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        return len(failed), list(whole["unfamiliar"])


class RunBar:
    """Progress over all processes, shown by the first; it knows of the others' parts by their records."""

    def __init__(self, run: RunFolder, rank: int) -> None:
        from tqdm import tqdm

        self.run, self.shown, self.own, self.looked = run, rank == 0, 0, time.monotonic()
        self.bar = tqdm(
            total=sum(run.images),
            initial=self._finished(),
            desc="drawing",
            unit=" images",
            dynamic_ncols=True,
            disable=not self.shown,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file keeps every refresh
        )

    def __enter__(self) -> RunBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def sampled(self, candidates: int) -> None:
        """Count candidates of the part that this process is at; 0 begins with the next one."""
        self.own = self.own + candidates if candidates else 0
        if self.shown and time.monotonic() - self.looked > _SECONDS:
            self.run.look()
            self.looked = time.monotonic()
        self.bar.update(max(0, self._finished() + self.own - self.bar.n))

    def _finished(self) -> int:
        return sum(self.run.images[number] for number in self.run.finished)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
