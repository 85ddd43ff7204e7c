"""Plans a training before it is paid for: which layouts over the devices fit in memory, and how long training takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from dalle.kernels.masks import mask
from dalle.training.planning.memory import Memory, cache_bytes, memory
from dalle.training.planning.setup import Adapters, Layout, ModelSize, Precision, TrainSetup
from dalle.training.recipe import DALLERecipe


@dataclass(frozen=True)
class Cluster:
    """The devices to train on.

    Attributes:
        devices: number of devices.
        memory: bytes per device.
        spare: fraction of the memory to leave free, for the CUDA context, fragmentation and communication buffers.
        peak: peak FLOP/s per device, in the precision of the run.
        utilization: expected model FLOPs utilization, including time spent on communication.
    """

    devices: int
    memory: float
    spare: float
    peak: float
    utilization: float

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"gpus is {self.devices}; it must be at least 1")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"utilization is {self.utilization}; it must be above 0 and at most 1")
        if not 0 <= self.spare < 1:
            raise ValueError(f"spare is {self.spare}; it must be at least 0 and below 1")

    @property
    def usable(self) -> float:
        """Bytes per device that training may take."""
        return self.memory * (1 - self.spare)


@dataclass(frozen=True)
class Option:
    """One way to train: its memory per device, and the seconds per step."""

    setup: TrainSetup
    memory: Memory
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The result of planning.

    Attributes:
        size: the model.
        cluster: the devices.
        choices: for each layout, with and without activation checkpointing, the fastest option that fits, or the
            smallest if none does.
        best: the fastest option that fits; None if none does.
        devices_needed: number of devices with which some layout fits; None if no number suffices.
    """

    size: ModelSize
    cluster: Cluster
    choices: list[Option]
    best: Option | None
    devices_needed: int | None


def plan(recipe: DALLERecipe, cluster: Cluster) -> Plan:
    """Compare all layouts for training a recipe on a cluster.

    Raises:
        ValueError: the batch size is not divisible by the number of devices, or LoRA has no layer to adapt.
    """
    if recipe.run.batch_size % cluster.devices:
        raise ValueError(
            f"run.batch_size is {recipe.run.batch_size}, which is not divisible by {cluster.devices} devices: set it "
            "to a multiple, or change the number of devices"
        )
    size = ModelSize.of(recipe.model)
    choices = [
        _fastest_fitting(list(own), cluster)
        for _, own in itertools.groupby(_options_of(recipe, size, cluster), key=_layout)  # neighbors, in this order
    ]
    fitting = [choice for choice in choices if fits(choice, cluster)]
    best = min(fitting, key=lambda choice: choice.seconds, default=None)
    return Plan(size, cluster, choices, best, cluster.devices if best else _devices_needed(recipe, size, cluster))


def fits(choice: Option, cluster: Cluster) -> bool:
    """Return whether an option fits in the usable memory of a device."""
    return choice.memory.peak <= cluster.usable


def operations(size: ModelSize, checkpointing: bool, adapters: Adapters | None = None) -> float:
    """Count the floating-point operations of training on one image.

    The backward pass costs twice the forward pass, so the total is three forward passes, or four for blocks that are
    recomputed under activation checkpointing. With LoRA it is one less, as matrices that are not trained need no
    gradients, and the adapters come on top. Attention counts only the pairs that its mask allows, even if a kernel
    computes more.
    """
    config, shape = size.config, size.config.transformer
    rows, columns = config.grid
    pairs = {kind: _attended_pairs(size, kind) for kind in set(config.kinds)}
    # A matrix takes 2 operations (multiply, add) per weight and token. Attention takes 2 per channel for the score of
    # an attended pair, and 2 for weighting the value
    matrices = shape.depth * 2 * _matrices(size) * size.tokens
    attention = sum(4 * shape.heads * shape.head_width * pairs[kind] for kind in config.kinds)
    heads = 2 * shape.width * rows * columns * config.image_vocab
    heads += 2 * shape.width * (config.prefix_length - 1) * config.text_embeddings if config.text_head else 0
    passes = 4 if checkpointing else 3
    if adapters is None:
        return (matrices + attention) * passes + heads * 3
    trained = attention + 2 * adapters.parameters * size.tokens
    return matrices * (passes - 1) + trained * passes + heads * 2


