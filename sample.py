"""Generate images for prompts: python sample.py "a red heart, 3d style" --n 16 --keep 4 --seed 7

Options: dalle/cli/sample.py and dalle/generation/options.py. Sampling: dalle/pipeline.py.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import fields

from dalle.cli.outputs import check_folder
from dalle.cli.parser import parse_size, print_error
from dalle.cli.sample import SampleConfig, SampleFiles, command_line, progress_meter, published_options
from dalle.cli.threads import limit_openmp_spinning
from dalle.config import dump, from_dict, to_dict
from dalle.generation.options import SamplingConfig

_MAX_CANDIDATES = 32  # with many prompts, images are written to disk after about this many candidates


def main(argv: Sequence[str] | None = None) -> int:
    """Generate images. A user error is printed as one line, exit code 2; Ctrl-C gives exit code 130."""
    logging.basicConfig(format="sample.py: %(message)s")
    limit_openmp_spinning()
    run = None
    try:
        values = vars(command_line().parse_args(argv))
        show = values.pop("print_config")
        values["sampling"] = {f.name: values.pop(f.name) for f in fields(SamplingConfig) if f.name in values}
        settings: SampleConfig = from_dict(SampleConfig, values, "command line")
        if show:
            print(dump(settings), end="")
            return 0
        run = SampleFiles(settings)
        sample(settings, run)
        print(run.finish())
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        from dalle.device import out_of_memory  # importing torch takes a second: not for --help

        shortage = out_of_memory(error)
        if shortage is not None:
            finished = "" if run is None or run.folder is None else f"; finished images: {run.finish()}"
            return print_error(
                "sample.py", f"{shortage}: give a smaller --batch-size, or --dtype bfloat16 or int8{finished}"
            )
        if isinstance(error, RuntimeError):
            raise
        return print_error("sample.py", error)
    except KeyboardInterrupt:
        finished = "nothing was finished" if run is None or run.folder is None else f"finished images: {run.finish()}"
        print(f"sample.py: stopped; {finished}", file=sys.stderr)
        return 130
    return 0


def sample(settings: SampleConfig, run: SampleFiles) -> None:
    """Load the model, sample the prompts in groups and write each group's images as soon as it is finished."""
    import torch
    from tqdm import tqdm

    from dalle.images.read import read_image
    from dalle.pipeline import TextToImage

    check_folder(settings.out)
    limit = None if settings.max_memory is None else int(parse_size(settings.max_memory, "B", "max-memory"))
    image = None if settings.image is None else read_image(settings.image)
    mask = None if settings.mask is None else read_image(settings.mask)
    pipe = TextToImage.from_pretrained(
        settings.model,
        settings.device,
        getattr(torch, settings.dtype),
        clip=settings.clip,
        image_tokenizer=settings.image_tokenizer,
        text_tokenizer=settings.text_tokenizer,
        text_encoder=settings.text_encoder,
        **published_options(settings),
    )
    sampling = to_dict(pipe.sampling.updated(**settings.sampling))
    run.model_hash = pipe.model_hash
    run.options |= sampling
    prompts, size = settings.prompts, max(1, _MAX_CANDIDATES // max(1, settings.n))
    # The delay hides the bar until the first code is sampled, so that a wrong option prints its error only
    pause = 0.1 if sys.stderr.isatty() else 10  # a log file keeps every refresh of the bar
    with tqdm(unit=" codes", desc="sampling", dynamic_ncols=True, delay=1e-3, mininterval=pause) as bar:
        for first in range(0, len(prompts), size):
            group = prompts[first : first + size]
            results = pipe(
                group,
                n=settings.n,
                keep=settings.keep,
                seed=settings.seed,
                **sampling,
                image=image,
                keep_rows=settings.keep_rows,
                mask=mask,
                window=settings.window,
                compiled=settings.compiled,
                batch_size=settings.batch_size,
                max_memory=limit,
                progress=progress_meter(run, bar, len(prompts) / len(group)),
            )
            for result in results:
                run.add(result)


if __name__ == "__main__":
    sys.exit(main())
