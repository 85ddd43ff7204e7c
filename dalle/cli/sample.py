"""Options of `sample.py`: declared once, parsed and checked together. Does not import torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from dalle.cli.parser import CommandLine, add_options
from dalle.cli.sample_from import options_from
from dalle.cli.streams import utf8_argument
from dalle.config import config, descriptions, from_dict
from dalle.config.ranges import PositiveInt, Range, Seed
from dalle.generation.options import SamplingConfig, UnCLIPOptions
from dalle.images.size import read_size

_DESCRIPTION = 'Generate images for prompts: python sample.py "a red heart, 3d style" --n 16 --keep 4 --seed 7'


@config
class SampleConfig:
    """Options of `sample.py`."""

    prompts: list[str] = field(default_factory=list)
    """Prompts, in any language that the model was trained on; "" generates images without a caption."""
    prompts_file: Path | None = None
    """File of prompts in place of PROMPT: .txt, .csv, .jsonl or .parquet, each perhaps with its own seed, n, keep and
    sampling options. Processes of torchrun share them; the same command continues an interrupted run."""
    from_image: Path | None = None
    """PNG of an earlier run, whose prompt, seed and options these are (`--from`)."""
    n: Annotated[int, Range(1, ceiling=2**20)] = 4
    """Number of candidates per prompt."""
    keep: PositiveInt | None = None
    """Number of candidates to keep, the best by CLIP and `agreement`; all if not given."""
    distinct: bool = True
    """Among those kept, skip near-duplicates as long as there are other candidates."""
    seed: Seed = 0
    """Seed of the first candidate; candidate i has seed + i and is the same image if generated alone."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Options of `SamplingConfig`; the model's own where not given."""
    diffusion: dict[str, Any] = field(default_factory=dict)
    """Options of `UnCLIPOptions`, of an unCLIP; the model's own where not given."""
    negative: str | None = None
    """Negative prompt, which guidance leads away from, of a model that takes one (Emu3, Emu3.5, SimpleAR); its own
    if not given."""
    size: str | None = None
    """Width and height of the images in pixels, such as 960x544, of a model that draws several sizes (Emu3, Emu3.5,
    Lumina-mGPT, SimpleAR); its own if not given."""
    image: Path | None = None
    """Image to complete or edit, with --keep-rows or --mask; its center square is used."""
    keep_rows: Annotated[float, Range(0, ceiling=10**6)] | None = None
    """Rows of codes to keep from the top of --image: below 1 a fraction of them, else a whole number."""
    mask: Path | None = None
    """Mask of the size of --image, white where new content is generated (inpainting)."""
    model: str | None = None
    """Model folder, published checkpoint, or hub id; the built-in model if not given."""
    prior: str | None = None
    """Prior of an unCLIP in place of its own: a folder, or a hub id."""
    image_tokenizer: str | None = None
    """Image tokenizer of a published model whose files do not contain it."""
    text_tokenizer: str | None = None
    """Text tokenizer of a published model whose files do not contain it."""
    text_encoder: str | None = None
    """T5 encoder of a published model with text features; google/flan-t5-xl if not given."""
    given: tuple[str, ...] = ()
    """Facts that published files do not contain: family, heads, convention, grid or roles
    (docs/checkpoints.md); may be repeated."""
    clip: str | None = None
    """CLIP for reranking: model folder, published checkpoint, or hub id; the model's own if not given."""
    out: Path = Path("outputs")
    """Folder in which each run creates a new folder; with --prompts-file the folder of the run itself, outputs/NAME of
    the file if not given."""
    write: Literal["folders", "shards", "parquet"] = "folders"
    """With --prompts-file, write PNG files in folders, WebDataset shards, or Parquet files."""
    shard_size: PositiveInt | None = None
    """With --prompts-file, prompts per folder or file, which are written whole; about 256 candidates if not given."""
    grid: bool = True
    """Write grid.png, all kept images with their prompts."""
    device: str = "auto"
    """auto takes an accelerator if there is one; else cpu, cuda, cuda:1, mps, ..."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Precision of the transformer; int8 quantizes weights to 8 bits while it loads them, to save memory, and
    computes in float32, on a CPU: faster than float32 for few candidates of a large model only."""
    window: PositiveInt = 1
    """Jacobi decoding: number of codes guessed and verified per step. 16 halves the steps when one candidate is
    generated at a time. Does not change the images."""
    compiled: bool = False
    """On a GPU, compile the decode step with torch.compile, which takes about a minute at first."""
    batch_size: PositiveInt | None = None
    """Candidates per batch; as many as fit in memory if not given. Does not change the images."""
    max_memory: str | None = None
    """Memory limit of a batch in addition to the weights, for example 2GB; half of the free memory if not given."""


def command_line(program: str = "sample.py") -> argparse.ArgumentParser:
    """Build the parser: `prompts` are positional, every other field of SampleConfig is an option."""
    parser = CommandLine(program, description=_DESCRIPTION)
    parser.add_argument(
        "prompts", nargs="*", type=utf8_argument, metavar="PROMPT", help=descriptions(SampleConfig)["prompts"]
    )
    text = "PNG of an earlier run: its prompt, seed and options, and those that are given, changed"
    parser.add_argument("--from", dest="from_image", type=Path, metavar="PNG", help=text, default=argparse.SUPPRESS)
    add_options(parser, SampleConfig, skip=("prompts", "from_image", "sampling", "diffusion"))
    add_options(parser, SamplingConfig, default="the model's own")
    add_options(parser, UnCLIPOptions, default="the model's own")
    parser.add_argument("--print-config", action="store_true", help="print all options as YAML and exit")
    return parser


def parse(argv: Sequence[str] | None, program: str) -> tuple[SampleConfig, bool]:
    """Parse the command line; returns the options, and whether to print them and exit.

    Raises:
        ValueError: an option is out of range, or options do not go together.
    """
    values = vars(command_line(program).parse_args(argv))
    show = values.pop("print_config")
    for name, schema in (("sampling", SamplingConfig), ("diffusion", UnCLIPOptions)):
        values[name] = {field.name: values.pop(field.name) for field in fields(schema) if field.name in values}
    origin = "command line"
    if "from_image" in values:
        # Before the checks, which then see the earlier run's options and these together
        origin = f"command line, or the metadata of {values['from_image']}"
        values = options_from(values["from_image"], values)
    if values.get("prompts_file") is not None:  # a folder of its own, and of the same command when it goes on
        values.setdefault("out", Path("outputs", Path(values["prompts_file"]).stem))
    settings: SampleConfig = from_dict(SampleConfig, values, origin)
    if settings.size is not None:
        read_size(settings.size)
    if settings.prompts_file is None:
        _check_few(settings)
    elif settings.prompts or settings.from_image:
        raise ValueError("--prompts-file takes the place of PROMPT and of --from: give one of them")
    return settings, show


def _check_few(settings: SampleConfig) -> None:
    """Check prompts of the command line, and refuse what is for a file of them."""
    if not settings.prompts:
        raise ValueError("no prompt given: give PROMPT, --prompts-file or --from (see --help)")
    if settings.write != "folders" or settings.shard_size is not None:
        raise ValueError("--write and --shard-size are for --prompts-file")
    # Each process would generate the same images into a folder of its own
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("several processes share a --prompts-file: start one process for prompts on the command line")
