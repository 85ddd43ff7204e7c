"""Linear maps in training: with packed weights they are what autocast makes of `nn.Linear`, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dalle import cpu, linear
from dalle.linear import Linear

ROWS = linear._TRAIN_FROM


def trained(made: Linear, states: Tensor, gradient: Tensor) -> list[Tensor | None]:
    """Output and gradients of a pass under autocast."""
    own = states.clone().requires_grad_()
    made.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = made(own)
    y.backward(gradient.to(y.dtype))
    return [y.detach(), own.grad, made.weight.grad, None if made.bias is None else made.bias.grad]


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 in oneDNN")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_training_is_autocasts(dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = Linear(48, 96, bias=bias)
    states, gradient = torch.randn(4, ROWS // 4, 48).to(dtype), torch.randn(4, ROWS // 4, 96)
    with torch.autocast("cpu", torch.bfloat16):
        assert made._packs_to_train(states)
    found = trained(made, states, gradient)
    with cpu.plain():
        wanted = trained(made, states, gradient)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other)


def test_only_training_in_bfloat16_packs() -> None:
    made, states = Linear(48, 96), torch.randn(ROWS, 48)
    assert not made._packs_to_train(states)
    with torch.autocast("cpu", torch.bfloat16):
        assert not made._packs_to_train(states[:-1])
        assert not Linear(96, 48)._packs_to_train(torch.randn(ROWS, 96))
        with torch.no_grad():
            assert not made._packs_to_train(states)
        with cpu.plain():
            assert not made._packs_to_train(states)
        made.requires_grad_(False)
        assert not made._packs_to_train(states)
