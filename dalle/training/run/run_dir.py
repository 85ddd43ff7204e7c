"""The run folder: created or resumed, locked against a second writer, and its provenance recorded."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from dalle.checkpoints import model_folder
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.target import check_no_model
from dalle.config import ConfigError, dump, flat, from_dict, read_yaml, renamed, to_dict
from dalle.data import AnyDataConfig, location
from dalle.files import FileLock, check_folder, remove_scratch, sha256, write_text
from dalle.training.checkpoint.folders import folders
from dalle.training.init_image_tokenizer import image_tokenizer_folder
from dalle.training.recipe import DALLERecipe, LoopRecipe

LOCK = ".lock"
# What a run writes to its folder; its config.yaml may have been put there to train from
OWN_NAMES = ("checkpoints", "model", "samples", "metrics.jsonl", "data.json", "report.html")
_SMALL = 2**24  # bytes of a file whose contents are hashed
_PACKAGES = ("dalle", "torch", "accelerate", "datasets", "sentencepiece", "safetensors", "numpy", "pillow")


def check_run_dir(recipe: LoopRecipe, accelerator: Accelerator) -> None:
    """Check, before anything is loaded, that a run can be trained in its folder, which is not made yet.

    Every process must call it; the main one looks.

    Raises:
        ValueError: (in all processes) as `open_run_dir`; or the folder cannot be written, or holds a model, or files of
            something else under the names of a run's.
    """
    refusal: ValueError | OSError | None = None
    if accelerator.is_main_process:
        try:
            check_folder(recipe.run.dir, "run.dir=FOLDER")
            if not _resumes(recipe):
                _check_names(recipe.run.dir)
        except (ValueError, OSError) as error:
            refusal = error
    (refusal,) = broadcast_object_list([refusal])
    if refusal is not None:
        raise refusal


def _check_names(run: Path) -> None:
    """Refuse a folder in which a new run would overwrite what is of something else: its `model` would be replaced."""
    check_no_model(run, "run.dir=FOLDER")
    if (run / "origin.yaml").exists():  # a run that ended before its first checkpoint
        return
    taken = next((run / name for name in OWN_NAMES if (run / name).exists()), None)
    if taken is not None:
        raise ValueError(f"{taken} is there already and of no run: choose another run.dir=FOLDER")


def open_run_dir(recipe: LoopRecipe, accelerator: Accelerator) -> tuple[AbstractContextManager[object], bool]:
    """Create the folder of a run, or open an existing one to resume. Every process must call it; the main one acts.

    Returns:
        A lock on the folder, to be closed at the end; and whether the run resumes from a checkpoint.

    Raises:
        ValueError: (in all processes) there is nothing to resume; the folder contains a run but `resume` is false, or
            auto with another config; or a trained model whose checkpoints are gone; the run has other tokenizers, or
            another CLIP; or another process is training in the folder.
        OSError: (in all processes) the disk is full or not writable.
    """
    lock: AbstractContextManager[object] = nullcontext()
    resume = False
    refusal: ValueError | OSError | None = None
    if accelerator.is_main_process:
        try:
            resume = _resumes(recipe)
            if resume:
                _check_parts(recipe)
            recipe.run.dir.mkdir(parents=True, exist_ok=True)
            lock = lock_run_dir(recipe.run.dir)
            for parent in (recipe.run.dir, recipe.run.dir / "checkpoints"):
                remove_scratch(parent)  # what a killed process left half-written
            if not resume:  # of a run that ended before its first checkpoint: this one begins anew, on whatever data
                (recipe.run.dir / "data.json").unlink(missing_ok=True)
        except (ValueError, OSError) as error:
            refusal = error
    resume, refusal = broadcast_object_list([resume, refusal])  # one process that raises alone would hang the others
    if refusal is not None:
        raise refusal
    return lock, resume


def _resumes(recipe: LoopRecipe) -> bool:
    """Whether a run resumes from its folder; raises a ValueError if the recipe's `resume` does not fit its content."""
    run, there = recipe.run.dir, bool(folders(recipe.run.dir))
    if not there and (run / "origin.yaml").exists() and (run / "model").exists():
        raise ValueError(
            f"{run} contains a trained model and no checkpoint to resume from, and a new run would replace it: choose "
            f"another run.dir=FOLDER, or move {run / 'model'} elsewhere"
        )
    if recipe.resume == "auto":
        changes = _changes(recipe) if there else []
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise ValueError(
                f"{run} contains a run with another config: {', '.join(changes[:3])}{more}; choose another "
                "run.dir=FOLDER, or continue with this config by resume=true"
            )
    elif recipe.resume != there:
        raise ValueError(
            f"{run}: no checkpoint to resume from; start without resume=true"
            if recipe.resume
            else f"{run} contains a run already: continue it with resume=true, or choose another run.dir=FOLDER"
        )
    return there


