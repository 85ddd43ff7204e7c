"""An image tokenizer that goes on from another: the same codes, and a decoder trained for them, perhaps larger."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dalle
import train
from dalle.checkpoints.tensors import read_tensors
from dalle.config import from_dict
from dalle.image_tokenizers import VQGANConfig, build
from dalle.image_tokenizers.local_encoder import LocalEncoder, LocalEncoderConfig
from dalle.image_tokenizers.vqgan import VQGAN as VQGANModel
from dalle.training.init_image_tokenizer import enlarge_output, frozen_codes, load_initial_vqgan

VQGAN: dict[str, Any] = {
    "kind": "vqgan",
    "image_size": 16,
    "patch": 2,
    "channels": 8,
    "channel_multipliers": [1, 1],
    "attention_resolutions": [],
    "latent_channels": 8,
    "local_encoder": {"width": 16, "blocks": 1},
    "quantizer": {"kind": "vq", "codebook_size": 24, "code_channels": 4, "update": "ema", "revive_after": 2},
}
LARGER = VQGAN | {"image_size": 32, "patch": 4, "local_encoder": {"width": 16, "blocks": 1, "pool": 2}}
RUN = {"batch_size": 4, "device": "cpu", "tracker": "none", "report": False, "validation_images": 2, "log_every": 1}


def trained(folder: Path, name: str, model: dict[str, Any], steps: int, **options: Any) -> Path:
    """The model folder of a run of some steps on shapes of the model's size."""
    recipe = {
        "stage": "image_tokenizer",
        "model": model,
        "data": {"kind": "shapes", "size": model["image_size"]},
        "optim": {"lr": 1e-2, "warmup": 0, "ema": None},
        "run": RUN | {"dir": str(folder / name), "steps": steps},
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(recipe | options), encoding="utf-8")
    assert train.main([str(file)]) == 0
    return folder / name / "model"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a VQGAN that is trained for some steps."""
    return trained(tmp_path_factory.mktemp("runs"), "first", VQGAN, 4)


def test_enlarged_output_draws_squares() -> None:
    torch.manual_seed(0)
    conv, large = torch.nn.Conv2d(5, 3 * 2 * 2, 3, padding=1), torch.nn.Conv2d(5, 3 * 6 * 6, 3, padding=1)
    with torch.no_grad():
        large.weight.copy_(enlarge_output(conv.weight, 2, 6))
        large.bias.copy_(enlarge_output(conv.bias, 2, 6))
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(
        F.pixel_shuffle(large(x), 6), F.interpolate(F.pixel_shuffle(conv(x), 2), scale_factor=3.0)
    )


def test_pooled_encoder_sees_the_smaller_image() -> None:
    torch.manual_seed(0)
    config = LocalEncoderConfig(width=16, blocks=1, margin=1)
    encoder = LocalEncoder(config, factor=4, latent_channels=6)
    pooled = LocalEncoder(LocalEncoderConfig(width=16, blocks=1, margin=1, pool=2), factor=8, latent_channels=6)
    pooled.load_state_dict(encoder.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(pooled(images), encoder(F.avg_pool2d(images, 2)))


def test_locked_encoder_keeps_its_codes_and_the_decoder_learns_a_larger_image(first: Path, tmp_path: Path) -> None:
    small, large = dalle.load_image_tokenizer(first), build(from_dict(VQGANConfig, LARGER, "test"))
    assert isinstance(large, VQGANModel) and large.grid == small.grid == (4, 4) and large.image_size == 32
    load_initial_vqgan(large, str(first))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    codes = small.encode(F.avg_pool2d(images, 2))
    enlarged = F.interpolate(small.decode(codes), scale_factor=2.0)
    torch.testing.assert_close(large.eval().decode(codes), enlarged, atol=1e-5, rtol=1e-5)
    further = trained(tmp_path, "further", LARGER, 4, init_from=str(first), lock="encoder")
    assert torch.equal(dalle.load_image_tokenizer(further).encode(images), codes)
    before, after = (read_tensors(folder / "model.safetensors") for folder in (first, further))
    same = {
        name for name in after if before[name].shape == after[name].shape and torch.equal(before[name], after[name])
    }
    assert {name.partition(".")[0] for name in same} >= {"encoder", "quant_conv", "quantize"}
    assert not [name for name in set(after) - same if name.startswith(("encoder", "quant_conv", "quantize"))]
    assert "decoder.conv_in.weight" not in same and "post_quant_conv.weight" not in same
    losses = [json.loads(line).get("train/l1") for line in (further.parent / "metrics.jsonl").read_text().splitlines()]
    found = [loss for loss in losses if loss is not None]
    assert len(found) == 4 and found[-1] < found[0]


def test_codes_of_a_locked_encoder_have_no_dropout() -> None:
    torch.manual_seed(0)
    whole = {key: value for key, value in VQGAN.items() if key != "local_encoder"}
    model = build(from_dict(VQGANConfig, whole | {"dropout": 0.5}, "test"))
    assert isinstance(model, VQGANModel)
    images = torch.rand(4, 3, 16, 16)
    codes = model.eval().encode(images)
    assert torch.equal(frozen_codes(model.train(), images), codes)
    assert all(module.training for module in model.modules())  # the decoder drops on


def test_larger_decoder_begins_as_the_smaller_one(first: Path, tmp_path: Path) -> None:
    grown = VQGAN | {"blocks": 3, "attention_resolutions": [8, 4]}
    small, large = dalle.load_image_tokenizer(first), build(from_dict(VQGANConfig, grown, "test"))
    assert isinstance(large, VQGANModel)
    load_initial_vqgan(large, str(first))
    codes = torch.randint(0, 24, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(large.eval().decode(codes), small.decode(codes), atol=1e-6, rtol=1e-6)
    further = trained(tmp_path, "grown", grown, 2, init_from=str(first), lock="encoder")
    weights = read_tensors(further / "model.safetensors")
    added = [name for name in weights if name.endswith(("block.3.conv2.weight", "attn.0.proj_out.weight"))]
    assert len(added) == 4 and all(weights[name].any() for name in added)  # two levels of each, and all of them learn


WRONG = {
    "nothing to lock": ({"lock": "encoder"}, "lock freezes pretrained weights"),
    "another patch": (
        {"init_from": "FIRST", "model": VQGAN | {"patch": 1}},
        "patch 2, which patch 1 is no multiple of",
    ),
    "another width": ({"init_from": "FIRST", "model": VQGAN | {"channels": 16}}, "init_from: .*first/model"),
    "another stage": ({"init_from": "models/emoji/clip"}, "is of stage 'clip'; expected an image tokenizer"),
    "cells that pool cuts": ({"model": LARGER | {"local_encoder": {"pool": 3}}}, "local_encoder.pool is 3"),
    "a dVAE": ({"init_from": "FIRST", "model": {"kind": "dvae", "image_size": 16}}, "init_from is for a VQGAN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_starts_are_refused(name: str, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, told = WRONG[name]
    recipe = {
        "stage": "image_tokenizer",
        "model": VQGAN,
        "data": {"kind": "shapes", "size": 16},
        "optim": {},
        "run": RUN | {"dir": str(tmp_path / "run"), "steps": 1},
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(recipe | options).replace("FIRST", str(first)), encoding="utf-8")
    capsys.readouterr()
    assert train.main([str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(told, error), error
