"""With dtype int8 each weight is rounded as soon as it is read: what is alive is counted, tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dalle
from dalle.checkpoints.folder_config import WEIGHTS
from dalle.checkpoints.model_folder import save
from dalle.checkpoints.tensors import write_tensors
from dalle.config import to_dict
from dalle.kernels.linear import Int8Linear, Linear, quantize
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig
from dalle.text_tokenizers import ClassTokenizer, ClassTokenizerConfig

CONFIG = DALLEConfig(
    transformer=TransformerConfig(width=256, depth=8, heads=4), text_vocab=8, text_length=4, image_vocab=32, grid=(2, 2)
)


class Living(TorchDispatchMode):
    """Counts the bytes of all storages that operators have written to and that are alive.

    Memory that `torch.empty` reserves is not touched, so it counts once something is written there. Mapped files do
    not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not is_view and "empty" not in str(func) and isinstance(made, Tensor):
            storage = made.untyped_storage()
            key = storage._cdata
            if key not in self.seen and not getattr(storage, "mapped", False):
                self.seen[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.drop, key)
        return made

    def drop(self, key: int) -> None:
        self.now -= self.seen.pop(key, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = DALLE(CONFIG)
    for name, value in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.normal_(value)
    config = {"stage": "dalle", "model": to_dict(CONFIG)}
    save(tmp_path / "model", config, model.state_dict(), storage="bfloat16")
    return tmp_path / "model"


def kept_bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


def test_the_peak_is_close_to_what_is_kept(folder: Path) -> None:
    def peak(load: Callable[[], DALLE]) -> tuple[int, DALLE]:
        with Living() as living:
            model = load()
        return living.peak, model

    most, model = peak(lambda: dalle.load_model(folder, dtype=torch.int8))
    kept = kept_bytes(model)
    assert not any(type(module) is Linear for module in model.modules())
    assert 0.9 * kept < most < 1.2 * kept

    def whole() -> DALLE:
        model = dalle.load_model(folder)
        quantize(model)
        return model

    assert peak(whole)[0] > 2 * kept  # what it would be if all were read first


def test_it_is_the_model_that_is_quantized_as_a_whole(folder: Path) -> None:
    whole, ours = dalle.load_model(folder), dalle.load_model(folder, dtype=torch.int8)
    quantize(whole)
    assert whole.state_dict().keys() == ours.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]) and value.dtype == ours.state_dict()[name].dtype, name
    text, codes = torch.ones(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(whole(text, codes), ours(text, codes))
    assert isinstance(ours.image_head, Int8Linear)


def test_a_pipeline_takes_it(folder: Path) -> None:
    model = dalle.load_model(folder, dtype=torch.int8)
    words = ClassTokenizer(ClassTokenizerConfig(classes=7))
    images = dalle.image_tokenizers.build(
        dalle.image_tokenizers.VQGANConfig(
            image_size=4, channels=32, channel_multipliers=[1, 1], latent_channels=8,
            quantizer=dalle.image_tokenizers.VQConfig(codebook_size=32),
        )
    )  # fmt: skip
    (result,) = dalle.TextToImage(model, words, images)("3", n=2)
    assert len(result.images) == 2


def test_nonfinite_weight_is_named(folder: Path) -> None:
    model = DALLE(CONFIG)
    with torch.no_grad():
        model.image_head.weight[0, 0] = float("nan")
    write_tensors(model.state_dict(), folder / WEIGHTS)
    with pytest.raises(ValueError, match="image_head.weight is nan or infinite"):
        dalle.load_model(folder, dtype=torch.int8)
