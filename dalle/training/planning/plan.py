"""What a training will take before it is paid for: layouts over many devices, which of them fit, how long it lasts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from dalle.kernels.masks import mask
from dalle.training.planning.memory import Layout, Memory, ModelSize, Precision, TrainSetup, cache_bytes, memory
from dalle.training.recipe import DALLERecipe


@dataclass(frozen=True)
class Cluster:
    """What is to be trained on.

    Attributes:
        devices: how many.
        memory: bytes of each.
        spare: share of it that stays free: the runtime's own, what the allocator cannot use, other buffers.
        peak: floating-point operations a second of each, in the precision of the run.
        utilisation: share of these that is expected, waiting for other devices included.
    """

    devices: int
    memory: float
    spare: float
    peak: float
    utilisation: float

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"gpus is {self.devices}: at least 1")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is {self.utilisation}: more than 0, at most 1")
        if not 0 <= self.spare < 1:
            raise ValueError(f"spare is {self.spare}: from 0 to less than 1")

    @property
    def usable(self) -> float:
        return self.memory * (1 - self.spare)


@dataclass(frozen=True)
class Option:
    """One way to train: its memory on one device, and the seconds of a step."""

    how: TrainSetup
    memory: Memory
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        choices: of each layout, with and without checkpointing, the fastest that fits, else the smallest.
        best: the fastest of all that fit; None: none does.
        enough: devices with which some layout would fit, where none does; None: no number is enough.
    """

    size: ModelSize
    machine: Cluster
    choices: list[Option]
    best: Option | None
    enough: int | None


def plan(recipe: DALLERecipe, machine: Cluster) -> Plan:
    """The layouts of a recipe's training on a machine.

    Raises:
        ValueError: the batch cannot be shared evenly among the devices; or few weights are trained (lora).
    """
    if recipe.lora is not None:
        raise ValueError("lora trains few of the weights, and a plan counts the training of all: set lora=null")
    if recipe.run.batch_size % machine.devices:
        raise ValueError(
            f"run.batch_size is {recipe.run.batch_size}, which {machine.devices} devices cannot share evenly: take a "
            "multiple, or another number of devices"
        )
    size = ModelSize.of(recipe.model)
    choices = [_fastest(list(own), machine) for _, own in itertools.groupby(_all(recipe, size, machine), key=_kind)]
    fitting = [choice for choice in choices if fits(choice, machine)]
    best = min(fitting, key=lambda choice: choice.seconds, default=None)
    return Plan(size, machine, choices, best, machine.devices if best else _enough(recipe, size, machine))


def fits(choice: Option, machine: Cluster) -> bool:
    """Whether a device holds it, and has as much free as it should."""
    return choice.memory.peak <= machine.usable


def operations(size: ModelSize, checkpointing: bool) -> float:
    """Floating-point operations of the training on one image: three forward passes, four with checkpointing.

    Of attention what its masks cover is counted, whatever a kernel makes of them.
    """
    config, shape = size.config, size.config.transformer
    rows, columns = config.grid
    covered = {kind: _covered(size, kind) for kind in set(config.kinds)}
    blocks = shape.depth * 2 * _matrices(size) * size.tokens
    blocks += sum(4 * shape.heads * shape.head_width * covered[kind] for kind in config.kinds)
    heads = 2 * shape.width * rows * columns * config.image_vocab
    heads += 2 * shape.width * (config.prefix_length - 1) * config.text_embeddings if config.text_head else 0
    return blocks * (4 if checkpointing else 3) + heads * 3


@cache
def _covered(size: ModelSize, kind: str) -> int:
    """Pairs of a token and one that it looks at."""
    if kind == "full":
        return size.tokens * (size.tokens + 1) // 2
    config = size.config
    allowed = mask(kind, config.prefix_length, *config.grid, config.conv_kernel)  # type: ignore[arg-type]
    return int(allowed[: size.tokens, : size.tokens].sum())


def _matrices(size: ModelSize) -> int:
    """Weights of a block's matrices."""
    shape = size.config.transformer
    gates = 2 if shape.feed_forward in ("swiglu", "geglu") else 1
    return shape.width * (4 * shape.heads * shape.head_width + (1 + gates) * size.hidden)


def _all(recipe: DALLERecipe, size: ModelSize, machine: Cluster) -> Iterator[Option]:
    """Every layout, with and without checkpointing, with every size of a micro-batch."""
    own = recipe.run.batch_size // machine.devices
    layouts: tuple[Layout, ...] = ("ddp", "fsdp") if machine.devices > 1 else ("ddp",)
    for layout, checkpointing in itertools.product(layouts, (False, True)):
        seconds = own * operations(size, checkpointing) / (machine.peak * machine.utilisation)
        for images in range(own, 0, -1):
            if own % images == 0:
                how = TrainSetup(
                    layout,
                    machine.devices,
                    images,
                    own // images,
                    checkpointing,
                    _precision(recipe),
                    recipe.optim.ema is not None,
                )
                yield Option(how, memory(size, how), seconds)