@cache
def _attended_pairs(size: ModelSize, kind: str) -> int:
    """Number of (query, key) pairs that an attention mask allows for one image."""
    if kind == "full":
        return size.tokens * (size.tokens + 1) // 2
    config = size.config
    allowed = mask(kind, config.prefix_length, *config.grid, config.conv_kernel)  # type: ignore[arg-type]
    return int(allowed[: size.tokens, : size.tokens].sum())


def _matrices(size: ModelSize) -> int:
    """Number of weights in the matrices of one block."""
    shape = size.config.transformer
    gates = 2 if shape.feed_forward in ("swiglu", "geglu", "geglu_tanh") else 1
    # C x I for queries, keys, values and output; C x H for each feed-forward matrix
    return shape.width * (2 * (shape.heads + shape.key_heads) * shape.head_width + (1 + gates) * size.hidden)


def _options_of(recipe: DALLERecipe, size: ModelSize, cluster: Cluster) -> Iterator[Option]:
    """Every layout, with and without checkpointing, with every micro-batch size, largest first."""
    own = recipe.run.batch_size // cluster.devices
    muon = recipe.optim.kind == "muon"  # which FSDP does not support
    layouts: tuple[Layout, ...] = ("ddp", "fsdp") if cluster.devices > 1 and not muon else ("ddp",)
    adapters = None if recipe.lora is None else Adapters.of(recipe.model, recipe.lora)
    for layout, checkpointing in itertools.product(layouts, (False, True)):
        # The same for all micro-batch sizes
        seconds = own * operations(size, checkpointing, adapters) / (cluster.peak * cluster.utilization)
        for images in range(own, 0, -1):
            if own % images == 0:
                setup = TrainSetup(
                    layout,
                    cluster.devices,
                    images,
                    own // images,
                    checkpointing,
                    _precision(recipe),
                    recipe.optim.ema is not None,
                    adapters,
                    muon,
                )
                yield Option(setup, memory(size, setup), seconds)


def _precision(recipe: DALLERecipe) -> Precision:
    """The run's precision; `auto` counts as bf16, which every device worth planning for supports."""
    return "bf16" if recipe.run.precision == "auto" else recipe.run.precision


def _layout(choice: Option) -> tuple[Layout, bool]:
    return choice.setup.layout, choice.setup.checkpointing


def _fastest_fitting(choices: list[Option], cluster: Cluster) -> Option:
    """The option with the largest micro-batch that fits; the one with the least memory if none does."""
    fitting = [choice for choice in choices if fits(choice, cluster)]
    return fitting[0] if fitting else min(choices, key=lambda choice: choice.memory.peak)  # the first is the largest


def _devices_needed(recipe: DALLERecipe, size: ModelSize, cluster: Cluster) -> int | None:
    """The smallest number of devices, among divisors of the batch size, with which some layout fits."""
    for devices in range(cluster.devices + 1, recipe.run.batch_size + 1):
        if recipe.run.batch_size % devices == 0:
            more = replace(cluster, devices=devices)
            if any(fits(choice, more) for choice in _options_of(recipe, size, more)):
                return devices
    return None


