"""Steps that nobody waits for: skipped on the device, told late, and no number is read meanwhile."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import train
from dalle.device import AsyncRead, to_device
from dalle.kernels import ids
from dalle.training.optim import EMA, OptimConfig, build_optimizer, clipped_step, gradient_norm
from dalle.training.run.log import RunLog
from dalle.training.skipped_steps import SkippedStepMonitor
from dalle.training.tasks.base import Phase
from dalle.training.tasks.dalle import DALLETask
from dalle.training.train_step import optimizer_step
from support.tiny_model import DALLE_MODEL

NAN, INF = float("nan"), float("inf")
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select}
"""Operators whose result, or its shape, the host needs: on a GPU it waits for all that was asked before."""


class Tripwire(TorchDispatchMode):
    """Raises where a number is read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in READS, f"the host waits in {func}"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing in train.py or dalle reads a number but `AsyncRead`; nothing is copied but by `to_device`."""
    with monkeypatch.context() as patch, Tripwire():
        patch.setattr(ids, "_has_values", lambda _: False)  # as on a GPU, where ids are not looked at
        for name in ("tolist", "numpy", "cpu"):
            patch.setattr(Tensor, name, _guarded(name, getattr(Tensor, name)))
        yield


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        caller = Path(sys._getframe(1).f_code.co_filename)
        assert caller.name == "device.py" or not caller.is_relative_to(Path(train.__file__).parent / "dalle"), name
        return method(self, *args, **kwargs)

    return call


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_host_sync_between_log_points(
    precision: str, tiny_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 to 4 of 5, whole: from the batch's tensors to the averaged weights; 1 and 5 are logged."""
    step_of, inputs_of = RunLog.step, DALLETask.inputs
    wire: dict[str, Any] = {"parts": 0}

    def begin(self: DALLETask, batch: Any) -> Any:
        wire["parts"] += 1
        made = inputs_of(self, batch)  # captions are read by the host, from the host
        if wire["parts"] in (4, 6, 8):  # two a step
            wire["open"] = no_reading(monkeypatch)
            wire["open"].__enter__()
        return made

    def end(self: RunLog) -> None:
        if wire.get("open") is not None:
            wire.pop("open").__exit__(None, None, None)
            wire["guarded"] = wire.get("guarded", 0) + 1
        step_of(self)

    monkeypatch.setattr(DALLETask, "inputs", begin)
    monkeypatch.setattr(RunLog, "step", end)
    run = {"dir": str(tmp_path / "run"), "steps": 5, "batch_size": 4, "device": "cpu", "tracker": "none"}
    recipe = {
        "stage": "dalle",
        "model": DALLE_MODEL,
        "data": {"kind": "shapes"},
        "optim": {"lr": 1e-3, "warmup": 2, "ema": 0.9},
        "caption_dropout": 0.5,
        "run": run | {"log_every": 5, "precision": precision, "accumulation": 2},
        "text_tokenizer": str(tiny_parts / "text_tokenizer"),
        "image_tokenizer": str(tiny_parts / "image_tokenizer"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    assert train.main([str(tmp_path / "recipe.yaml")]) == 0
    assert wire["guarded"] == 3


def test_host_sync_tripwire_detects_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    number = torch.ones(())
    for read in (Tensor.item, bool, float, lambda x: x.nonzero(), lambda x: x[x > 0]):
        with no_reading(monkeypatch), pytest.raises(AssertionError, match="waits"):
            read(number)


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    return module, build_optimizer(module, OptimConfig(lr=1e-2, weight_decay=0.3))


def backward(module: nn.Module, seed: int) -> None:
    module(torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))).square().mean().backward()


