"""Plans the training of unCLIP's priors and diffusions: micro-batch, checkpointing, time on given devices."""

from __future__ import annotations

from dataclasses import dataclass

from dalle.checkpoints.hub import resolve
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.clip import read_clip
from dalle.checkpoints.source import is_model_folder
from dalle.config import from_dict
from dalle.models.clip import CLIPConfig
from dalle.training.planning.dry_run import StepCost, UnCLIPRecipe, step_cost
from dalle.training.planning.plan import Cluster, format_bytes, format_time


@dataclass(frozen=True)
class UnCLIPOption:
    """One way to train.

    Attributes:
        images: of a micro-batch on one device.
        accumulation: micro-batches per step.
        checkpointing: whether blocks are recomputed in the backward pass.
        cost: of a step on one device.
        memory: bytes on one device at most.
        seconds: per step.
    """

    images: int
    accumulation: int
    checkpointing: bool
    cost: StepCost
    memory: int
    seconds: float


@dataclass(frozen=True)
class UnCLIPPlan:
    """The largest micro-batch that fits, or the smallest if none does, without and with checkpointing.

    Attributes:
        choices: the two.
        best: the fastest that fits; None: none does.
        clip_missing: why the CLIP is not counted; None: it is, or there is none.
    """

    choices: list[UnCLIPOption]
    best: UnCLIPOption | None
    clip_missing: str | None


def plan_unclip(recipe: UnCLIPRecipe, cluster: Cluster) -> UnCLIPPlan:
    """Plan a training on some devices, each with a copy of the network.

    Raises:
        ValueError: the batch size is not divisible by the number of devices.
    """
    if recipe.run.batch_size % cluster.devices:
        raise ValueError(
            f"run.batch_size is {recipe.run.batch_size}, which is not divisible by {cluster.devices} devices: set it "
            "to a multiple, or change the number of devices"
        )
    clip, missing = _clip_config(recipe)
    own = recipe.run.batch_size // cluster.devices
    sizes = [images for images in range(own, 0, -1) if own % images == 0]
    choices = []
    for checkpointing in (False, True):
        for images in sizes:
            option = _option(recipe, clip, cluster, images, own // images, checkpointing)
            if option.memory <= cluster.usable:
                break
        choices.append(option)
    fitting = [choice for choice in choices if choice.memory <= cluster.usable]
    return UnCLIPPlan(choices, min(fitting, key=lambda choice: choice.seconds, default=None), missing)


def _option(
    recipe: UnCLIPRecipe, clip: CLIPConfig | None, cluster: Cluster, images: int, accumulation: int, checkpointing: bool
) -> UnCLIPOption:
    cost = step_cost(recipe, clip, images, accumulation, checkpointing)
    # With several devices DDP keeps a flat copy of all gradients to all-reduce
    copies = 4 * cost.parameters if cluster.devices > 1 else 0
    seconds = cost.operations * images * accumulation / (cluster.peak * cluster.utilization)
    return UnCLIPOption(
        images, accumulation, checkpointing, cost, cost.state + cost.frozen + cost.peak + copies, seconds
    )


def _clip_config(recipe: UnCLIPRecipe) -> tuple[CLIPConfig | None, str | None]:
    """The architecture of the recipe's CLIP, or why it is not known: it may be trained later."""
    if recipe.clip is None:
        return None, None
    try:
        path = resolve(recipe.clip)
    except ValueError as error:
        return None, str(error)
    if not is_model_folder(path):
        return read_clip(path).config, None
    folder = ModelFolder(path)
    return from_dict(CLIPConfig, folder.config.get("model") or {}, folder.origin), None


def report_unclip(found: UnCLIPPlan, recipe: UnCLIPRecipe, cluster: Cluster) -> str:
    """Format a plan as text with a table."""
    run, first = recipe.run, found.choices[0].cost
    lines = [
        f"{first.parameters:,} parameters; {first.operations / 1e9:.3g} GFLOP to train on one image, CLIP included",
        f"{cluster.devices} x {format_bytes(cluster.memory)}, {format_bytes(cluster.usable)} usable; batch "
        f"{run.batch_size:,}, {'bf16' if run.precision == 'auto' else run.precision}, weights and optimizer fp32"
        + ("" if recipe.optim.ema is None else ", with EMA"),
    ]
    if found.clip_missing is not None:
        lines[0] = lines[0].removesuffix(", CLIP included") + ", without the CLIP"
        lines.append(f"the CLIP is not counted: {found.clip_missing}")
    columns = ("state", "CLIP", "step", "peak")
    lines += ["", f"  {'per device':<22}{'images':>10}" + "".join(f"{name:>12}" for name in columns)]
    for choice in found.choices:
        values = (choice.cost.state, choice.cost.frozen, choice.cost.peak, choice.memory)
        name = "ddp" + (", checkpointing" if choice.checkpointing else "")
        shown = "".join(f"{format_bytes(value):>12}" for value in values)
        mark = "fits" if choice.memory <= cluster.usable else "does not fit"
        lines.append(f"  {name:<22}{f'{choice.images} x {choice.accumulation}':>10}{shown}  {mark}")
    return "\n".join([*lines, "", *_advice(found, recipe, cluster)])


def _advice(found: UnCLIPPlan, recipe: UnCLIPRecipe, cluster: Cluster) -> list[str]:
    if found.best is None:
        least = min(found.choices, key=lambda choice: choice.memory)
        needed = format_bytes(least.memory / (1 - cluster.spare))
        return [f"Nothing fits: it would with devices of {needed} or more; or use a smaller model."]
    best, run = found.best, recipe.run
    switch = "model.transformer" if recipe.stage == "prior" else "model.unet"
    return [
        f"Best: micro-batches of {best.images} images: run.accumulation={best.accumulation} "
        f"{switch}.checkpoint_activations={str(best.checkpointing).lower()}",
        f"{run.batch_size / best.seconds:,.0f} images/s at {cluster.utilization:.0%} of "
        f"{cluster.peak / 1e12:,.3g} TFLOP/s; {best.seconds:.3g} s a step; {run.steps:,} steps in "
        f"{format_time(run.steps * best.seconds)}",
    ]
