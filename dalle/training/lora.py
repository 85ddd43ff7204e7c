"""LoRA (Hu et al. 2021, arXiv 2106.09685) by the library peft: few weights are trained, the others stay as they are."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from dalle.checkpoints.tensors import LazyTensor, Tensors, drop_pages
from dalle.config import config
from dalle.ranges import Decay, PositiveFloat, Range


@config
class LoRAConfig:
    rank: Annotated[int, Range(1, ceiling=2**20)] = 16
    """Rank of the change of each matrix."""
    alpha: PositiveFloat = 32.0
    """The change is multiplied by alpha / rank."""
    dropout: Decay = 0.0
    """Share of a change's inputs dropped in training."""
    targets: tuple[str, ...] = ("qkv", "out", "up", "down")
    """Names of the linear maps of the transformer that change."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets is empty: name at least one linear map, for example qkv")


def add_lora(model: nn.Module, options: LoRAConfig) -> None:
    """Give linear maps of a model a change of low rank, and let nothing else be trained.

    Args:
        model: changed in place.
        options: which maps, and how.

    Raises:
        ValueError: peft is not installed, or no linear map has one of the names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError('LoRA needs peft: pip install "dalle[lora]"') from None
    there = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = sorted(set(options.targets) - there)
    if missing:
        raise ValueError(f"lora.targets has {missing[0]}; this model's linear maps are {', '.join(sorted(there))}")
    settings: dict[str, Any] = {"r": options.rank, "lora_alpha": options.alpha, "lora_dropout": options.dropout}
    inject_adapter_in_model(LoraConfig(**settings, target_modules=list(options.targets), bias="none"), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def changes(model: nn.Module) -> nn.ParameterDict:
    """What `add_lora` added, which alone is trained, by name (with / in place of dots)."""
    found = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    return nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in found.items()})


def merged(weights: Tensors, options: LoRAConfig) -> dict[str, Tensor | LazyTensor]:
    """The state of the model as it was before `add_lora`, with the changes added to each matrix as it is called for.

    Args:
        weights: the state of the model, or that of before with `changes` (as in a checkpoint) beside it.
        options: of `add_lora`.
    """
    named = {name.replace("/", ".").replace(".base_layer.", "."): value for name, value in weights.items()}
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
        made = whole.float() + second @ first * scale
        drop_pages(whole)
        return made

    return LazyTensor(base.shape, torch.float32, make)
