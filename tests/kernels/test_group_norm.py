"""GroupNorm by compiled code against torch's: values and gradients, with swish and without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dalle.kernels import switches
from dalle.kernels.native import bindings
from dalle.kernels.native.group_norm import group_norm

pytestmark = pytest.mark.skipif(not bindings.functions(), reason="no compiler")
LAST = torch.channels_last


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("shape, groups", [((2, 32, 5, 7), 32), ((3, 64, 16, 9), 32), ((1, 48, 1, 1), 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("far", [0.0, 50.0])  # a mean that is large beside the deviation
def test_values_and_gradients_equal_torchs(
    shape: tuple[int, ...], groups: int, swish: bool, dtype: torch.dtype, far: float
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) + far).to(dtype).to(memory_format=LAST).requires_grad_()
    weight, bias = (torch.randn(shape[1]) + 1).requires_grad_(), torch.randn(shape[1]).requires_grad_()
    gradient = torch.randn(shape).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    wanted = F.group_norm(exact[0], groups, exact[1], exact[2], 1e-6)
    wanted = F.silu(wanted) if swish else wanted
    found = group_norm(x, weight, bias, groups, 1e-6, swish)
    assert found is not None and found.dtype == dtype and found.is_contiguous(memory_format=LAST)
    near = 2e-5 * (1 + far) if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), wanted, atol=near, rtol=near)
    found.backward(gradient)
    wanted.backward(gradient.double())
    for ours, theirs in zip((x, weight, bias), exact):
        scale = theirs.grad.abs().max().clamp(min=1)
        torch.testing.assert_close(ours.grad.double() / scale, theirs.grad / scale, atol=near, rtol=near)


def test_unsupported_inputs_are_left_to_torch() -> None:
    weight = torch.ones(32)
    images = torch.randn(2, 32, 4, 4)
    assert group_norm(images, weight, weight, 32, 1e-6, False) is None  # not channels_last
    assert group_norm(images.to(memory_format=LAST).double(), weight, weight, 32, 1e-6, False) is None
    few = torch.randn(2, 8, 4, 4).to(memory_format=LAST)
    assert group_norm(few, weight[:8], weight[:8], 8, 1e-6, False) is None
    with switches.force_backend(native="off"):
        assert group_norm(images.to(memory_format=LAST), weight, weight, 32, 1e-6, False) is None
