"""What makes training fast and must not change it: precision, compiled blocks, z-loss, waiting for data."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import dalle
import train
from dalle.config import from_dict
from dalle.models.dalle import DALLE
from dalle.training.recipe import DALLERecipe, RunConfig
from dalle.training.run import compiling, precision
from dalle.training.run.compiling import compile_blocks
from dalle.training.run.malloc import keep_freed_memory
from dalle.training.run.precision import fast_precision, resolve_precision
from support.tiny_configs import dalle_config
from support.tiny_model import DALLE_MODEL


def recipe_of(parts: Path, folder: Path, **run: object) -> dict:
    return {
        "stage": "dalle",
        "model": DALLE_MODEL,
        "data": {"kind": "shapes"},
        "optim": {"lr": 1e-3, "warmup": 2},
        "run": {"dir": str(folder), "steps": 3, "batch_size": 4, "device": "cpu", "tracker": "none", "log_every": 1}
        | run,
        "text_tokenizer": str(parts / "text_tokenizer"),
        "image_tokenizer": str(parts / "image_tokenizer"),
    }


def trained(folder: Path, recipe: dict, *overrides: str) -> list[dict]:
    """The lines that a run logs of its steps."""
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    assert train.main([str(file), *overrides]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/dalle_loss" in line]


def test_automatic_precision_is_resolved_recorded_and_reused(
    tiny_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_parts, tmp_path / "run")
    monkeypatch.setattr(precision, "fast_precision", lambda run: "bf16")
    trained(tmp_path / "run", recipe)
    for name in ("config.yaml", "origin.yaml"):
        content = yaml.safe_load((tmp_path / "run" / name).read_text())
        assert content.get("run", content)["precision"] == "bf16"
    monkeypatch.setattr(precision, "fast_precision", lambda run: "fp32")  # another machine
    again = from_dict(DALLERecipe, recipe | {"resume": True}, "test")
    assert resolve_precision(again).run.precision == "bf16"
    assert resolve_precision(replace(again, resume=False)).run.precision == "fp32"
    for damaged in ("", "run: 3", "run: {precision: 5}", ": :"):
        (tmp_path / "run/config.yaml").write_text(damaged)
        assert resolve_precision(again).run.precision == "fp32"
    told = replace(again, run=replace(again.run, precision="fp32"))
    assert resolve_precision(told).run.precision == "fp32"


def test_fast_precision_is_what_the_device_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig(dir=tmp_path, steps=1, batch_size=1)
    for gpu, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, gpu=gpu: gpu)
        assert fast_precision(run) == wanted
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    flags = {name.strip(): told.split() for name, _, told in lines}
    fast = {"avx512_bf16", "amx_bf16"} & set(flags.get("flags", []))
    assert fast_precision(replace(run, device="cpu")) == ("bf16" if fast else "fp32")


def test_z_loss_is_trained_and_logged_separately(tiny_parts: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_parts, tmp_path / "without", precision="fp32")
    plain = trained(tmp_path / "without", recipe)[0]
    recipe = recipe_of(tiny_parts, tmp_path / "with", precision="fp32") | {"z_weight": 0.5}
    weighted = trained(tmp_path / "with", recipe)[0]
    assert "train/image_z" not in plain
    for name in ("text", "image"):  # cross-entropy, whatever is added to it
        assert weighted[f"train/{name}"] == pytest.approx(plain[f"train/{name}"], rel=1e-5)
    added = 0.5 * (weighted["train/text_z"] / 8 + weighted["train/image_z"] * 7 / 8)
    assert weighted["train/dalle_loss"] == pytest.approx(plain["train/dalle_loss"] + added, rel=1e-5)
    assert weighted["train/dalle_gradient"] != pytest.approx(plain["train/dalle_gradient"], rel=1e-3)


def test_waiting_for_data_is_logged(tiny_parts: Path, tmp_path: Path) -> None:
    for line in trained(tmp_path / "run", recipe_of(tiny_parts, tmp_path / "run")):
        assert 0 <= line["train/data_wait"] <= 1


def test_without_a_compiler_training_runs_uncompiled(
    tiny_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compiling._missing(torch.device("cpu")) == "no C++ compiler was found (g++, clang++, or the one in CXX)"
    trained(tmp_path / "run", recipe_of(tiny_parts, tmp_path / "run", steps=1, compile=True))
    out = capsys.readouterr()
    assert (
        "run.compile: no C++ compiler was found (g++, clang++, or the one in CXX); training without compilation"
        in out.out + out.err
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_training_equals_eager(tiny_parts: Path, tmp_path: Path) -> None:
    """Losses, drawn images and names of weights: the folder that comes out loads as any other."""
    lines = {}
    for name, compiled in (("plain", False), ("compiled", True)):
        recipe = recipe_of(tiny_parts, tmp_path / name, precision="fp32", compile=compiled)
        recipe |= {"prompts": ["a red circle"]}
        lines[name] = [line["train/dalle_loss"] for line in trained(tmp_path / name, recipe)]
    assert lines["compiled"] == pytest.approx(lines["plain"], rel=1e-4)
    plain, compiled_ = (dalle.load_model(tmp_path / name / "model").state_dict() for name in lines)
    torch.testing.assert_close(compiled_, plain, atol=1e-3, rtol=1e-3)


def test_policy_optimization_draws_uncompiled(
    tiny_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token that is drawn has another shape, and its weights may be packed: only the training pass is compiled."""
    shapes = set()

    def blocks(model: DALLE, device: torch.device) -> None:
        def compiled(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
            shapes.update(tuple(value.shape) for value in inputs if value.ndim == 3)
            return graph

        for block in model.transformer.blocks:
            block.compile(backend=compiled)

    monkeypatch.setattr("dalle.training.state.compile_blocks", blocks)
    recipe = recipe_of(tiny_parts, tmp_path / "run", precision="fp32", compile=True, steps=1)
    recipe |= {"grpo": {"candidates": 3, "text": 0, "image": 0, "supervised": 0}}
    trained(tmp_path / "run", recipe)
    length = DALLE_MODEL["text_length"] + math.prod(DALLE_MODEL["grid"]) - 1
    assert shapes == {(4 * 3, length, DALLE_MODEL["transformer"]["width"])}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_blocks_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = DALLE(dalle_config(width=32, depth=3, text_vocab=50, text_length=6, image_vocab=32, grid=(4, 4)))
    text, codes = torch.randint(1, 50, (2, 6)), torch.randint(0, 32, (2, 16))
    names = list(model.state_dict())
    found = []
    for compiled in (False, True):
        if compiled:
            assert compile_blocks(model, torch.device("cpu")) is None
            assert list(model.state_dict()) == names
        model.zero_grad()
        losses = model.losses(text, codes)
        (losses["text"] + losses["image"]).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def test_keep_freed_memory_needs_mallopt() -> None:
    assert keep_freed_memory() == hasattr(__import__("ctypes").CDLL(None), "mallopt")
