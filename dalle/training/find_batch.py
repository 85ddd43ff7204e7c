"""Finds the largest micro-batch that fits, by training with it in a subprocess, which may run out of memory."""

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
from dalle.device import free_memory, out_of_memory
from dalle.training.init_from import prepare_initial
from dalle.training.optim import EMA, build_optimizer
from dalle.training.planning.memory import memory
from dalle.training.planning.setup import ModelSize, TrainSetup
from dalle.training.recipe import DALLERecipe, ImageTokenizerRecipe, LoopRecipe
from dalle.training.run.log import start_accelerator
from dalle.training.run.precision import resolve_precision
from dalle.training.tasks import build_task
from dalle.training.train_step import accumulate, evaluated, optimizer_step

_STEPS = 2  # the first allocates AdamW's moments; the second has them together with all activations: the peak


@dataclass(frozen=True)
class Trial:
    """The outcome of trying a micro-batch.

    Attributes:
        images: size of the micro-batch.
        fits: whether the training steps succeeded.
        detail: peak memory, or why it failed.
    """

    images: int
    fits: bool
    detail: str


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch that fits.

    Attributes:
        images: size of the micro-batch of one process, at most run.batch_size.
        accumulation: number of micro-batches per step.
    """

    images: int
    accumulation: int

    @property
    def options(self) -> str:
        """The override to give to train.py."""
        return f"run.accumulation={self.accumulation}"


def find_batch(
    recipe: LoopRecipe,
    limit: int | None,
    processes: int,
    on_trial: Callable[[Trial], None],
    on_start: Callable[[int], None] = lambda images: None,
) -> MicroBatch:
    """Find the largest micro-batch with which a recipe trains in one process.

    Args:
        recipe: recipe to train; published weights that it begins with are converted to its run.dir.
        limit: memory limit in bytes; None takes 90 % of what is free on the device.
        processes: number of processes that will share run.batch_size.
        on_trial: called with the outcome of each trial.
        on_start: called before each trial, which takes seconds to minutes, with its number of images.

    Raises:
        ValueError: not even one image fits, or something is wrong with the recipe or its data.
    """
    if processes < 1 or recipe.run.batch_size % processes:
        raise ValueError(
            f"run.batch_size is {recipe.run.batch_size}, which is not divisible by {processes} processes: set it to a "
            "multiple, or change the number of processes"
        )
    recipe = resolve_precision(recipe)
    # As in `_trial`: what these options ask for is not tried
    prepare_initial(recipe, start_accelerator(replace(recipe.run, accumulation=1, tracker="none")))
    own = recipe.run.batch_size // processes
    sizes = [n for n in range(1, own + 1) if own % n == 0]  # divisors: all micro-batches of a step are equal
    limit = int(0.9 * _free_memory(recipe)) if limit is None else limit

    def fits(images: int) -> bool:
        on_start(images)
        # Two micro-batches, if there are, to have accumulated gradients as well
        trial = _trial(recipe, images, min(2, own // images), limit)
        on_trial(trial)
        if not trial.fits and images == 1:
            raise ValueError(f"not even one image fits {limit / 1e9:.3g} GB ({trial.detail}): use a smaller model")
        return trial.fits

    images = _largest(sizes, _first_guess(recipe, sizes, limit), fits)
    return MicroBatch(images, own // images)


def _largest(sizes: list[int], guess: int, fits: Callable[[int], bool]) -> int:
    """Bisect ascending sizes for the largest that fits, trying `guess` first and then the next larger one.

    A good guess takes two trials: it fits, and its neighbor does not.
    """
    low, high = -1, len(sizes)  # invariant: sizes[low] fits, sizes[high] does not
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
    """The size that fits according to the memory planner; the full batch for recipes that it does not cover."""
    if not isinstance(recipe, DALLERecipe) or recipe.lora is not None or recipe.grpo is not None:
        return sizes[-1]
    size, run = ModelSize.of(recipe.model), recipe.run
    checkpointing = recipe.model.transformer.checkpoint_activations
    ema = recipe.optim.ema is not None
    assert run.precision != "auto"
    for images in reversed(sizes):
        setup = TrainSetup(
            "ddp", 1, images, sizes[-1] // images, checkpointing, run.precision, ema, muon=recipe.optim.kind == "muon"
        )
        if memory(size, setup).peak <= limit:
            return images
    return sizes[0]


def _free_memory(recipe: LoopRecipe) -> int:
    cuda = recipe.run.device != "cpu" and torch.cuda.is_available()
    return free_memory(torch.device("cuda" if cuda else "cpu"))


def _trial(recipe: LoopRecipe, images: int, accumulation: int, limit: int) -> Trial:
    """Train for a few steps in a subprocess."""
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    receiver, sender = context.Pipe(duplex=False)
    # Memory of workers is not the batch's
    run = replace(recipe.run, batch_size=images * accumulation, accumulation=accumulation, tracker="none", workers=0)
    process = context.Process(target=_child, args=(replace(recipe, run=run), limit, sender))
    process.start()
    # Only the child holds the sending end now, so its death is an EOF here
    sender.close()
    try:
        kind, detail = _wait_for_answer(process, receiver, limit)
    except EOFError:  # it died without an answer: most likely killed for its memory
        process.join()
        kind, detail = "memory", f"the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    if kind == "wrong":
        raise ValueError(detail)
    return Trial(images, kind == "fits", detail)


def _wait_for_answer(process: SpawnProcess, receiver: Connection, limit: int) -> tuple[str, str]:
    """Wait for the subprocess's answer, or return early if it exceeds the limit.

    On a CPU nothing else enforces the limit: without polling, the kernel's OOM killer might pick another process.
    """
    early: tuple[str, str] | None = receiver.recv()  # None once it is ready
    if early is not None:
        return early
    before = _resident_memory(process.pid)
    while not receiver.poll(0.005):
        if _resident_memory(process.pid) - before > limit:
            return "memory", "it takes more"
    reply: tuple[str, str] = receiver.recv()
    return reply


def _resident_memory(pid: int | None) -> int:
    """Anonymous resident memory of a process in bytes, without mapped files; 0 if unknown (not Linux, or ended)."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
    except OSError:
        return 0


