"""Plans: operations against torch's own counter, choices against trying all, the 12-billion recipe, wrong inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dalle.__main__ import main
from dalle.cli.parser import parse_size
from dalle.kernels.masks import mask
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig
from dalle.training.planning.memory import memory
from dalle.training.planning.plan import Cluster, fits, operations, plan, report
from dalle.training.planning.setup import ModelSize, TrainSetup
from dalle.training.recipe import DALLERecipe, load_recipe

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "configs/paper/dalle-12b.yaml"
A100 = Cluster(devices=64, memory=80e9, spare=0.1, peak=312e12, utilization=0.4)


def paper(*overrides: str) -> DALLERecipe:
    recipe = load_recipe(PAPER, overrides)
    assert isinstance(recipe, DALLERecipe)
    return recipe


@pytest.mark.parametrize("feed_forward", ["gelu", "geglu"])
@pytest.mark.parametrize("kind", ["full", "row"])
def test_operations_equal_torchs_flop_counter(kind: str, feed_forward: str) -> None:
    shape = TransformerConfig(width=48, depth=3, heads=3, feed_forward=feed_forward)  # type: ignore[arg-type]
    config = DALLEConfig(
        transformer=shape, text_vocab=100, text_length=7, image_vocab=90, grid=(5, 6), attention=(kind,)
    )  # type: ignore[arg-type]
    text, codes = torch.ones(1, 7, dtype=torch.int64), torch.zeros(1, 30, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = DALLE(config).losses(text, codes)
        (losses["text"] + losses["image"]).backward()
    tokens, pairs = 36, int(mask(kind, 7, 5, 6)[:36, :36].sum())  # type: ignore[arg-type]
    dense = 3 * 4 * 48 * 3 * tokens**2  # torch counts all pairs
    expected = counter.get_total_flops() - dense + 3 * 4 * 48 * 3 * pairs
    assert operations(ModelSize.of(config), False) == expected
    heads = 3 * 2 * 48 * (30 * 90 + 6 * 107)
    assert operations(ModelSize.of(config), True) == pytest.approx((expected - heads) * 4 / 3 + heads)


def test_twelve_billion_fit_64_devices() -> None:
    recipe = paper()
    found = plan(recipe, A100)
    assert found.size.parameters == 12_293_849_088
    assert found.best is not None and found.best.setup.layout == "fsdp" and found.devices_needed == 64
    assert found.best.memory.peak <= 0.9 * 80e9
    assert [(c.setup.layout, c.setup.checkpointing, fits(c, A100)) for c in found.choices] == [
        ("ddp", False, False),
        ("ddp", True, False),
        ("fsdp", False, True),
        ("fsdp", True, True),
    ]
    for choice in found.choices:  # the largest micro-batch that fits, or the smallest where none does
        own = [replace(choice.setup, images=n, accumulation=16 // n) for n in (1, 2, 4, 8, 16)]
        peaks = {setup.images: memory(found.size, setup).peak for setup in own}
        fitting = [images for images, peak in peaks.items() if peak <= A100.usable]
        assert choice.setup.images == max(fitting) if fitting else choice.memory.peak == min(peaks.values())
    flops = operations(found.size, found.best.setup.checkpointing) * 1024
    assert found.best.seconds == pytest.approx(flops / (64 * 312e12 * 0.4))
    told = report(found, recipe)
    assert "Best: fsdp, micro-batches of 4 images: run.sharding=fsdp run.accumulation=4" in told and "60 days" in told


def test_suggested_changes_make_the_plan_fit() -> None:
    few = replace(A100, devices=4, memory=70e9)
    found = plan(paper(), few)
    assert found.best is None and found.devices_needed == 8
    assert plan(paper(), replace(few, devices=8)).best is not None
    told = report(found, paper())
    assert "Nothing fits: fsdp with checkpointing takes least, 65.2 GB" in told
    for way in ("devices of 72.4 GB or more", "8 devices (--gpus)", "optim.ema=null"):
        assert way in told
    assert plan(paper(), replace(few, memory=73.9e9)).best is not None
    assert plan(paper("optim.ema=null"), few).best is not None
    hopeless = plan(paper(), replace(A100, memory=2e9))
    assert hopeless.best is None and hopeless.devices_needed is None and "(--gpus)" not in report(hopeless, paper())


def test_one_device_is_not_sharded() -> None:
    found = plan(paper("run.batch_size=1"), replace(A100, devices=1, memory=1e12))
    assert [(c.setup.layout, c.setup.checkpointing) for c in found.choices] == [("ddp", False), ("ddp", True)]
    assert (
        found.best is not None and isinstance(found.best.setup, TrainSetup) and found.best.memory.allreduce_buffer == 0
    )


def test_quantities_are_parsed_with_units() -> None:
    assert [parse_size(text, "B", "memory") for text in ("80GB", "24GiB", "1.5 TB", "100")] == [
        80e9,
        24 * 2**30,
        1.5e12,
        100,
    ]
    assert [parse_size(text, "FLOPS", "peak") for text in ("312TFLOPS", "312T", "9.89e2TFLOPS", "1P")] == [
        312e12,
        312e12,
        989e12,
        1e15,
    ]


WRONG = {
    "no number": (["--memory", "much"], "--memory is 'much': expected a number with a unit, 80GB"),
    "another unit": (["--peak", "312TB"], "--peak is '312TB': expected a number with a unit, 312TFLOPS"),
    "two points": (["--memory", "1.2.3GB"], "--memory is '1.2.3GB'"),
    "a batch that cannot be shared": (["--gpus", "7"], "not divisible by 7 devices"),
    "no devices": (["--gpus", "0"], "gpus is 0; it must be at least 1"),
    "more than all": (["--utilization", "1.5"], "utilization is 1.5; it must be above 0 and at most 1"),
    "nothing left": (["--spare", "1"], "spare is 1.0; it must be at least 0 and below 1"),
    "no layer for lora": (
        ["lora.targets=[gate]", "optim.ema=null"],
        "no layer has a name of lora.targets: this model's",
    ),
    "another stage": (["stage=clip"], "dalle plan: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_give_a_one_line_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, told = WRONG[name]
    assert main(["plan", str(PAPER), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and all(line.startswith("dalle plan: ") for line in error.splitlines())


def test_plan_command_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(PAPER), "--gpus", "64", "--memory", "80GB"]) == 0
    assert capsys.readouterr().out == report(plan(paper(), A100), paper()) + "\n"
    assert main(["plan", str(PAPER), "run.steps=1", "--gpus", "64", "optim.ema=null"]) == 0  # options anywhere
    changed = paper("run.steps=1", "optim.ema=null")
    assert capsys.readouterr().out == report(plan(changed, A100), changed) + "\n"
    with pytest.raises(SystemExit):
        main(["plan", str(PAPER), "--gpu-count", "3"])
    assert "unrecognized arguments: --gpu-count 3" in capsys.readouterr().err
