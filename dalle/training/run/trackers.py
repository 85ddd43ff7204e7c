"""TensorBoard and Weights & Biases: the metrics of metrics.jsonl, and the sample images."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from dalle.config import flat, to_dict
from dalle.files import install_command, write_text
from dalle.training.recipe import LoopRecipe, RunConfig
from dalle.training.run.run_dir import installed

EXTRAS = {"tensorboard": "track", "wandb": "wandb"}


def check_tracker(run: RunConfig) -> None:
    """Check that the chosen tracker is installed.

    Raises:
        ValueError: it is not installed.
    """
    if run.tracker != "none" and not installed(run.tracker):
        raise ValueError(
            f"run.tracker is {run.tracker}, which is not installed: "
            f"{install_command(EXTRAS[run.tracker])}, or set run.tracker=none (metrics.jsonl is always written)"
        )


def start_trackers(recipe: LoopRecipe, accelerator: Accelerator, start: int) -> None:
    """Start the tracker of a run, or continue its curves after `start` steps.

    Raises:
        ValueError: the tracker cannot start, for example Weights & Biases without a login.
    """
    run = recipe.run
    if run.tracker == "none":
        return
    options: dict[str, Any] = {}
    refusal: type[Exception] = OSError
    if run.tracker == "tensorboard" and start:
        options = {"purge_step": start + 1}  # later steps will be repeated and logged again
    elif run.tracker == "wandb":
        from wandb.errors import Error

        refusal = Error
        if accelerator.is_main_process:  # the same id, so that a resumed run continues its curves
            options = {"dir": str(run.dir), "id": _wandb_id(run.dir, start), "resume": "allow"}
    try:
        # The name is a folder below the run's for TensorBoard, and the project for Weights & Biases
        name = "tensorboard" if run.tracker == "tensorboard" else run.dir.name
        accelerator.init_trackers(name, config=_options(recipe), init_kwargs={run.tracker: options})
    except refusal as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"run.tracker is {run.tracker}, which cannot start ({reason}): with WANDB_MODE=offline it writes to "
            f"{run.dir / 'wandb'} and needs no account; or set run.tracker=none"
        ) from error


def track_image(accelerator: Accelerator, name: str, image: Image.Image, step: int) -> None:
    """Log an image to the tracker, if there is one."""
    pixels = np.asarray(image.convert("RGB"))[None]  # uint8 [1, H, W, 3]
    for tracker in accelerator.trackers:
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: pixels}, step=step, **options)


def _wandb_id(run: Path, start: int) -> str:
    """The id of a run at Weights & Biases: random for a new run, read from the run folder when it is resumed."""
    file = run / "wandb" / "id"
    if not start or not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_text(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8").strip()


def _options(recipe: LoopRecipe) -> dict[str, Any]:
    """All options with dotted keys, converted to types that trackers accept."""
    options = flat(to_dict(recipe))
    return {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in options.items()}
