"""The largest micro-batch that fits, found by training on it for real, each time in a process that may die of it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from dalle.data import open_data, open_training
from dalle.data.loader import batches, evaluation_batches
from dalle.device import free_memory
from dalle.training.optim import EMA, adamw
from dalle.training.planning.memory import ModelSize, TrainSetup, memory
from dalle.training.recipe import DALLERecipe, LoopRecipe
from dalle.training.run.log import start_accelerator
from dalle.training.run.precision import resolve_precision
from dalle.training.tasks import build_task
from dalle.training.train_step import accumulate, evaluated, optimizer_step

_STEPS = 2  # the first makes the moments, the second holds all at once


@dataclass(frozen=True)
class Trial:
    """What came of a micro-batch.

    Attributes:
        images: of the micro-batch.
        fits: whether the steps were made.
        told: why not; or how much was free and what the process took.
    """

    images: int
    fits: bool
    detail: str


@dataclass(frozen=True)
class MicroBatch:
    """What fits.

    Attributes:
        images: the largest micro-batch that fits, at most run.batch_size.
        accumulation: the fewest micro-batches that make run.batch_size.
    """

    images: int
    accumulation: int

    @property
    def options(self) -> str:
        """What to give the training."""
        return f"run.accumulation={self.accumulation}"


def find_batch(recipe: LoopRecipe, limit: int | None, processes: int, on_trial: Callable[[Trial], None]) -> MicroBatch:
    """Find how many images of a recipe go through one process at a time.

    Args:
        recipe: what will be trained.
        limit: bytes that may be taken; None: nine tenths of what is free on the device.
        processes: that run.batch_size will be shared by.
        on_trial: called with the outcome of each trial.

    Raises:
        ValueError: not even one image fits; or what is wrong with the recipe or its data.
    """
    if processes < 1 or recipe.run.batch_size % processes:
        raise ValueError(
            f"run.batch_size is {recipe.run.batch_size}, which {processes} processes cannot share evenly: take a "
            "multiple, or another number of processes"
        )
    recipe = resolve_precision(recipe)
    own = recipe.run.batch_size // processes
    sizes = [n for n in range(1, own + 1) if own % n == 0]
    limit = int(0.9 * _free_memory(recipe)) if limit is None else limit

    def fits(images: int) -> bool:
        trial = _trial(recipe, images, min(2, own // images), limit)
        on_trial(trial)
        if not trial.fits and images == 1:
            raise ValueError(f"not even one image fits {limit / 1e9:.3g} GB ({trial.detail}): take a smaller model")
        return trial.fits

    images = _largest(sizes, _first_guess(recipe, sizes, limit), fits)
    return MicroBatch(images, own // images)


def _largest(sizes: list[int], guess: int, fits: Callable[[int], bool]) -> int:
    """The largest of some ascending sizes that fits, by bisection that asks for `guess` first, and its neighbour."""
    low, high = -1, len(sizes)  # fits, does not
    middle = sizes.index(guess)
    while high - low > 1:
        if fits(sizes[middle]):
            low = middle
            middle = middle + 1 if sizes[middle] == guess else (low + high) // 2
        else:
            high = middle
            middle = (low + high) // 2
        middle = min(max(middle, low + 1), high - 1)
    return sizes[low]


def _first_guess(recipe: LoopRecipe, sizes: list[int], limit: int) -> int:
    """Where to begin: what should fit by the formulas of a plan, where there are some, else the whole batch."""
    if not isinstance(recipe, DALLERecipe) or recipe.lora is not None:
        return sizes[-1]
    size, run = ModelSize.of(recipe.model), recipe.run
    checkpointing = recipe.model.transformer.checkpoint_activations
    ema = recipe.optim.ema is not None
    assert run.precision != "auto"
    for images in reversed(sizes):
        setup = TrainSetup("ddp", 1, images, sizes[-1] // images, checkpointing, run.precision, ema)
        if memory(size, setup).peak <= limit:
            return images
    return sizes[0]


def _free_memory(recipe: LoopRecipe) -> int:
    cuda = recipe.run.device != "cpu" and torch.cuda.is_available()
    return free_memory(torch.device("cuda" if cuda else "cpu"))


# ---- in a process of its own


def _trial(recipe: LoopRecipe, images: int, accumulation: int, limit: int) -> Trial:
    """Train for a moment in another process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    run = replace(recipe.run, batch_size=images * accumulation, accumulation=accumulation, tracker="none", workers=0)
    process = context.Process(target=_child, args=(replace(recipe, run=run), limit, sender))
    process.start()
    sender.close()
    try:
        kind, detail = _wait_for_answer(process, receiver, limit)
    except EOFError:  # it ended without a word
        process.join()
        kind, detail = "memory", f"the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    if kind == "wrong":
        raise ValueError(detail)
    return Trial(images, kind == "fits", detail)


