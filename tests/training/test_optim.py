"""Schedules, parameter groups and weight averaging."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from dalle.config import ConfigError
from dalle.image_tokenizers.vq import VectorQuantizer, VQConfig
from dalle.training.optim import EMA, CosineSchedule, OptimConfig, build_optimizer, learning_rate, update_ratio
from dalle.training.recipe import CLIPRecipe, DALLERecipe, ImageTokenizerRecipe, load_recipe, tokens_per_image

ROOT = Path(__file__).parents[2]


def test_ramp_is_half_a_cosine() -> None:
    schedule = CosineSchedule(first=1.0, last=1 / 16, steps=100)
    assert schedule.at(0) == 1.0
    assert schedule.at(50) == pytest.approx((1 + 1 / 16) / 2)
    assert schedule.at(100) == schedule.at(10_000) == 1 / 16
    assert schedule.at(25) == pytest.approx(1 / 16 + 15 / 16 * (1 + math.cos(math.pi / 4)) / 2)
    assert CosineSchedule(first=0.0, last=2.0, steps=0).at(0) == 2.0


def test_learning_rate_warms_up_and_decays() -> None:
    optim = OptimConfig(lr=1.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(optim, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) == pytest.approx(rates[10])
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)


def test_update_ratio_is_the_norm_of_the_change_over_the_norm_of_the_weights() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    optimizer = build_optimizer(module, OptimConfig(lr=3e-2, weight_decay=0.4))
    assert update_ratio(optimizer) == 0.0  # no step was taken
    for _ in range(5):
        before = nn.utils.parameters_to_vector(module.parameters()).clone()
        module(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = nn.utils.parameters_to_vector(module.parameters())
        assert update_ratio(optimizer) == pytest.approx(((after - before).norm() / after.norm()).item(), rel=1e-4)


def trained(optimizer: torch.optim.Optimizer, module: nn.Module, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        module(torch.randn(8, 65)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["for-loop", "foreach"])
def test_fused_adamw_equals_torchs_other_kernels(kind: str) -> None:
    """From the start, and going on from a state that another kernel left (as runs begun earlier have)."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(65, 33), nn.LayerNorm(33), nn.Linear(33, 1))
    ours, going_on = copy.deepcopy(first), copy.deepcopy(first)
    optim = OptimConfig(lr=3e-2, weight_decay=0.4)
    optimizer = build_optimizer(ours, optim)
    assert all(group["fused"] for group in optimizer.param_groups)
    groups = [{k: v for k, v in g.items() if k != "fused"} for g in build_optimizer(first, optim).param_groups]
    plain = torch.optim.AdamW(groups, foreach=kind == "foreach")
    trained(plain, first, 0, 5)
    resumed = build_optimizer(going_on, optim)
    going_on.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert all(group["fused"] for group in resumed.param_groups)
    trained(plain, first, 5, 12)
    trained(optimizer, ours, 0, 12)
    trained(resumed, going_on, 5, 12)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(going_on.state_dict()[name], value, atol=2e-6, rtol=1e-5)


def test_a_restored_optimizer_has_the_options_of_its_recipe() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(65, 33), nn.Linear(33, 1))
    saved = build_optimizer(module, OptimConfig(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.4))
    trained(saved, module, 0, 2)
    resumed = build_optimizer(module, OptimConfig(betas=(0.7, 0.95), eps=1e-5, weight_decay=0.1))
    resumed.load_state_dict(saved.state_dict())
    decayed, rest = resumed.param_groups
    assert decayed["betas"] == (0.7, 0.95) and decayed["eps"] == 1e-5
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert all(torch.equal(resumed.state[p]["exp_avg"], saved.state[p]["exp_avg"]) for p in module.parameters())


def test_only_matrices_have_weight_decay() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(1, 1, 3))
    decayed, rest = build_optimizer(module, OptimConfig(weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3 and rest["weight_decay"] == 0.0
    assert {id(p) for p in decayed["params"]} == {id(module[1].weight), id(module[3].weight)}
    assert len(rest["params"]) == 5  # embedding, two biases, gain and bias of the norm


def test_learned_codebook_has_no_weight_decay() -> None:
    quantizer = VectorQuantizer(VQConfig(codebook_size=4, code_channels=2, update="gradient"))
    (rest,) = build_optimizer(quantizer, OptimConfig(weight_decay=0.3)).param_groups
    assert rest["weight_decay"] == 0.0 and [id(p) for p in rest["params"]] == [id(quantizer.codebook)]


def test_ema_equals_the_formula() -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3)
    average = EMA(module, decay=0.9)
    expected = copy.deepcopy(module.weight.data)
    for step in range(1, 200):
        with torch.no_grad():
            module.weight.normal_()
            module.running_mean.fill_(step)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.data
    torch.testing.assert_close(average.state["weight"], expected)
    assert average.state["running_mean"].tolist() == [199.0] * 3  # buffers are copied


def test_lengths_in_tokens_are_steps_of_a_batch() -> None:
    paper = ROOT / "configs/paper/dalle-12b.yaml"  # batches of 1,024, sequences of 256 + 1,024
    recipe = load_recipe(paper, ["run.tokens=1e9", "optim.warmup_tokens=1e8"])
    assert isinstance(recipe, DALLERecipe) and tokens_per_image(recipe) == 1280
    per_step = 1024 * 1280
    assert (recipe.run.steps - 1) * per_step < 1e9 <= recipe.run.steps * per_step
    assert (recipe.optim.warmup - 1) * per_step < 1e8 <= recipe.optim.warmup * per_step
    half = load_recipe(paper, ["run.tokens=1e9", "run.batch_size=512", "run.steps=3"])
    assert isinstance(half, DALLERecipe) and half.run.steps == -(-(10**9) // (512 * 1280))
    vqgan = load_recipe(ROOT / "tokenizers/emoji-vqgan/config.yaml", ["run.tokens=64e3", "run.batch_size=10"])
    assert isinstance(vqgan, ImageTokenizerRecipe) and vqgan.run.steps == 25  # 16 x 16 codes
    clip = load_recipe(ROOT / "configs/emoji/clip.yaml")
    assert isinstance(clip, CLIPRecipe) and tokens_per_image(clip) == clip.model.text_length + 64
    with pytest.raises(ConfigError, match="tokens is -1"):
        load_recipe(paper, ["run.tokens=-1"])