def _check_parts(recipe: LoopRecipe) -> None:
    """Refuse to resume with another tokenizer or CLIP than the run's, whose numbers mean something else."""
    try:
        before = read_yaml(recipe.run.dir / "origin.yaml").get("parts_sha256")
    except ConfigError:  # lost; the names of the parts are compared with the other options
        return
    ranks = isinstance(recipe, DALLERecipe) and not (recipe.grpo is not None and recipe.grpo.needs_clip)
    for name, digest in _part_hashes(recipe).items():
        ranks_only = name == "clip" and ranks
        if isinstance(before, dict) and before.get(name, digest) != digest and not ranks_only:
            raise ValueError(
                f"{name}={getattr(recipe, name)} ({digest[:12]}) is not the one that the run in {recipe.run.dir} has "
                f"been trained with ({str(before[name])[:12]}): resume with that one, or choose another run.dir=FOLDER"
            )


def _changes(recipe: LoopRecipe) -> list[str]:
    """Describe the options in which a recipe differs from that of the run in its folder."""
    file = recipe.run.dir / "config.yaml"
    try:
        content = renamed(read_yaml(file))
        if content.get("stage") != recipe.stage:
            return [f"stage was {content.get('stage')}, is now {recipe.stage}"]
        before = from_dict(type(recipe), content, str(file))
    except ConfigError as error:
        raise ValueError(
            f"cannot compare the config with that of the run in {recipe.run.dir} ({str(error).splitlines()[0]}); "
            "choose another run.dir=FOLDER, or continue with this config by resume=true"
        ) from error
    # The folder may have been moved
    here = replace(before, resume=recipe.resume, run=replace(before.run, dir=recipe.run.dir))
    was, now = flat(to_dict(here)), flat(to_dict(recipe))
    return [f"{key} was {was.get(key)}, is now {now.get(key)}" for key in now | was if was.get(key) != now.get(key)]


def describe(recipe: LoopRecipe) -> None:
    """Write what is needed to reproduce a run: config.yaml, and origin.yaml with versions and hashes."""
    run = recipe.run.dir
    write_text(run / "config.yaml", dump(recipe))
    write_text(run / "origin.yaml", yaml.safe_dump(_origin(recipe), sort_keys=False))


def resume_command(run: Path) -> str:
    """The command that resumes a run as it was, for a shell: its folder has the whole config."""
    return f"python train.py {shlex.quote(str(run / 'config.yaml'))} resume=true"


def changed_options(recipe: LoopRecipe) -> list[str]:
    """Describe the options in which a recipe that resumes with `resume=true` differs from that of the run."""
    try:
        return _changes(recipe)
    except ValueError as error:
        return [str(error).partition("; choose")[0]]


def lock_run_dir(run: Path) -> FileLock:
    """Lock a run folder against other writers; the operating system frees the lock however the process ends.

    Killing torchrun alone leaves its worker processes training. A run resumed beside them would interleave two logs,
    and each would delete the other's checkpoints.

    Raises:
        ValueError: another process has the lock.
    """
    try:
        return FileLock(run / LOCK)
    except BlockingIOError as error:
        raise ValueError(
            f"{error} is training in {run}: wait for it, stop it, or choose another run.dir=FOLDER"
        ) from error


def installed(package: str) -> bool:
    """Return whether a package is installed, without importing it."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _origin(recipe: LoopRecipe) -> dict[str, Any]:
    """Versions of packages, and hashes of data and tokenizers."""
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES if installed(name)}
    return {
        "seed": recipe.run.seed,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "precision": recipe.run.precision,
        "versions": versions,
        "data_sha256": _data_hash(recipe.data),
        "parts_sha256": _part_hashes(recipe),
    }


def _part_hashes(recipe: LoopRecipe) -> dict[str, str]:
    """Hashes of the tokenizers and of the CLIP that a recipe names."""
    sources = {key: value for key, value in to_dict(recipe).items() if key.endswith("tokenizer") or key == "clip"}
    places = {key: resolve(value) for key, value in sources.items() if value}
    published: dict[str, Path] = {}
    if isinstance(recipe, DALLERecipe):
        places["image_tokenizer"] = image_tokenizer_folder(recipe)
        if recipe.model.text_features is not None:  # a T5 as it is published, no folder of ours
            published["text_tokenizer"] = places.pop("text_tokenizer")
    hashes = {key: model_folder.folder_hash(place) for key, place in places.items()}
    return hashes | {key: _files_hash(place) for key, place in published.items()}


def _files_hash(folder: Path) -> str:
    """Hash of the names and sizes of the files in a folder, and of the contents of small ones: weights take minutes."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0{sha256(file) if size < _SMALL else ''}\n".encode())
    return digest.hexdigest()


def _data_hash(data: AnyDataConfig) -> str:
    """Hash of the data options, and of the names and sizes of its files if they are local.

    Contents are not read: hashing them would take hours for a large data set.
    """
    # A name may be no UTF-8: then its bytes are hashed, as they are of any other
    options = json.dumps(to_dict(data), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(options.encode(errors="surrogateescape"))
    root = location(data)
    if root is not None:
        # Of a path in a folder without permission, `Path.is_file` raises
        for file in [root] if root.is_file() else sorted(path for path in root.rglob("*") if os.path.isfile(path)):
            line = f"{file.relative_to(root)}\0{file.stat().st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
