"""Generate images for prompts: python sample.py "a red heart, 3d style" --n 16 --keep 4 --seed 7

Options: dalle/cli/sample.py and dalle/generation/options.py. Sampling: dalle/pipelines/.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dalle.cli.outputs import check_folder
from dalle.cli.parser import parse_size, print_error
from dalle.cli.sample import SampleConfig, SampleFiles, check_unclip, command_line, progress_meter, published_options
from dalle.cli.streams import settle_streams
from dalle.cli.threads import limit_openmp_spinning
from dalle.config import dump, from_dict, to_dict
from dalle.generation.options import SamplingConfig, UnCLIPOptions

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipelines.text_to_image import TextToImage

_MAX_CANDIDATES = 32  # with many prompts, images are written to disk after about this many candidates


def main(argv: Sequence[str] | None = None, program: str = "sample.py") -> int:
    """Generate images; also `dalle sample`. A user error is one line and exit code 2; Ctrl-C gives exit code 130."""
    settle_streams()
    logging.basicConfig(format=f"{program}: %(message)s")
    limit_openmp_spinning()
    run = None
    try:
        values = vars(command_line(program).parse_args(argv))
        show = values.pop("print_config")
        for name, schema in (("sampling", SamplingConfig), ("diffusion", UnCLIPOptions)):
            values[name] = {f.name: values.pop(f.name) for f in fields(schema) if f.name in values}
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
            hint = "give a smaller --batch-size, or --dtype bfloat16 or int8"
            return print_error(program, f"{shortage}: {hint}{finished}")
        if isinstance(error, RuntimeError):
            raise
        return print_error(program, error)
    except KeyboardInterrupt:
        finished = "nothing was finished" if run is None or run.folder is None else f"finished images: {run.finish()}"
        print(f"{program}: stopped; {finished}", file=sys.stderr)
        return 130
    return 0


def sample(settings: SampleConfig, run: SampleFiles) -> None:
    """Load the model, sample the prompts in groups and write each group's images as soon as it is finished."""
    import torch
    from tqdm import tqdm

    from dalle.checkpoints.unclip import is_unclip
    from dalle.images.read import read_image
    from dalle.pipelines.unclip import UnCLIP

    check_folder(settings.out)
    options: dict[str, Any] = {
        "image": None if settings.image is None else read_image(settings.image),
        "mask": None if settings.mask is None else read_image(settings.mask),
    }
    pipe: TextToImage | UnCLIP
    if settings.model is not None and not settings.given and is_unclip(settings.model):
        check_unclip(settings)
        pipe = UnCLIP.from_pretrained(
            settings.model, settings.prior, settings.device, getattr(torch, settings.dtype), settings.clip
        )
        options |= settings.sampling | settings.diffusion
    else:
        pipe = _open_tokens(settings)
        sampling = to_dict(pipe.sampling.updated(**settings.sampling))
        run.options |= sampling
        options |= sampling | _engine(settings)
    run.model_hash = pipe.model_hash
    prompts, size = settings.prompts, max(1, _MAX_CANDIDATES // max(1, settings.n))
    # The delay keeps the bar away until the first step is done, so that a wrong option is one line and no more
    pause = 0.1 if sys.stderr.isatty() else 10  # in a log every state of the bar stays
    unit = " passes" if isinstance(pipe, UnCLIP) else " codes"
    with tqdm(unit=unit, desc="drawing", dynamic_ncols=True, delay=1e-3, mininterval=pause) as bar:
        for first in range(0, len(prompts), size):
            group = prompts[first : first + size]
            results = pipe(
                group,
                n=settings.n,
                keep=settings.keep,
                seed=settings.seed,
                **options,
                progress=progress_meter(run, bar, len(prompts) / len(group)),
            )
            for result in results:
                run.add(result)


def _open_tokens(settings: SampleConfig) -> TextToImage:
    """A model that samples tokens."""
    import torch

    from dalle.pipelines.text_to_image import TextToImage

    for name in settings.diffusion:
        raise ValueError(f"--{name.replace('_', '-')} is for an unCLIP, and this model samples tokens: leave it out")
    if settings.prior is not None:
        raise ValueError("--prior is for an unCLIP, and this model samples tokens: leave it out")
    return TextToImage.from_pretrained(
        settings.model,
        settings.device,
        getattr(torch, settings.dtype),
        clip=settings.clip,
        image_tokenizer=settings.image_tokenizer,
        text_tokenizer=settings.text_tokenizer,
        text_encoder=settings.text_encoder,
        **published_options(settings),
    )


def _engine(settings: SampleConfig) -> dict[str, Any]:
    """Options of such a model alone."""
    limit = None if settings.max_memory is None else int(parse_size(settings.max_memory, "B", "max-memory"))
    names = ("keep_rows", "window", "compiled", "batch_size")
    return {name: getattr(settings, name) for name in names} | {"max_memory": limit}


if __name__ == "__main__":
    sys.exit(main())
