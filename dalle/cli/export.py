"""python -m dalle export: export the weights of a run, or of one of its checkpoints, to a model folder."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle.checkpoints.lazy_tensor import Tensors

DTYPES = ("float32", "bfloat16", "float16", "int8")


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("export", help="export the weights of a run to a model folder")
    run_help = "folder of a run (run.dir of its config), or RUN/checkpoints/step-... for the weights of that step"
    command.add_argument("run_folder", type=Path, metavar="RUN", help=run_help)
    out_help = "folder to write; a model of the same stage that is there is replaced, its README.md kept"
    command.add_argument("out", type=Path, metavar="OUT", help=out_help)
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of stored weights (%(default)s)")
    command.add_argument(
        "--interpolate",
        type=float,
        metavar="SHARE",
        help="interpolate between the weights of --with (0) and of the run (1) (WiSE-FT, arXiv 2109.01903)",
    )
    command.add_argument(
        "--with", dest="start", metavar="SOURCE", help="weights that the run was fine-tuned from (init_from)"
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from dalle.checkpoints import model_folder
    from dalle.files import check_folder
    from dalle.training.checkpoint import checkpoint, latest
    from dalle.training.checkpoint.folders import is_checkpoint

    if (args.interpolate is None) != (args.start is None):
        raise ValueError("--interpolate SHARE and --with SOURCE go together: give both, or none")
    check_folder(args.out, "OUT")
    run: Path = args.run_folder
    tensors: Tensors | None = None
    if is_checkpoint(run):
        latest.check(run)
        run, tensors = run.resolve().parents[1], checkpoint.export_weights(run)  # from RUN/checkpoints/step-... to RUN
    _check_run(run)
    _check_place(run, args.out)
    if tensors is not None:
        tensors = _whole(run, tensors)
    if args.start is not None:
        from dalle.checkpoints.interpolate import interpolate

        own = model_folder.ModelFolder(run / "model").tensors() if tensors is None else tensors
        tensors = interpolate(run / "model", own, args.start, args.interpolate)
    replaced = model_folder.export(run / "model", args.out, args.dtype, tensors)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB{', in place of the model that was there' if replaced else ''}")


def _whole(run: Path, tensors: Tensors) -> Tensors:
    """All weights of a checkpoint of a run, whose LoRA adapters, if it holds these alone, are merged into `init_from`.

    Raises:
        ValueError: it holds adapters, and the weights that they change are in no file, or the run's config has no LoRA.
    """
    from dataclasses import replace

    from dalle.training.init_from import initial_weights
    from dalle.training.lora import merged
    from dalle.training.recipe import CLIPRecipe, DALLERecipe, load_recipe

    if not any("lora_" in name for name in tensors):
        return tensors
    recipe = load_recipe(run / "config.yaml")
    if not isinstance(recipe, CLIPRecipe | DALLERecipe) or recipe.lora is None:
        raise ValueError(
            f"{run / 'config.yaml'} has no lora, and the checkpoint is of a run with it: restore the original"
        )
    if recipe.init_from is None:
        raise ValueError(f"{run} began without init_from, and its checkpoints hold LoRA adapters alone: export {run}")
    moved = replace(recipe, run=replace(recipe.run, dir=run))  # perhaps, with what it converted
    return merged({**initial_weights(moved), **tensors}, recipe.lora)


def _check_run(run: Path) -> None:
    """Refuse what is not the folder of a run that has saved its weights, and say what it is instead."""
    from dalle.training.checkpoint.folders import folders
    from dalle.training.run.run_dir import resume_command

    if (run / "model").is_dir():
        return
    if not run.exists():
        raise ValueError(f"{run}: no such folder; give the run.dir of a training")
    if folders(run):
        command = f"{resume_command(run)} run.dir={shlex.quote(str(run))}"  # it may have been moved
        raise ValueError(f"{run} has checkpoints but no {run / 'model'}: `{command}` writes it again")
    if (run / "metrics.jsonl").is_file():
        raise ValueError(f"{run} has saved no weights yet: train on, until its first checkpoint (run.save_every)")
    if (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run but has a config.yaml: if it is a model folder, copy it, or convert it")
    raise ValueError(f"{run} is no folder of a run: give the run.dir of a training")


def _check_place(run: Path, out: Path) -> None:
    """Refuse the folders that a run writes itself: it would take a model there for a damaged checkpoint, say."""
    from dalle.training.init_image_tokenizer import FOLDER
    from dalle.training.run.run_dir import OWN_NAMES

    own, place = run.resolve(), out.resolve()
    if own == place or any(own / name in (place, *place.parents) for name in (*OWN_NAMES, FOLDER)):
        raise ValueError(f"{out} is of the run {run}, which writes it itself: give another folder as OUT")