def _wait_for_answer(process: SpawnProcess, receiver: Connection, limit: int) -> tuple[str, str]:
    """What a child says, or that it took more memory than it may: then it is to be killed, before others are."""
    early: tuple[str, str] | None = receiver.recv()
    if early is not None:
        return early
    before = _resident_memory(process.pid)
    while not receiver.poll(0.005):
        if _resident_memory(process.pid) - before > limit:
            return "memory", "it would take more"
    reply: tuple[str, str] = receiver.recv()
    return reply


def _resident_memory(pid: int | None) -> int:
    """Bytes that a process holds, less files that are mapped; 0 where that cannot be seen: it is not Linux, or over."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
    except OSError:
        return 0


def _child(recipe: LoopRecipe, limit: int, answer: Connection) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        os.dup2(nowhere.fileno(), 2)  # libraries say there what they lack
        answer.send(_run_trial(recipe, limit, answer))


def _run_trial(recipe: LoopRecipe, limit: int, answer: Connection) -> tuple[str, str]:
    """How a training of some steps went: "fits", "memory" or "wrong", and a line on it."""
    try:
        device = _train_steps(recipe, limit, answer)
    except MemoryError:
        return "memory", "out of memory"
    except (ValueError, OSError) as error:
        return "wrong", str(error)
    except RuntimeError as error:  # torch's on accelerators is one too
        return "memory", str(error).partition("\n")[0]
    if device.type == "cuda":
        return "fits", f"{torch.cuda.max_memory_reserved(device) / 1e9:.3g} GB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return "fits", f"{peak / 1e9:.3g} GB with the program itself"


def _train_steps(recipe: LoopRecipe, limit: int, answer: Connection) -> torch.device:
    """Make some steps of a recipe and look at a validation batch, as train.py does."""
    run = recipe.run
    accelerator = start_accelerator(run)
    if accelerator.device.type == "cuda":
        card = torch.cuda.get_device_properties(accelerator.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / card), accelerator.device)
    answer.send(None)
    torch.manual_seed(run.seed)
    task = build_task(recipe, accelerator.device)
    optimizers = {phase.name: accelerator.prepare(adamw(phase.module, phase.optim)) for phase in task.phases}
    ema = EMA(task.model, recipe.optim.ema) if recipe.optim.ema else None
    stream = batches(open_training(recipe.data, task.image_size), batch_size=run.batch_size, seed=run.seed)
    task.model.train()
    for _ in range(_STEPS):
        micro = [task.inputs(part) for part in next(stream).split(run.accumulation)]
        for phase in task.phases:  # all, whenever they begin
            total, _ = accumulate(task, phase, micro, accelerator, run.steps)
            optimizer_step(phase, total, optimizers[phase.name], accelerator, 0, run.steps)
        task.on_step_end(lambda tensor: tensor)
        if ema is not None:
            ema.update(1)
    validation_data = open_data(recipe.data, "validation", task.image_size)
    with evaluated(task.model, ema) as model:
        task.validate(model, evaluation_batches(validation_data, 32, limit=min(32, run.validation_images)))
    return accelerator.device
