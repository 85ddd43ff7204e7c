"""Plans of priors and diffusions: memory against real peaks, operations against hooks, choices, the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.__main__ import main
from dalle.config import from_dict
from dalle.kernels import switches
from dalle.training.planning import dry_run
from dalle.training.planning.dry_run import UnCLIPRecipe, step_cost
from dalle.training.planning.plan import Cluster
from dalle.training.planning.unclip import plan_unclip, report_unclip
from dalle.training.recipe import DiffusionRecipe, PriorRecipe
from support.memory_peaks import peak_of
from support.stage_recipes import RECIPES
from support.tiny_configs import clip_config

ROOT = Path(__file__).parents[3]
CLUSTER = Cluster(devices=1, memory=80e9, spare=0.1, peak=312e12, utilization=0.4)
# The other stages have the same parts
MORE = [("prior_ar", False), ("upsampler", False), ("prior", True), ("prior_ar", True), ("upsampler", True)]
CASES = [("prior", False), ("decoder", False), ("decoder", True)]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in MORE]


def recipe(stage: str, **model: Any) -> UnCLIPRecipe:
    """A recipe of the stage, its network wide enough that activations are more than what PyTorch needs anyway."""
    content = RECIPES[stage] | ({} if stage == "upsampler" else {"clip": "clip"})
    content["model"] = content["model"] | model
    content["run"] = content["run"] | {"dir": "run", "batch_size": 8}
    return from_dict(PriorRecipe if "prior" in stage else DiffusionRecipe, content, stage)


def network(own: UnCLIPRecipe, checkpointing: bool) -> nn.Module:
    torch.manual_seed(0)
    return dry_run._network(own, checkpointing).train()


@pytest.mark.parametrize("stage, checkpointing", CASES)
def test_memory_equals_the_peak_of_a_real_step(stage: str, checkpointing: bool, tmp_path: Path) -> None:
    own = recipe(stage)
    with switches.force_backend(native="off"):
        model = network(own, checkpointing)

        def step() -> None:
            dry_run._loss(own, model, 8).backward()

        step()
        model.zero_grad()
        measured = peak_of(step, tmp_path)
    found = step_cost(own, None, 8, 1, checkpointing)
    # Convolutions have buffers of their own, which weigh more where little else is kept
    assert found.peak == pytest.approx(measured, rel=0.25 if checkpointing else 0.15)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.state == found.parameters * 4 * 4  # weights, moments, EMA
    twice = step_cost(own, None, 8, 2, checkpointing)
    assert found.peak <= twice.peak <= found.peak + found.parameters * 4  # with the gradients of the first


@pytest.mark.parametrize("stage", ["decoder", "prior", pytest.param("upsampler", marks=pytest.mark.slow)])
def test_operations_equal_those_of_all_products(stage: str) -> None:
    """Hooks count convolutions and linear maps, and the attention between tokens is added."""
    own, counted = recipe(stage), 0
    model = network(own, False)

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        # The backward pass has as much for the weights, and again for the input where that has a gradient
        counted += 2 * output.numel() * module.weight[0].numel() * (2 + inputs[0].requires_grad)

    def attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        nonlocal counted
        counted += 3 * 4 * q.numel() * k.shape[2]
        return q.clone()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with pytest.MonkeyPatch.context() as patch, switches.force_backend(native="off"):
        patch.setattr("dalle.models.unet.attend", attention)
        patch.setattr("dalle.models.transformer.attend_packed", lambda qkv, *rest: attention(*qkv))
        dry_run._loss(own, model, 2)
    found = step_cost(own, None, 2, 1, False).operations
    assert found == pytest.approx(counted / 2, rel=0.01)
    assert step_cost(own, None, 2, 1, True).operations > found
    if stage != "upsampler":
        assert step_cost(own, clip_config(embed_dim=16, text_length=16), 2, 1, False).operations > found


def test_smaller_micro_batches_and_checkpointing_fit_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    own = recipe(
        "decoder", unet={"channels": 8, "channel_multipliers": [1], "attention_levels": [0], "head_channels": 8}
    )
    own = replace(own, run=replace(own.run, batch_size=4))
    known: dict[tuple[Any, ...], dry_run.StepCost] = {}  # three plans ask for the same steps, and each takes a second

    def once(recipe: UnCLIPRecipe, *step: Any) -> dry_run.StepCost:
        if step not in known:
            known[step] = step_cost(recipe, *step)
        return known[step]

    monkeypatch.setattr("dalle.training.planning.unclip.step_cost", once)
    whole = plan_unclip(own, CLUSTER)
    assert whole.best is not None and (whole.best.images, whole.best.accumulation) == (4, 1)
    assert not whole.best.checkpointing and whole.clip_missing is not None
    halved = replace(CLUSTER, memory=(whole.best.memory - 1) / 0.9)
    found = plan_unclip(own, halved)
    assert found.best is not None and found.best.memory <= halved.usable
    assert found.choices[0].images < 4 and found.choices[0].accumulation == 4 // found.choices[0].images
    nothing = plan_unclip(own, replace(CLUSTER, memory=1000))
    assert nothing.best is None and [choice.images for choice in nothing.choices] == [1, 1]
    assert "Nothing fits: it would with devices of" in report_unclip(nothing, own, CLUSTER)


def test_plan_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs/emoji/unclip/upsampler.yaml")
    assert main(["plan", config, "run.batch_size=2", "--peak", "0.1TFLOPS", "--memory", "2GB"]) == 0
    told = capsys.readouterr().out
    assert "1,707,171 parameters" in told and "run.accumulation=1 model.unet.checkpoint_activations=false" in told
    assert main(["plan", config, "--gpus", "3"]) == 2
    assert "run.batch_size is 64, which is not divisible by 3 devices" in capsys.readouterr().err
    assert main(["plan", str(ROOT / "configs/emoji/clip.yaml")]) == 2
    assert "only stages dalle, prior and diffusion can be planned" in capsys.readouterr().err
