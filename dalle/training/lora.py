"""LoRA (Hu et al. 2021, arXiv 2106.09685) by the library peft: few weights are trained, the others stay as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dalle.config import config
from dalle.weights import Lazy, Tensors


@config
class LoRAConfig:
    rank: int = 16
    """Rank of the change of each matrix."""
    alpha: float = 32.0
    """The change is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of a change's inputs dropped in training."""
    targets: tuple[str, ...] = ("qkv", "out", "up", "down")
    """Names of the linear maps of the transformer that change."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise ValueError(f"rank is {self.rank}, targets {list(self.targets)}: at least 1, and at least one name")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


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


def merged(model: nn.Module, weights: Tensors) -> dict[str, Tensor]:
    """The state of the model as it was before `add_lora`, with the changes added to its matrices."""
    whole = {name: value() if isinstance(value, Lazy) else value for name, value in weights.items()}
    state = {name.replace(".base_layer.", "."): value for name, value in whole.items() if "lora_" not in name}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight("default")
    return state
