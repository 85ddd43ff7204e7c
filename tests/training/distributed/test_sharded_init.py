"""Shares of modules put together are the module that is made whole, number by number, and so is what is drawn next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dalle.checkpoints.modules import load_weights, skip_init
from dalle.checkpoints.tensors import open_tensors, write_tensors
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.training.distributed.sharded_init import sharded_init
from dalle.training.lora import LoRAConfig, add_lora
from support.tiny_configs import clip_config, dalle_config, transformer_config

SHAPE = transformer_config(width=24)
ODD = replace(SHAPE, feed_forward="swiglu", qk_norm=True, sandwich=True, layer_scale=True)
SMALL = dalle_config(transformer=SHAPE, text_vocab=51, image_vocab=32, grid=(3, 5), attention=("row",))
CPU = torch.device("cpu")


def _features() -> nn.Module:
    return DALLE(DALLEConfig(transformer=ODD, positions="rope", text_features=7, text_head=False, grid=(3, 5)))


def _clip() -> nn.Module:
    return CLIP(clip_config(width=24, image_size=32, text_vocab=51, text_length=8, embed_dim=256))


def _tuned() -> nn.Module:
    model = DALLE(SMALL)
    add_lora(model, LoRAConfig(rank=3))
    return model


MADE: dict[str, Callable[[], nn.Module]] = {
    "dalle": lambda: DALLE(SMALL),
    "features": _features,
    "clip": _clip,
    "lora": _tuned,
}


def _same(make: Callable[[], nn.Module], whole: nn.Module, world: int, after: torch.Tensor | None = None) -> None:
    parts: dict[str, list[torch.Tensor]] = {}
    for rank in range(world):
        torch.manual_seed(3)
        with sharded_init(rank, world, CPU) as cut:
            model = make()
        for name, parameter in model.named_parameters():
            assert parameter.is_meta
            parts.setdefault(name, []).append(cut[parameter])
        assert after is None or torch.equal(torch.rand(4), after)
        for name, buffer in whole.named_buffers():
            assert torch.equal(model.get_buffer(name), buffer), name
    assert list(parts) == [name for name, _ in whole.named_parameters()]
    for name, parameter in whole.named_parameters():
        assert model.get_parameter(name).requires_grad == parameter.requires_grad
        if parameter.ndim:
            assert torch.equal(torch.cat(parts[name]), parameter), name
            assert [len(part) for part in parts[name]][:1] == [-(-len(parameter) // world)]
        else:
            assert all(torch.equal(part, parameter) for part in parts[name])


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("world", [2, 5])
def test_shards_equal_slices_of_the_full_initialization(kind: str, world: int) -> None:
    if kind == "lora":
        pytest.importorskip("peft", reason='pip install "dalle[lora]"')
    torch.manual_seed(3)
    whole = MADE[kind]()
    _same(MADE[kind], whole, world, after=torch.rand(4))


def test_shards_equal_slices_of_loaded_weights(tmp_path: Path) -> None:
    whole, file = _features(), tmp_path / "model.safetensors"
    nn.init.normal_(whole.get_buffer("text_embedding.null"))
    write_tensors(whole.state_dict(), file)

    def make() -> nn.Module:
        with skip_init():
            model = _features()
        return load_weights(model, open_tensors(file), str(file))

    _same(make, whole, 3)


def test_modules_initialize_normally_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), sharded_init(0, 2, CPU):
        raise ZeroDivisionError
    assert nn.init.normal_.__module__ == "torch.nn.init" and not nn.Linear(2, 2).weight.is_meta
