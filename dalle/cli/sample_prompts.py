"""Samples the prompts of a command line: several at a time, or one's candidates in parts, written as they finish."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dalle.cli.sample import SampleConfig
from dalle.cli.sample_files import SampleFiles
from dalle.generation.progress import Progress

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipelines.result import Result

_MAX_CANDIDATES = 32  # about this many are sampled at a time; what is finished is written, or kept at an interrupt


def sample_prompts(settings: SampleConfig, run: SampleFiles, generate: Callable[..., list[Result]]) -> None:
    """Several prompts at a time, or the candidates of one prompt in several parts."""
    prompts, n = settings.prompts, settings.n
    most = max(_MAX_CANDIDATES, settings.batch_size or 0)
    size = max(1, most // max(1, n))
    if n <= most:
        for first in range(0, len(prompts), size):
            for result in generate(prompts[first : first + size], n, settings.keep, settings.seed):
                run.add(result)
        return
    for prompt in prompts:
        parts: list[Result] = []
        try:
            for first in range(0, n, most):
                # Candidate i has seed + i, however they are split: parts give the same images as one batch
                parts += generate([prompt], min(most, n - first), None, settings.seed + first)
        finally:  # at an interrupt, too
            if parts:  # chosen among all of them: whether one is good, and agrees, depends on the others
                run.add(_best(parts[0].merged(parts), settings))


def _best(found: Result, settings: SampleConfig) -> Result:
    """The images to keep, or all where there are fewer."""
    return found.best(min(settings.keep or settings.n, len(found.images)), settings.distinct)


def progress_bar(unit: str) -> Any:
    """The bar that the calls for all prompts share."""
    from tqdm import tqdm

    # The delay keeps the bar away until the first step is done, so that a wrong option is one line and no more
    pause = 0.1 if sys.stderr.isatty() else 10  # in a log every state of the bar stays
    return tqdm(unit=unit, desc="drawing", dynamic_ncols=True, delay=1e-3, mininterval=pause)


def progress_meter(run: SampleFiles, bar: Any, calls: float) -> Progress:
    """Return a progress callback for one of `calls` equal calls that share a bar; also counts decode steps."""
    before = bar.n

    def progress(done: int, total: int) -> None:
        bar.total = round(total * calls)
        bar.update(before + done - bar.n)
        run.steps += 1

    return progress
