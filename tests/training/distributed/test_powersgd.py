"""Gradients of low rank: nothing is lost, only late; the state goes on; what is not finite leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dalle.training.distributed import powersgd
from dalle.training.distributed.powersgd import PowerSGD, PowerSGDConfig

SHAPES = ((24, 16), (10,), (8, 4, 3, 3))


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A group of one process, made once: what it tells itself is compressed as anything else."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _gradients(step: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=random) for shape in SHAPES]


def _told(told: PowerSGD, step: int) -> list[Tensor]:
    gradients = _gradients(step)
    told.mean(gradients)
    return gradients


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_error_feedback_sends_the_residual_later() -> None:
    told = PowerSGD(PowerSGDConfig(rank=2, start=2))
    given, sent = torch.zeros(24 * 16 + 10 + 288), torch.zeros(24 * 16 + 10 + 288)
    for step in range(6):
        given += _flat(_gradients(step))
        out = _told(told, step)
        sent += _flat(out)
        if step < 2:
            assert torch.equal(_flat(out), _flat(_gradients(step)))
        else:
            assert torch.linalg.matrix_rank(out[0]) == 2 and torch.equal(out[1], _gradients(step)[1])
    torch.testing.assert_close(sent + told.state()["error"], given, rtol=1e-4, atol=1e-5)
    # 24 x 16 and 8 x 36 numbers as two columns each of both sides, 10 as they are
    assert told.compression == pytest.approx((384 + 10 + 288) / (2 * (24 + 16) + 10 + 2 * (8 + 36)))


def test_saved_compressor_continues_the_same(tmp_path: Path) -> None:
    whole = {"dalle": PowerSGD(PowerSGDConfig(rank=2, start=2))}
    for step in range(4):
        _told(whole["dalle"], step)
    powersgd.write(tmp_path, whole, 0)
    again = {"dalle": PowerSGD(PowerSGDConfig(rank=2, start=2))}
    powersgd.read(tmp_path, again, 0, 1, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(_told(whole["dalle"], 4), _told(again["dalle"], 4)))
    # With another number of processes each gets the mean of the errors
    other = PowerSGD(PowerSGDConfig(rank=2, start=2))
    state = whole["dalle"].state()
    other.load([state, state | {"error": state["error"] + 2}], torch.device("cpu"))
    torch.testing.assert_close(other.state()["error"], state["error"] + 1)


def test_a_resumed_compressor_may_have_another_rank() -> None:
    before, after = PowerSGD(PowerSGDConfig(rank=2, start=2)), PowerSGD(PowerSGDConfig(rank=3, start=2))
    for step in range(4):
        _told(before, step)
    state = before.state()
    after.load([state], torch.device("cpu"))
    given = _flat(_gradients(4)) + state["error"]
    out = _told(after, 4)
    assert torch.linalg.matrix_rank(out[0]) == 3
    torch.testing.assert_close(_flat(out) + after.state()["error"], given, rtol=1e-4, atol=1e-5)


def test_nonfinite_gradients_leave_compressor_state_unchanged() -> None:
    told, other = (PowerSGD(PowerSGDConfig(rank=2, start=2)) for _ in range(2))
    for step in range(3):
        _told(told, step)
        _told(other, step)
    broken = _gradients(3)
    broken[1][4] = float("inf")
    told.mean(broken)
    assert all(gradient.isnan().all() for gradient in broken)
    assert all(torch.equal(a, b) for a, b in zip(_told(told, 4), _told(other, 4)))


def test_options_out_of_range_are_refused() -> None:
    for options in ({"rank": 0}, {"start": 1}):
        with pytest.raises(ValueError, match="is [01]; it must be at least [12]"):
            PowerSGDConfig(**options)
