"""Plans sampling from a model: memory in each dtype, how many candidates fit at once, and how fast memory allows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dalle.checkpoints.image_codes import recorded_codes
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.image_tokenizers import without_weights
from dalle.checkpoints.published.models import read_model
from dalle.checkpoints.source import check_stage, open_source
from dalle.config import from_dict
from dalle.generation.batching import row_bytes
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageTokenizerConfig, build
from dalle.kernels.linear import Linear
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.training.planning.memory import cache_bytes
from dalle.training.planning.plan import Cluster, format_bytes, format_time
from dalle.training.planning.setup import ModelSize

_FLOAT = 4  # bytes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class Model(NamedTuple):
    """What is sampled from, without its weights."""

    name: str
    config: DALLEConfig
    sampling: SamplingConfig
    images: int | None
    """Parameters of the image tokenizer; None: it is not in the model's files."""
    image_source: str
    """Where the image tokenizer is otherwise; "" if unknown."""


@dataclass(frozen=True)
class SamplingOption:
    """Sampling in one dtype.

    Attributes:
        dtype: of the transformer.
        weights: bytes of the transformer.
        read: bytes of weights that each step reads.
        candidate: bytes of one candidate beyond the weights, with its unconditional row: KV cache, activations, logits.
        fitting: candidates that fit at once; 0: not even one does.
        seconds: for the images of one candidate, and of all that fit, in which memory can be read.
    """

    dtype: str
    weights: int
    read: int
    candidate: int
    fitting: int
    seconds: tuple[float, float]


def plan_sampling(source: str | Path, given: Mapping[str, Any], cluster: Cluster, bandwidth: float) -> str:
    """Describe what sampling from a model takes on one device.

    Args:
        source: a model folder of ours, published files or a hub id; a published language model without its weights too.
        given: facts that published files do not record.
        cluster: the devices, of which one samples.
        bandwidth: bytes of memory that the device reads per second.

    Raises:
        ValueError: it is no model that samples tokens.
    """
    model = describe(source, given)
    images = _FLOAT * (model.images or 0)
    return _report(model, [_option(model, dtype, cluster, bandwidth, images) for dtype in DTYPES], cluster, bandwidth)


def describe(source: str | Path, given: Mapping[str, Any]) -> Model:
    """Read the architecture of a model and of its image tokenizer.

    Raises:
        ValueError: as `plan_sampling`.
    """
    opened = open_source(source, weights=False)
    if isinstance(opened, ModelFolder):
        opened.check_none_given(given or {})
        check_stage(opened, "dalle")
        config = from_dict(DALLEConfig, opened.config["model"], opened.origin)
        sampling = from_dict(SamplingConfig, opened.config.get("sampling") or {}, opened.origin)
        images, codes = None, recorded_codes(opened)
        if "image_tokenizer" in opened.components:
            part = opened.component("image_tokenizer")
            with torch.device("meta"):
                images = _count(build(from_dict(ImageTokenizerConfig, part.config.get("model") or {}, part.origin)))
        name = f"{source}: {opened.config.get('origin') or 'made by train.py'}"
        return Model(name, config, sampling, images, "" if codes is None else codes.source)
    found = read_model(opened, None, given, weights=False)
    own = None if found.image_tokenizer is None else _count(without_weights(found.image_tokenizer))
    return Model(f"{source}: {found.model.family}", found.model.config, found.sampling, own, found.image_source)


def _option(model: Model, dtype: str, cluster: Cluster, bandwidth: float, images: int) -> SamplingOption:
    with torch.device("meta"):
        # As it computes: int8 weights in float32
        module = DALLE(model.config).to(torch.float32 if dtype == "int8" else DTYPES[dtype])
    rows = _rows(model.sampling)
    weights, candidate = _bytes(module, dtype), rows * row_bytes(module, 0)
    read = sum(_bytes(part, dtype) for part in (module.transformer, module.head_hidden, module.image_head) if part)
    free = cluster.usable - weights - images
    fitting = max(0, int(free // candidate))
    number = next(module.transformer.parameters()).element_size()
    cache = rows * cache_bytes(ModelSize.of(model.config), number) // 2  # on average half of it has been written
    steps = model.config.token_length
    seconds = tuple(steps * (read + count * cache) / bandwidth for count in (1, max(1, fitting)))
    return SamplingOption(dtype, weights, read, candidate, fitting, (seconds[0], seconds[1]))


def _rows(sampling: SamplingConfig) -> int:
    """Rows of a batch for each candidate."""
    return 2 if sampling.guides(0) else 1


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(module: nn.Module, dtype: str) -> int:
    """Bytes of all parameters and buffers; in int8 of linear layers a byte a weight and a scale a row."""
    tensors = [*module.parameters(), *module.buffers()]
    if dtype != "int8":
        return sum(tensor.nbytes for tensor in tensors)
    linear = [one for one in module.modules() if isinstance(one, Linear)]
    saved = sum((_FLOAT - 1) * one.weight.numel() - _FLOAT * one.out_features for one in linear)
    return sum(tensor.nbytes for tensor in tensors) - saved


def _report(model: Model, options: list[SamplingOption], cluster: Cluster, bandwidth: float) -> str:
    config, rows = model.config, _rows(model.sampling)
    steps = f"{config.token_length:,} steps" + (", row ends too" if config.row_ends else "")
    guided = f"guidance {model.sampling.guidance:g}: two rows a candidate" if rows == 2 else "no guidance"
    lines = [
        model.name,
        f"{ModelSize.of(config).parameters:,} parameters; an image of {config.grid[0]}x{config.grid[1]} codes in "
        f"{steps}; {guided}; prompts of at most {config.text_length} tokens",
        _images(model),
        f"one device of {format_bytes(cluster.memory)}, {format_bytes(cluster.usable)} usable, that reads "
        f"{format_bytes(bandwidth)}/s",
        "",
        f"  {'':<10}{'weights':>12}{'a candidate':>14}{'peak of one':>14}{'fit at once':>14}{'one image':>16}"
        f"{'an image of all':>18}",
    ]
    images = _FLOAT * (model.images or 0)
    for one in options:
        peak = one.weights + images + one.candidate
        times = (format_seconds(one.seconds[0]), format_seconds(one.seconds[1] / max(1, one.fitting)))
        lines.append(
            f"  {one.dtype:<10}{format_bytes(one.weights):>12}{format_bytes(one.candidate):>14}"
            f"{format_bytes(peak):>14}{one.fitting or 'none':>14}{times[0]:>16}{times[1] if one.fitting else '':>18}"
        )
    fitting = [one for one in options if one.fitting]
    lines.append("")
    if not fitting:
        least = min(one.weights + images + one.candidate for one in options) / (1 - cluster.spare)
        lines.append(f"Nothing fits: it would with a device of {format_bytes(least)} or more.")
    lines.append(
        "Times are what reading weights and cache takes: no device is faster, and one with few cores, or with many "
        "candidates at once, slower. int8 is for CPUs."
    )
    return "\n".join(lines)


def _images(model: Model) -> str:
    if model.images is not None:
        return f"image tokenizer: {format_bytes(_FLOAT * model.images)} in float32, counted in the peak"
    return f"image tokenizer: read from {model.image_source or 'elsewhere'}, not counted here"


def format_seconds(seconds: float) -> str:
    """A time in a unit that suits it, also a short one."""
    if seconds >= 600:
        return format_time(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
