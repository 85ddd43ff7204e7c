"""`dalle sample --prompts-file`: many prompts, shared among processes, in parts that are complete or not there.

Nothing but the launcher's RANK and WORLD_SIZE and the output folder joins the processes: part k belongs to process k
modulo their number, a part's record is written when all of its images are, and who records the last one reports.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from dalle import __version__
from dalle.cli.drawn_parts import DrawnImage, Part, new_part
from dalle.cli.errors import print_error
from dalle.cli.interrupt import exit_code
from dalle.cli.outputs import check_folder
from dalle.cli.prompts_file import PromptRow, read_prompts
from dalle.cli.run_folder import RunBar, RunFolder
from dalle.cli.sample import SampleConfig
from dalle.cli.sample_files import recorded_options
from dalle.config import to_dict
from dalle.files import FileLock, remove_parts

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipelines.result import Result
    from dalle.pipelines.text_to_image import TextToImage
    from dalle.pipelines.unclip import UnCLIP

_PART_CANDIDATES = 256  # of a part, unless --shard-size says otherwise
_CPU_CANDIDATES = 32  # drawn together
_CONTINUE = "complete parts stay: the same command continues from there"

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
        The exit code: 1 if a prompt could not be drawn, 2 after an error of the file system, 130 after Ctrl-C, 143
        after SIGTERM. What is complete stays, and the same command continues from there.

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
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped; {_CONTINUE}", file=sys.stderr)
        return exit_code(stop)


def _sample_many(settings: SampleConfig, pipe: TextToImage, options: Mapping[str, Any], program: str) -> int:
    from dalle.device import device_of

    assert settings.prompts_file is not None
    sampling = to_dict(pipe.sampling.updated(**settings.sampling))
    rows = [_complete(row, settings, sampling, pipe) for row in read_prompts(settings.prompts_file)]
    size = settings.shard_size or max(1, _PART_CANDIDATES // settings.n)
    rank, world = processes()
    run = RunFolder(settings, rows, size, recorded_options(settings) | sampling, pipe.model_hash)
    run.begin()
    with FileLock(run.out / f".lock-{rank}"):
        draw = _drawer(settings, pipe, options)
        on_cpu = device_of(pipe.model).type == "cpu"
        together = settings.batch_size or (_CPU_CANDIDATES if on_cpu else _PART_CANDIDATES)
        with RunBar(run, rank) as bar:
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


def _draw_part(run: RunFolder, number: int, draw: Draw, together: int, bar: RunBar) -> None:
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
