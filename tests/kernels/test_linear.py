"""Linear maps in training, by other products: what torch, or autocast, makes of `nn.Linear`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dalle.kernels import matmul, switches
from dalle.kernels.linear import Linear

ROWS = matmul.MIN_ROWS


def trained(made: Linear, states: Tensor, gradient: Tensor, bf16: bool) -> list[Tensor | None]:
    """Output and gradients of a pass, under autocast or not."""
    own = states.clone().requires_grad_()
    made.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = made(own)
    y.backward(gradient.to(y.dtype))
    return [y.detach(), own.grad, made.weight.grad, None if made.bias is None else made.bias.grad]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(48, 96), (96, 48)])
@pytest.mark.parametrize("dtype, bf16", [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def test_training_values_and_gradients_equal_torchs(
    dtype: torch.dtype, bf16: bool, widths: tuple[int, int], bias: bool
) -> None:
    if bf16 and not matmul.usable(ROWS, 48, torch.bfloat16):
        pytest.skip("no bfloat16 in oneDNN, or AMX")
    torch.manual_seed(0)
    made = Linear(*widths, bias=bias)
    states, gradient = torch.randn(4, ROWS // 4, widths[0]).to(dtype), torch.randn(4, ROWS // 4, widths[1])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert made._training_dtype(states) == (torch.bfloat16 if bf16 else torch.float32)
    found = trained(made, states, gradient, bf16)
    with switches.force_backend(native="off"):
        wanted = trained(made, states, gradient, bf16)
    exact = states.double() @ made.weight.detach().double().t() + (0 if made.bias is None else made.bias.double())
    assert found[0] is not None and found[0].shape == gradient.shape
    torch.testing.assert_close(found[0].double(), exact, rtol=2e-2 if bf16 else 1e-4, atol=2e-2 if bf16 else 1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other)


def test_compute_dtype_of_training_matmuls() -> None:
    made, states = Linear(48, 96), torch.randn(ROWS, 48)
    assert made._training_dtype(states) == torch.float32
    assert made._training_dtype(states[:-1]) is None
    assert made._training_dtype(states.bfloat16()) is None  # torch says what is wrong, here and below
    assert made._training_dtype(torch.randn(ROWS, 96)) is None
    with torch.autocast("cpu", torch.float16):
        assert made._training_dtype(states) is None
    with torch.no_grad():
        assert made._training_dtype(states) is None
    with switches.force_backend(native="off"):
        assert made._training_dtype(states) is None
    made.requires_grad_(False)
    assert made._training_dtype(states) is None


@pytest.mark.parametrize("rows", [ROWS, ROWS - 1, ROWS + 7])
def test_forward_and_backward_equal_matrix_products(rows: int) -> None:
    torch.manual_seed(0)
    x, weight, gradient = torch.randn(rows, 40), torch.randn(24, 40), torch.randn(rows, 24)
    given = gradient.t().contiguous().t()  # in another layout
    torch.testing.assert_close(matmul.forward(x, weight), x @ weight.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(matmul.backward(given, x, weight), gradient @ weight, rtol=1e-4, atol=1e-4)