@pytest.mark.parametrize("fused", [True, False])
def test_a_nonfinite_step_leaves_weights_and_state_unchanged(fused: bool) -> None:
    """With and without it, bit for bit: also when it comes first, before there are moments."""
    found = []
    for unwanted in ((), (0, 2, 3)):
        module, optimizer = small()
        for group in optimizer.param_groups:
            group["fused"] = fused
        optimizer.defaults["fused"] = fused
        for number in range(5):
            backward(module, number)
            if number in unwanted:
                for parameter in module.parameters():
                    assert parameter.grad is not None
                    parameter.grad.fill_(NAN)
            elif unwanted == () and number in (0, 2, 3):
                optimizer.zero_grad()
                continue
            clipped_step(optimizer, gradient_norm(module.parameters()), 0.1)
            optimizer.zero_grad()
        found.append([*module.parameters(), *(v for s in optimizer.state_dict()["state"].values() for v in s.values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(found[0]) == 4 * 6


@pytest.mark.parametrize("largest", [0.05, 1e6, None])
@pytest.mark.parametrize("fused", [True, False])
def test_gradient_clipping_equals_torchs(fused: bool, largest: float | None) -> None:
    (module, optimizer), (other, plain) = small(), small()
    optimizer.defaults["fused"] = fused
    for number in range(3):
        backward(module, number)
        backward(other, number)
        norm = gradient_norm(module.parameters())
        wanted = nn.utils.clip_grad_norm_(other.parameters(), INF if largest is None else largest)
        torch.testing.assert_close(norm, wanted, rtol=1e-6, atol=0.0)
        # Once gradients were clipped the weights may differ by a last bit, as below, and so may the next norm
        assert norm == wanted or (number and largest == 0.05)
        clipped_step(optimizer, norm, largest)
        plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
    for value, wanted in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)
        assert largest == 0.05 or torch.equal(value, wanted)


def test_ema_is_unchanged_by_a_skipped_step() -> None:
    module, _ = small()
    average, plain = EMA(module, 0.9), EMA(module, 0.9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in average.state.items()}
    average.update(3, torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in average.state.items())
    average.update(3, torch.tensor(True))
    plain.update(3)
    assert all(torch.equal(value, plain.state[name]) for name, value in average.state.items())
    assert not torch.equal(average.state["0.weight"], before["0.weight"])


def test_fp16_overflow_lowers_the_loss_scale_and_skips_the_step() -> None:
    """The loss scaler as on a GPU; the step that follows is the one that would have been without the overflow."""
    module, torch_optimizer = small()
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    optimizer = accelerator.prepare(torch_optimizer)
    phase = Phase("one", module, OptimConfig(lr=1e-2, weight_decay=0.3, warmup=0, clip_norm=1.0))
    twin = copy.deepcopy(module)
    scales = []
    for number, bad in enumerate((False, True, False, False)):
        before = copy.deepcopy(module.state_dict())
        loss = module(torch.full((8, 5), 0.1 * (number + 1))).square().mean()
        accelerator.backward(loss * (INF if bad else 1))
        norm = optimizer_step(phase, loss, optimizer, accelerator, number, 10)
        assert bool(norm.isfinite()) is not bad
        same = all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert same is bad
        scales.append(accelerator.scaler.get_scale())
    assert scales == [1024, 512, 512, 1024]
    plain = build_optimizer(twin, phase.optim)
    alone = cast("Any", SimpleNamespace(scaler=None, num_processes=1))
    for number in (0, 2, 3):
        loss = twin(torch.full((8, 5), 0.1 * (number + 1))).square().mean()
        loss.backward()
        wrapped = cast(
            "Any", SimpleNamespace(optimizer=plain, param_groups=plain.param_groups, zero_grad=plain.zero_grad)
        )
        optimizer_step(Phase("one", twin, phase.optim), loss, wrapped, alone, number, 10)
    for value, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-7)


def test_skipped_steps_are_reported_one_step_late(tmp_path: Path) -> None:
    told: list[tuple[int, str, int]] = []
    log = cast("RunLog", SimpleNamespace(skipped=lambda *what: told.append(what)))
    outcomes = SkippedStepMonitor(log, 3, tmp_path)
    good, bad = torch.tensor(1.0), torch.tensor(NAN)
    outcomes.add(1, {"generator": good, "discriminator": good})
    outcomes.add(2, {"generator": good, "discriminator": bad})
    assert outcomes.flush(1) and not told
    assert not outcomes.flush(2) and told == [(2, "discriminator", 1)]
    outcomes.add(3, {"generator": torch.tensor(INF)})
    assert not outcomes.flush(2) and len(told) == 1
    outcomes.add(4, {"generator": good})
    assert outcomes.flush(4) and told[1:] == [(3, "generator", 2)]
    for step in (5, 6, 7):
        outcomes.add(step, {"generator": bad})
    with pytest.raises(ValueError, match="3 steps in a row were not finite"):
        outcomes.flush(7)
    assert told[2:] == [(5, "generator", 1), (6, "generator", 2), (7, "generator", 3)]


def test_async_read_returns_the_values() -> None:
    assert AsyncRead(torch.tensor([1.5, 2.0])).read() == [1.5, 2.0]
    tensor = torch.arange(3)
    assert to_device(torch.device("cpu"), tensor) is tensor