def report(found: Plan, recipe: DALLERecipe) -> str:
    """Format a plan as text with a table."""
    size, cluster, run = found.size, found.cluster, recipe.run
    config, adapters = size.config, found.choices[0].setup.adapters
    trained = "" if adapters is None else f" and {adapters.parameters:,} of LoRA, which alone are trained"
    lines = [
        f"{size.parameters:,} parameters{trained}; {size.tokens:,} tokens an image ({config.prefix_length:,} of text); "
        f"{operations(size, False, adapters) / 1e12:.3g} TFLOP to train on one",
        f"{cluster.devices} x {format_bytes(cluster.memory)}, {format_bytes(cluster.usable)} usable; "
        f"batch {run.batch_size:,}, "
        f"{_precision(recipe)}, weights and optimizer fp32" + ("" if recipe.optim.ema is None else ", with EMA"),
        f"sampling: the KV cache of one image takes {format_bytes(cache_bytes(size))} in 16 bits",
        "",
        *_table(found),
        "",
    ]
    return "\n".join(lines + _advice(found, recipe))


_COLUMNS = {  # fields of `Memory`, and how the table heads them
    **{name: name for name in ("weights", "gradients", "moments", "average")},
    "cast_weights": "cast",
    **{name: name for name in ("activations", "heads")},
    "allreduce_buffer": "all-reduce",
    "peak": "peak",
}


def _table(found: Plan) -> Iterator[str]:
    yield f"  {'per device':<22}{'images':>10}" + "".join(f"{name:>12}" for name in _COLUMNS.values())
    for choice in found.choices:
        setup = choice.setup
        name = setup.layout + (", checkpointing" if setup.checkpointing else "")
        values = "".join(f"{format_bytes(getattr(choice.memory, column)):>12}" for column in _COLUMNS)
        mark = "fits" if fits(choice, found.cluster) else "does not fit"
        yield f"  {name:<22}{f'{setup.images} x {setup.accumulation}':>10}{values}  {mark}"


def _advice(found: Plan, recipe: DALLERecipe) -> list[str]:
    if found.best is None:
        return [_what_would_fit(found)]
    run, cluster, best = recipe.run, found.cluster, found.best
    rate, images = run.batch_size / best.seconds, run.steps * run.batch_size
    return [
        f"Best: {_label(best)}, micro-batches of {best.setup.images} images: {_recipe_options(best)}",
        f"{rate * found.size.tokens:,.0f} tokens/s, {rate:,.0f} images/s at {cluster.utilization:.0%} of "
        f"{cluster.peak / 1e12:,.0f} TFLOP/s; {best.seconds:.3g} s a step; {run.steps:,} steps "
        f"({images:,} images) in {format_time(run.steps * best.seconds)}",
    ]


def _what_would_fit(found: Plan) -> str:
    cluster = found.cluster
    least = min(found.choices, key=lambda choice: choice.memory.peak)
    ways = [f"devices of {format_bytes(least.memory.peak / (1 - cluster.spare))} or more"]
    if found.devices_needed is not None:
        ways.append(f"{found.devices_needed} devices (--gpus)")
    # Shown only if it alone would do
    if least.memory.average and least.memory.peak - least.memory.average <= cluster.usable:
        ways.append("no EMA (optim.ema=null)")
    return (
        f"Nothing fits: {_label(least)} takes least, {format_bytes(least.memory.peak)}, with micro-batches of "
        f"{least.setup.images}. It would fit with {', or '.join(ways)}; or use a smaller model."
    )


def _label(choice: Option) -> str:
    return choice.setup.layout + (" with checkpointing" if choice.setup.checkpointing else "")


def _recipe_options(choice: Option) -> str:
    """The overrides that select an option."""
    setup = choice.setup
    sharding = "run.sharding=fsdp " if setup.layout == "fsdp" else ""
    checkpointing = f"model.transformer.checkpoint_activations={str(setup.checkpointing).lower()}"
    return f"{sharding}run.accumulation={setup.accumulation} {checkpointing}"


def format_time(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for unit, of in (("days", 86_400), ("hours", 3600)):
        if seconds >= of:
            return f"{seconds / of:.3g} {unit}"
    return f"{seconds / 60:.3g} minutes"


def format_bytes(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.3g} {unit}"
    return f"{count:.0f}"
