"""LoRA fine-tuning (Hu et al. 2021, arXiv 2106.09685) with the peft library; merging adapters into the weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from importlib.util import find_spec
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from dalle.checkpoints.lazy_tensor import LazyTensor, Tensors
from dalle.checkpoints.mapped_files import drop_pages
from dalle.config import config
from dalle.config.ranges import Decay, PositiveFloat, Range
from dalle.files import install_command


@config
class LoRAConfig:
    """Options of LoRA."""

    rank: Annotated[int, Range(1, ceiling=2**20)] = 16
    """Rank of the adapters."""
    alpha: PositiveFloat = 32.0
    """Adapters are scaled by alpha / rank."""
    dropout: Decay = 0.0
    """Dropout on the inputs of the adapters."""
    targets: tuple[str, ...] = ("qkv", "out", "up", "down")
    """Names of the transformer's linear layers that get an adapter."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets is empty: give at least one name of a linear layer, for example qkv")


def check_installed() -> None:
    """Check that peft is installed, without importing it; for runs with LoRA, before they load anything.

    Raises:
        ValueError: it is not.
    """
    if find_spec("peft") is None:
        raise ValueError(f"LoRA needs peft: {install_command('lora')}; or set lora=null to train all weights")


def add_lora(model: nn.Module, options: LoRAConfig, also: Collection[str] = ()) -> None:
    """Add LoRA adapters to the linear layers of a model that are not frozen yet, and freeze everything else.

    Args:
        model: model to change in place.
        options: rank, scale, dropout and target layers.
        also: names of parameters that are still trained themselves.

    Raises:
        ValueError: peft is not installed, no linear layer has one of the target names, or all that have are frozen.
    """
    check_installed()
    from peft import LoraConfig, inject_adapter_in_model

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    there = {name.rpartition(".")[2] for name in layers}
    missing = sorted(set(options.targets) - there)
    if missing:
        raise ValueError(f"lora.targets has {missing[0]}; this model's linear layers are {', '.join(sorted(there))}")
    adapted = [
        name
        for name, layer in layers.items()
        if name.rpartition(".")[2] in options.targets and layer.weight.requires_grad
    ]
    if not adapted:
        raise ValueError(f"every layer of lora.targets, {', '.join(options.targets)}, is frozen: lock less, or no LoRA")
    settings: dict[str, Any] = {"r": options.rank, "lora_alpha": options.alpha, "lora_dropout": options.dropout}
    # In place and not by `get_peft_model`, whose wrapper would have neither our methods nor our parameter names
    inject_adapter_in_model(LoraConfig(**settings, target_modules=adapted, bias="none"), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name in also)


def changes(model: nn.Module) -> nn.ParameterDict:
    """Return what `add_lora` left to train, by name with / in place of dots (a ParameterDict does not allow dots)."""
    found = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # A ParameterDict sorts a dict by name; moments are numbered in the order of the model (`moments_by_name`)
    return nn.ParameterDict(OrderedDict((name.replace(".", "/"), parameter) for name, parameter in found))


def merged(weights: Tensors, options: LoRAConfig) -> dict[str, Tensor | LazyTensor]:
    """Merge adapters into the weights; returns a state dict with the names from before `add_lora`.

    Weights that were trained beside the adapters take the place of those of the base.

    Each merged matrix, W + (alpha / rank) * B A, is computed when it is read, so that only one is in memory.

    Args:
        weights: state of the model with adapters; or the base state with the adapters of `changes` added to it, as in a
            checkpoint.
        options: options that `add_lora` was called with.
    """
    named = {name.replace("/", ".").replace(".base_layer.", "."): value for name, value in weights.items()}
    # peft moves the original layer to `.base_layer`; without it these are the names of a model without adapters
    state = {name: value for name, value in named.items() if "lora_" not in name}
    for name, low in named.items():
        if "lora_A" in name:
            matrix, high = f"{name.partition('.lora_A')[0]}.weight", named[name.replace("lora_A", "lora_B")]
            state[matrix] = _changed(state[matrix], low, high, options.alpha / options.rank)
    return state


def _changed(
    base: Tensor | LazyTensor, low: Tensor | LazyTensor, high: Tensor | LazyTensor, scale: float
) -> LazyTensor:
    def make() -> Tensor:
        whole, first, second = (value() if isinstance(value, LazyTensor) else value for value in (base, low, high))
        made = whole.float() + second @ first * scale  # B [N, r] times A [r, K]
        drop_pages(whole)  # a mapped file's pages would add up to the full model
        return made

    return LazyTensor(base.shape, torch.float32, make)