def _child(recipe: LoopRecipe, limit: int, answer: Connection) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        os.dup2(nowhere.fileno(), 2)  # C libraries write their out-of-memory messages to the descriptor
        answer.send(_run_trial(recipe, limit, answer))


def _run_trial(recipe: LoopRecipe, limit: int, answer: Connection) -> tuple[str, str]:
    """Train for a few steps; returns "fits", "memory" (out of it) or "wrong" (any other failure), and details."""
    try:
        device = _train_steps(recipe, limit, answer)
    except Exception as error:
        if (shortage := out_of_memory(error)) is not None:
            return "memory", shortage
        if isinstance(error, (ValueError, OSError)):
            return "wrong", str(error)
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return "wrong", f"a trial failed, and not for lack of memory: {told}"
    if device.type == "cuda":
        return "fits", f"{torch.cuda.max_memory_reserved(device) / 1e9:.3g} GB reserved"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return "fits", f"{peak / 1e9:.3g} GB including the program itself"


def _train_steps(recipe: LoopRecipe, limit: int, answer: Connection) -> torch.device:
    """Run some training steps and a validation batch, as train.py does."""
    run = recipe.run
    accelerator = start_accelerator(run)
    if accelerator.device.type == "cuda":
        card = torch.cuda.get_device_properties(accelerator.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / card), accelerator.device)
    answer.send(None)  # libraries are loaded: memory is measured from here on
    torch.manual_seed(run.seed)
    task = build_task(recipe, accelerator.device)
    optimizers = {phase.name: accelerator.prepare(build_optimizer(phase.module, phase.optim)) for phase in task.phases}
    ema = EMA(task.model, recipe.optim.ema) if recipe.optim.ema else None
    # Also a discriminator that starts later, as the run must not fail then
    adversarial = recipe.adversarial if isinstance(recipe, ImageTokenizerRecipe) else None
    step = run.steps if adversarial is None else max(run.steps, adversarial.start)
    stream = batches(open_training(recipe.data, task.image_size), batch_size=run.batch_size, seed=run.seed)
    task.model.train()
    for _ in range(_STEPS):
        micro = [task.inputs(part) for part in next(stream).split(run.accumulation)]
        for phase in task.phases:
            total, _ = accumulate(task, phase, micro, accelerator, step)
            optimizer_step(phase, total, optimizers[phase.name], accelerator, 0, run.steps)
        task.on_step_end(lambda tensor: tensor)
        if ema is not None:
            ema.update(1)
    validation_data = open_data(recipe.data, "validation", task.image_size)
    with evaluated(task.model, ema) as model:
        task.validate(model, evaluation_batches(validation_data, 32, limit=min(32, run.validation_images)))
    return accelerator.device
