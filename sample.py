"""Generate images for prompts: python sample.py "a red heart, 3d style" --n 16 --keep 4 --seed 7

Options: dalle/cli/sample.py and dalle/generation/options.py. Sampling: dalle/pipelines/.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("sample.py")  # before anything else is imported

# isort: split
from dalle.cli.errors import report_error
from dalle.cli.interrupt import exit_code, quiet_exit, sigterm_raises
from dalle.cli.sample import SampleConfig, parse
from dalle.cli.sample_files import SampleFiles, finished_images
from dalle.cli.sample_from import check_model, naming_options_of
from dalle.cli.sample_many import read_rows, sample_many
from dalle.cli.sample_model import load_pipeline
from dalle.cli.sample_prompts import progress_bar, progress_meter, sample_prompts
from dalle.cli.streams import settle_streams
from dalle.cli.threads import compile_in_background, limit_openmp_spinning
from dalle.config import dump
from dalle.files import check_folder

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipelines.result import Result

_MEMORY_HINT = "give a smaller --batch-size, or --dtype bfloat16 or int8"


def main(argv: Sequence[str] | None = None, program: str = "sample.py") -> int:
    """Generate images; also `dalle sample`. A user error is one line and exit code 2.

    Ctrl-C and SIGTERM keep the finished images, and give exit codes 130 and 143.
    """
    settle_streams()
    logging.basicConfig(format=f"{program}: %(message)s")
    limit_openmp_spinning()
    with quiet_exit(argv), sigterm_raises():
        return _main(argv, program)


def _main(argv: Sequence[str] | None, program: str) -> int:
    run: SampleFiles | None = None
    try:
        settings, show = parse(argv, program)
        if show:
            print(dump(settings), end="")
            return 0
        run = SampleFiles(settings)
        if settings.prompts_file is not None:
            rows = read_rows(settings)  # before the model is loaded, which takes longer
            return sample_many(settings, rows, *load_pipeline(settings), program)
        with naming_options_of(settings.from_image):
            sample(settings, run)
        print(run.finish())
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        kept = f"; what was finished before is in {run.folder}" if run is not None and run.written else ""
        return report_error(program, error, lambda: f"{_MEMORY_HINT}; {finished_images(run)}", kept)
    except KeyboardInterrupt as stop:
        print(f"{program}: stopped; {finished_images(run)}", file=sys.stderr)
        return exit_code(stop)
    return 0


def sample(settings: SampleConfig, run: SampleFiles) -> None:
    """Load the model, sample the prompts in groups and write each group's images as soon as it is finished."""
    from dalle.images.read import read_image
    from dalle.pipelines.familiarity import warn_of_unfamiliar_words
    from dalle.pipelines.prompts import warn_of_blank_prompts
    from dalle.pipelines.request import check_request
    from dalle.pipelines.unclip import UnCLIP

    check_folder(settings.out)
    images: dict[str, Any] = {
        "image": None if settings.image is None else read_image(settings.image),
        "mask": None if settings.mask is None else read_image(settings.mask),
    }
    pipe, options = load_pipeline(settings)
    run.begin(pipe.model_hash, options)
    if settings.from_image is not None:
        check_model(settings.from_image, settings.model, pipe.model_hash)
    ranks = (pipe.judge if isinstance(pipe, UnCLIP) else pipe.clip) is not None
    check_request(settings.prompts, settings.n, settings.keep, settings.seed, ranks)
    warn_of_blank_prompts(settings.prompts)
    if not isinstance(pipe, UnCLIP):
        warn_of_unfamiliar_words(pipe.model, pipe.text_tokenizer, settings.prompts)
    options |= {"distinct": settings.distinct, **images}
    with progress_bar(" passes" if isinstance(pipe, UnCLIP) else " codes") as bar:
        total = settings.n * len(settings.prompts)

        def generate(prompts: list[str], n: int, keep: int | None, seed: int) -> list[Result]:
            meter = progress_meter(run, bar, total / (n * len(prompts)))
            return pipe(prompts, n=n, keep=keep, seed=seed, **options, progress=meter)

        sample_prompts(settings, run, generate)


if __name__ == "__main__":
    compile_in_background()
    sys.exit(main())
