"""`dalle sample --prompts-file`: many prompts, shared among processes, in parts that are complete or not there.

Nothing but the launcher's RANK and WORLD_SIZE and the output folder joins the processes: part k belongs to process k
modulo their number, a part's record is written when all of its images are, and who records the last one reports.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dalle import __version__
from dalle.cli.errors import describe_os_error, print_error
from dalle.cli.interrupt import exit_code
from dalle.cli.prompts_file import PromptRow, read_prompts
from dalle.cli.run_folder import RunBar, RunFolder
from dalle.cli.sample import SampleConfig
from dalle.cli.sample_parts import Part, SampledImage, new_part
from dalle.cli.sample_rows import RowSampler, TokenRows, UnCLIPRows, with_defaults
from dalle.files import FileLock, check_folder, remove_parts

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipelines.result import Result
    from dalle.pipelines.text_to_image import TextToImage
    from dalle.pipelines.unclip import UnCLIP

log = logging.getLogger(__name__)

_PART_CANDIDATES = 256  # of a part, unless --shard-size says otherwise
_CONTINUE = "complete parts stay: the same command continues from there"


def processes() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun and accelerate say."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def read_rows(settings: SampleConfig) -> list[PromptRow]:
    """Read and check the file of prompts and the output folder, for which no model need be loaded.

    Raises:
        ValueError: a row is wrong whatever the model, or the folder cannot be written.
    """
    assert settings.prompts_file is not None
    check_folder(settings.out)
    return [with_defaults(row, settings) for row in read_prompts(settings.prompts_file)]


def sample_many(
    settings: SampleConfig,
    rows: Sequence[PromptRow],
    pipe: TextToImage | UnCLIP,
    options: Mapping[str, Any],
    program: str,
) -> int:
    """Draw this process's share of a file of prompts; what an earlier run has finished stays.

    Args:
        settings: with `prompts_file`; what a row does not say is as here.
        rows: of `read_rows`.
        pipe: what draws.
        options: options of its calls, `SamplingConfig` and `EngineOptions` among them.
        program: name for messages.

    Returns:
        The exit code: 1 if a prompt could not be drawn, 2 after an error of the file system, 130 after Ctrl-C, 143
        after SIGTERM. What is complete stays, and the same command continues from there; it also tries again what
        could not be drawn.

    Raises:
        ValueError: a row is wrong, or the folder holds something else.
    """
    from dalle.pipelines.text_to_image import TextToImage

    try:
        sampler = TokenRows(settings, pipe, options) if isinstance(pipe, TextToImage) else UnCLIPRows(settings, pipe)
        return _sample_many(settings, rows, sampler, program)
    except OSError as error:
        return print_error(program, f"{describe_os_error(error)}; {_CONTINUE}")
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped; {_CONTINUE}", file=sys.stderr)
        return exit_code(stop)


def _sample_many(settings: SampleConfig, rows: Sequence[PromptRow], sampler: RowSampler, program: str) -> int:
    from dalle.pipelines.prompts import warn_of_blank_prompts

    rows = [sampler.complete(row) for row in rows]
    size = settings.shard_size or max(1, _PART_CANDIDATES // settings.n)
    rank, world = processes()
    if rank == 0:
        warn_of_blank_prompts([row.prompt for row in rows])
    run = RunFolder(settings, rows, size, sampler.options, sampler.model_hash)
    run.begin()
    try:  # two processes of one number would draw the same parts
        lock = FileLock(run.out / f".lock-{rank}")
    except BlockingIOError as error:
        raise ValueError(f"{error} is drawing into {run.out}: wait for it, or give another folder as --out") from None
    with lock, RunBar(run, rank) as bar:
        for number in range(rank, len(run.parts), world):
            if number not in run.finished:
                _sample_part(run, number, sampler, bar)
            else:
                _retry_part(run, number, sampler)
    left = len(run.parts) - len(run.look())
    if left:
        print(f"{program}: process {rank + 1} of {world} is done; {left} parts are not finished", file=sys.stderr)
        return 0
    return _report(run, program)


def _report(run: RunFolder, program: str) -> int:
    """Write the report and tell what is in it; returns the exit code."""
    from dalle.pipelines.familiarity import warning

    failed, unfamiliar = run.report()
    print(run.out)
    where = run.out / "report.json"
    line = warning(unfamiliar)
    if line is not None:
        log.warning("%s (%s counts them)", line, where)
    if failed:
        text = f"{failed:,} of {len(run.rows):,} prompts could not be drawn: {where} says why"
        print_error(program, f"{text}; the same command tries them again")
    return 1 if failed else 0


def _sample_part(run: RunFolder, number: int, sampler: RowSampler, bar: RunBar) -> None:
    """Draw a part and record it."""
    began, rows, record = time.perf_counter(), run.parts[number], _Record()
    name = run.name(number)
    remove_parts(run.records, f"{name}.json")
    with new_part(run.out, name, run.settings.write) as part:
        for group in _groups(rows, run.rows, sampler.together):
            record.add(run, part, _sampled(group, run.rows, sampler), sampler)
            bar.sampled(sum(run.rows[index].n or 1 for index in group))
        if len(record.failed) == len(rows) > 1:
            error = record.failed[-1]["error"]
            raise ValueError(f"none of the {len(rows)} prompts of a part could be drawn: {error}")
    run.record(number, name, record.content(time.perf_counter() - began))
    bar.sampled(0)


def _retry_part(run: RunFolder, number: int, sampler: RowSampler) -> None:
    """Try again what could not be drawn of a complete part; what can be now is written and recorded beside it."""
    rows = run.failed_rows(number)
    if not rows:
        return
    began, record, name = time.perf_counter(), _Record(), run.name(number)
    # Before anything is written: else each attempt at what cannot be drawn at all would leave an empty file
    found = [one for group in _groups(rows, run.rows, sampler.together) for one in _sampled(group, run.rows, sampler)]
    if all(isinstance(result, Exception) for _, result in found):
        return
    with new_part(run.out, name, run.settings.write) as part:
        record.add(run, part, found, sampler)
    run.record(number, name, record.content(time.perf_counter() - began))


class _Record:
    """What becomes the record of a part."""

    def __init__(self) -> None:
        self.kept = 0
        self.failed: list[dict[str, str]] = []
        self.images: list[dict[str, Any]] = []
        self.unfamiliar: Counter[str] = Counter()

    def add(
        self, run: RunFolder, part: Part, found: Iterable[tuple[int, Result | Exception]], sampler: RowSampler
    ) -> None:
        """Write the images of some rows, and note those that failed."""
        prompts = []
        for index, result in found:
            row = run.rows[index]
            if isinstance(result, Exception):
                prompt = row.prompt.encode("utf-8", "backslashreplace").decode()  # it may be no Unicode text
                self.failed.append({"prompt": prompt, "place": row.place, "error": str(result)})
                continue
            prompts.append(row.prompt)
            images = list(_images(run, index, result))
            part.add(images)
            self.kept += len(images)
            self.images += [{"key": one.key, "prompt": one.prompt, "seed": one.seed, **one.scores} for one in images]
        for words in sampler.unfamiliar(prompts):
            self.unfamiliar.update(words)

    def content(self, seconds: float) -> dict[str, Any]:
        """Its JSON."""
        lists = {"failed": self.failed, "unfamiliar": dict(self.unfamiliar), "images": self.images}
        return {"kept": self.kept, "seconds": round(seconds, 3), **lists}


def _images(run: RunFolder, index: int, result: Result) -> Iterator[SampledImage]:
    """The images of a row as files."""
    from dalle.images.png import generation_texts, png_bytes

    row = run.rows[index]
    own = run.options | row.sampling | ({} if row.negative is None else {"negative": row.negative})
    for rank, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
        texts = generation_texts(row.prompt, seed, own, run.model_hash, f"dalle {__version__}")
        yield SampledImage(index, rank, row.prompt, seed, result.scores_of(rank), own, png_bytes(image, texts))


def _groups(part: Sequence[int], rows: Sequence[PromptRow], together: int) -> Iterator[list[int]]:
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


def _sampled(
    group: Sequence[int], rows: Sequence[PromptRow], sampler: RowSampler
) -> list[tuple[int, Result | Exception]]:
    """The result of each row, or why there is none: where a group fails, its rows are drawn one by one.

    Raises:
        RuntimeError: memory ran out, which a smaller batch may help and leaving out prompts does not.
    """
    from dalle.device import out_of_memory

    try:
        return list(zip(group, sampler.sample([rows[index] for index in group]), strict=True))
    except (ValueError, RuntimeError) as error:
        if out_of_memory(error) is not None:
            raise
        if len(group) == 1:
            return [(group[0], error)]
    return [one for index in group for one in _sampled([index], rows, sampler)]