def _precision(recipe: DALLERecipe) -> Precision:
    """That of the run; `auto` is bf16, as on all devices that a plan is made for."""
    return "bf16" if recipe.run.precision == "auto" else recipe.run.precision


def _kind(choice: Option) -> tuple[Layout, bool]:
    return choice.how.layout, choice.how.checkpointing


def _fastest(choices: list[Option], machine: Cluster) -> Option:
    """Of one layout the largest micro-batch that fits, as the choices come; the one that takes least if none does."""
    fitting = [choice for choice in choices if fits(choice, machine)]
    return fitting[0] if fitting else min(choices, key=lambda choice: choice.memory.peak)


def _enough(recipe: DALLERecipe, size: ModelSize, machine: Cluster) -> int | None:
    """The smallest number of devices, a divisor of the batch, on which some layout fits."""
    for devices in range(machine.devices + 1, recipe.run.batch_size + 1):
        if recipe.run.batch_size % devices == 0:
            more = replace(machine, devices=devices)
            if any(fits(choice, more) for choice in _all(recipe, size, more)):
                return devices
    return None


def report(found: Plan, recipe: DALLERecipe) -> str:
    """The plan in words and tables, for people."""
    size, machine, run = found.size, found.machine, recipe.run
    config = size.config
    lines = [
        f"{size.parameters:,} parameters; {size.tokens:,} tokens an image ({config.prefix_length:,} of text); "
        f"{operations(size, False) / 1e12:.3g} TFLOP to train on one",
        f"{machine.devices} x {_bytes(machine.memory)}, {_bytes(machine.usable)} to be used; batch {run.batch_size:,}, "
        f"{_precision(recipe)}, weights and optimizer fp32"
        + ("" if recipe.optim.ema is None else ", with an average (optim.ema)"),
        f"drawing: the KV cache of one image takes {_bytes(cache_bytes(size))} in 16 bits",
        "",
        *_table(found),
        "",
    ]
    return "\n".join(lines + _advice(found, recipe))


_COLUMNS = ("weights", "gradients", "moments", "average", "copies", "activations", "heads", "exchange", "peak")


def _table(found: Plan) -> Iterator[str]:
    yield f"  {'on one device':<22}{'images':>10}" + "".join(f"{name:>12}" for name in _COLUMNS)
    for choice in found.choices:
        how = choice.how
        name = how.layout + (", checkpointing" if how.checkpointing else "")
        values = "".join(f"{_bytes(getattr(choice.memory, column)):>12}" for column in _COLUMNS)
        mark = "fits" if fits(choice, found.machine) else "does not fit"
        yield f"  {name:<22}{f'{how.images} x {how.accumulation}':>10}{values}  {mark}"


def _advice(found: Plan, recipe: DALLERecipe) -> list[str]:
    if found.best is None:
        return [_what_to_change(found)]
    run, machine, best = recipe.run, found.machine, found.best
    rate, images = run.batch_size / best.seconds, run.steps * run.batch_size
    return [
        f"Best: {_name(best)}, micro-batches of {best.how.images} images: {_options(best)}",
        f"{rate * found.size.tokens:,.0f} tokens/s, {rate:,.0f} images/s at {machine.utilisation:.0%} of "
        f"{machine.peak / 1e12:,.0f} TFLOP/s; {best.seconds:.3g} s a step; {run.steps:,} steps "
        f"({images:,} images) in {_time(run.steps * best.seconds)}",
    ]


def _what_to_change(found: Plan) -> str:
    machine = found.machine
    least = min(found.choices, key=lambda choice: choice.memory.peak)
    ways = [f"devices of {_bytes(least.memory.peak / (1 - machine.spare))} or more"]
    if found.enough is not None:
        ways.append(f"{found.enough} devices (--gpus)")
    if least.memory.average and least.memory.peak - least.memory.average <= machine.usable:
        ways.append("no average of weights (optim.ema=null)")
    return (
        f"Nothing fits: {_name(least)} takes least, {_bytes(least.memory.peak)}, with micro-batches of "
        f"{least.how.images}. It would with {', or '.join(ways)}; or take a smaller model."
    )


def _name(choice: Option) -> str:
    return choice.how.layout + (" with checkpointing" if choice.how.checkpointing else "")


def _options(choice: Option) -> str:
    """What a recipe must say for it."""
    how = choice.how
    sharding = "run.sharding=fsdp " if how.layout == "fsdp" else ""
    checkpointing = f"model.transformer.checkpoint_activations={str(how.checkpointing).lower()}"
    return f"{sharding}run.accumulation={how.accumulation} {checkpointing}"


def _time(seconds: float) -> str:
    for unit, of in (("days", 86_400), ("hours", 3600)):
        if seconds >= of:
            return f"{seconds / of:.3g} {unit}"
    return f"{seconds / 60:.3g} minutes"


def _bytes(count: float) -> str:
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.3g} {unit}"
    return f"{count:.0f}"
