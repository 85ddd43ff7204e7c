"""`dalle sample --prompts-file`: many prompts, shared among processes, in parts that are complete or not there.

Nothing but the launcher's RANK and WORLD_SIZE and the output folder joins the processes: part k belongs to process k
modulo their number, a part's record is written when all of its images are, and who records the last one reports.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from dalle import __version__
from dalle.cli.drawn_parts import DrawnImage, Part, new_part
from dalle.cli.errors import print_error
from dalle.cli.outputs import check_folder
from dalle.cli.prompts_file import PromptRow, read_prompts
from dalle.cli.sample import SampleConfig, recorded_options
from dalle.config import to_dict
from dalle.files import FileLock, remove_parts, sha256, write_text

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipelines.result import Result
    from dalle.pipelines.text_to_image import TextToImage
    from dalle.pipelines.unclip import UnCLIP

_PART_CANDIDATES = 256  # of a part, unless --shard-size says otherwise
_CPU_CANDIDATES = 32  # drawn together
_CONTINUE = "complete parts stay: the same command continues from there"
_SECONDS = 2.0  # from one look at the other processes' parts to the next

Draw = Callable[[Sequence[PromptRow]], "list[Result]"]


def processes() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun and accelerate say."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def sample_many(settings: SampleConfig, pipe: TextToImage | UnCLIP, options: Mapping[str, Any], program: str) -> int:
    """Draw this process's share of a file of prompts; what an earlier run has finished stays.

    Args:
        settings: with `prompts_file`; what a row does not say is as here.
        pipe: what draws.
        options: options of its calls, `SamplingConfig` and `EngineOptions` among them.
        program: name for messages.

    Returns:
        The exit code: 1 if a prompt could not be drawn, 2 after an error of the file system, 130 after Ctrl-C. What is
        complete stays, and the same command continues from there.

    Raises:
        ValueError: a row is wrong, or the folder holds something else.
    """
    from dalle.pipelines.text_to_image import TextToImage

    if not isinstance(pipe, TextToImage):
        raise ValueError("--prompts-file is for models that sample tokens: give the prompts of an unCLIP as PROMPT")
    check_folder(settings.out)
    try:
        return _sample_many(settings, pipe, options, program)
    except OSError as error:
        return print_error(program, f"{error}; {_CONTINUE}")
    except KeyboardInterrupt:
        print(f"{program}: stopped; {_CONTINUE}", file=sys.stderr)
        return 130


def _sample_many(settings: SampleConfig, pipe: TextToImage, options: Mapping[str, Any], program: str) -> int:
    from dalle.device import device_of

    assert settings.prompts_file is not None
    sampling = to_dict(pipe.sampling.updated(**settings.sampling))
    rows = [_complete(row, settings, sampling, pipe) for row in read_prompts(settings.prompts_file)]
    size = settings.shard_size or max(1, _PART_CANDIDATES // settings.n)
    rank, world = processes()
    run = _Run(settings, rows, size, recorded_options(settings) | sampling, pipe.model_hash)
    run.begin()
    with FileLock(run.out / f".lock-{rank}"):
        draw = _drawer(settings, pipe, options)
        on_cpu = device_of(pipe.model).type == "cpu"
        together = settings.batch_size or (_CPU_CANDIDATES if on_cpu else _PART_CANDIDATES)
        with _Bar(run, rank) as bar:
            for number in range(rank, len(run.parts), world):
                if number not in run.finished:
                    _draw_part(run, number, draw, together, bar)
    left = len(run.parts) - len(run.look())
    if left:
        print(f"{program}: process {rank + 1} of {world} is done; {left} parts are not finished", file=sys.stderr)
        return 0
    failed = run.report()
    print(run.out)
    if failed:
        where = run.out / "report.json"
        print_error(program, f"{failed} of {len(rows):,} prompts could not be drawn: {where} says why")
    return 1 if failed else 0


class _Run:
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
        file, content = self.out / "run.json", json.loads(json.dumps(self._content()))
        if not file.exists():
            if self.out.exists() and any(not path.name.startswith(".") for path in self.out.iterdir()):
                raise ValueError(f"{self.out} has files of something else: give a new folder as --out")
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        try:
            found = json.loads(file.read_text("utf-8"))
        except ValueError:
            raise ValueError(f"{file} is damaged: give a new folder as --out") from None
        for key, value in content.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{self.out} was begun with {key} {_shown(found.get(key))}, and this is {_shown(value)}: give the "
                    "same options to go on with it, or a new folder as --out"
                )
        self.records.mkdir(exist_ok=True)
        self.look()

    def _content(self) -> dict[str, Any]:
        settings = self.settings
        assert settings.prompts_file is not None
        names = ("n", "keep", "distinct", "seed", "write")
        return {
            "prompts": {"sha256": sha256(settings.prompts_file), "count": len(self.rows)},
            "model": self.model_hash,
            "prompts_per_part": len(self.parts[0]),
            **{name: getattr(settings, name) for name in names},
            **self.options,
        }

    def look(self) -> set[int]:
        """The parts that are complete, of all processes."""
        names = (path.stem for path in self.records.glob("[0-9]*.json"))
        self.finished = {int(name) for name in names}
        return self.finished

    def record(self, number: int, content: dict[str, Any]) -> None:
        """Note that a part is complete."""
        write_text(self.records / f"{number:06d}.json", json.dumps(content, ensure_ascii=False) + "\n")
        self.finished.add(number)

    def report(self) -> int:
        """Write report.json of all parts; returns how many prompts failed."""
        seconds, kept, failed = 0.0, 0, []
        for number in range(len(self.parts)):
            content = json.loads((self.records / f"{number:06d}.json").read_text("utf-8"))
            seconds += content["seconds"]
            kept += content["kept"]
            failed += content["failed"]
        whole = {
            "prompts": len(self.rows),
            "candidates": sum(self.images),
            "images": kept,
            "seconds": round(seconds, 1),  # of all processes together
            "software": f"dalle {__version__}",
            "failed": failed,
        }
        write_text(self.out / "report.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        return len(failed)


class _Bar:
    """Progress over all processes, shown by the first; it knows of the others' parts by their records."""

    def __init__(self, run: _Run, rank: int) -> None:
        from tqdm import tqdm

        self.run, self.shown, self.own, self.looked = run, rank == 0, 0, time.monotonic()
        self.bar = tqdm(
            total=sum(run.images),
            initial=self._finished(),
            desc="drawing",
            unit=" images",
            dynamic_ncols=True,
            disable=not self.shown,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def drawn(self, candidates: int) -> None:
        """Count candidates of the part that this process is at; 0 begins with the next one."""
        self.own = self.own + candidates if candidates else 0
        if self.shown and time.monotonic() - self.looked > _SECONDS:
            self.run.look()
            self.looked = time.monotonic()
        self.bar.update(max(0, self._finished() + self.own - self.bar.n))

    def _finished(self) -> int:
        return sum(self.run.images[number] for number in self.run.finished)


def _complete(row: PromptRow, settings: SampleConfig, sampling: dict[str, Any], pipe: TextToImage) -> PromptRow:
    """A row with what the command line says where it says nothing itself, checked."""
    from dalle.pipelines.request import check_request

    n = settings.n if row.n is None else row.n
    keep = settings.keep if row.keep is None else row.keep
    seed = settings.seed if row.seed is None else row.seed
    try:
        keep = check_request([row.prompt], n, keep, seed, pipe.clip is not None)
        if row.sampling:
            sampling = to_dict(pipe.sampling.updated(**{**sampling, **row.sampling}))
    except ValueError as error:
        raise ValueError(f"{settings.prompts_file}, {row.place}: {error}") from None
    return replace(row, n=n, keep=keep, seed=seed, sampling=sampling)


def _drawer(settings: SampleConfig, pipe: TextToImage, options: Mapping[str, Any]) -> Draw:
    """Draws rows together, each with its own options."""
    from dalle.generation.options import EngineOptions
    from dalle.images.read import read_image
    from dalle.pipelines.request import Request

    image = None if settings.image is None else read_image(settings.image)
    mask = None if settings.mask is None else read_image(settings.mask)
    start = pipe.encode_init_image(image, settings.keep_rows, mask)
    speed = EngineOptions(**{one.name: options[one.name] for one in fields(EngineOptions) if one.name in options})

    def draw(rows: Sequence[PromptRow]) -> list[Result]:
        requests = []
        for row in rows:
            assert row.seed is not None and row.n is not None
            seeds = tuple(range(row.seed, row.seed + row.n))
            sampling = pipe.sampling.updated(**row.sampling)
            requests.append(Request(row.prompt, seeds, sampling, start, negative=settings.negative))
        found = pipe.draw(requests, speed)
        return [result.best(row.keep or 1, settings.distinct) for result, row in zip(found, rows, strict=True)]

    return draw


def _draw_part(run: _Run, number: int, draw: Draw, together: int, bar: _Bar) -> None:
    """Draw a part and record it."""
    from dalle.images.png import generation_texts, png_bytes

    began, kept, failed, images = time.perf_counter(), 0, [], []
    remove_parts(run.records, f"{number:06d}.json")
    with new_part(run.out, number, run.settings.write) as part:
        for group in _groups(run.parts[number], run.rows, together):
            for index, found in _drawn(group, run.rows, draw):
                row = run.rows[index]
                if isinstance(found, Exception):
                    prompt = row.prompt.encode("utf-8", "backslashreplace").decode()  # it may be no Unicode text
                    failed.append({"prompt": prompt, "place": row.place, "error": str(found)})
                    continue
                own = run.options | row.sampling
                new = []
                for rank, (image, seed) in enumerate(zip(found.images, found.seeds, strict=True)):
                    score = None if found.scores is None else found.scores[rank]
                    texts = generation_texts(row.prompt, seed, own, run.model_hash, f"dalle {__version__}")
                    new.append(DrawnImage(index, rank, row.prompt, seed, score, own, png_bytes(image, texts)))
                kept += len(new)
                images += _written(part, new)
            bar.drawn(sum(run.rows[index].n or 1 for index in group))
        if len(failed) == len(run.parts[number]) > 1:
            raise ValueError(f"none of the {len(failed)} prompts of a part could be drawn: {failed[-1]['error']}")
    seconds = round(time.perf_counter() - began, 3)
    run.record(number, {"kept": kept, "seconds": seconds, "failed": failed, "images": images})
    bar.drawn(0)


def _written(part: Part, images: list[DrawnImage]) -> list[dict[str, Any]]:
    part.add(images)
    return [{"key": one.key, "prompt": one.prompt, "seed": one.seed, "score": one.score} for one in images]


def _groups(part: range, rows: Sequence[PromptRow], together: int) -> Iterator[list[int]]:
    """Rows of a part that are drawn together: as many as have about `together` candidates."""
    group: list[int] = []
    count = 0
    for index in part:
        own = rows[index].n or 1
        if group and count + own > together:
            yield group
            group, count = [], 0
        group.append(index)
        count += own
    yield group


def _drawn(
    group: Sequence[int], rows: Sequence[PromptRow], draw: Draw
) -> Iterable[tuple[int, Result | ValueError | RuntimeError]]:
    """The result of each row, or why there is none: where a group fails, its rows are drawn one by one.

    Raises:
        RuntimeError: memory ran out, which a smaller batch may help and leaving out prompts does not.
    """
    from dalle.device import out_of_memory

    try:
        return list(zip(group, draw([rows[index] for index in group]), strict=True))
    except (ValueError, RuntimeError) as error:
        if out_of_memory(error) is not None:
            raise
        if len(group) == 1:
            return [(group[0], error)]
    return [one for index in group for one in _drawn([index], rows, draw)]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
