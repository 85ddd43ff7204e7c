"""3x3 convolutions by compiled code against torch's in float64: values and gradients, also at the edges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels import switches
from dalle.kernels.conv import Conv3x3
from dalle.kernels.native import bindings
from dalle.kernels.native.winograd import conv3x3, image_layout

pytestmark = pytest.mark.skipif(not bindings.functions(), reason="no compiler")
LAST = torch.channels_last
SHAPES = [(4, 32, 64, 13, 18), (70, 32, 32, 3, 1), (1, 96, 32, 32, 33), (4, 64, 160, 16, 16)]  # B, K, N, H, W


def some(b: int, k: int, n: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(b, k, h, w), torch.randn(n, k, 3, 3) / (9 * k) ** 0.5, torch.randn(n)
    x = x.to(memory_format=LAST)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_equal_torchs(shape: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    given = some(*shape, dtype=dtype)
    exact = [t.detach().double().requires_grad_() for t in given]
    wanted = F.conv2d(exact[0], exact[1], exact[2] if biased else None, padding=1)
    found = conv3x3(given[0], given[1], given[2] if biased else None)
    assert found is not None and found.dtype == dtype and found.is_contiguous(memory_format=LAST)
    # Rounded once where a number is written in bfloat16
    near = 3e-5 if dtype == torch.float32 else 2**-8
    assert (found - wanted).abs().max() <= near * wanted.abs().max()
    gradient = torch.randn_like(found)
    found.backward(gradient)
    wanted.backward(gradient.double())
    for ours, theirs in zip(given, exact):
        if theirs.grad is None:
            assert ours.grad is None
            continue
        assert ours.grad is not None and ours.grad.dtype == ours.dtype
        assert (ours.grad - theirs.grad).abs().max() <= near * theirs.grad.abs().max()


def test_error_is_about_that_of_torch() -> None:
    x, weight, bias = some(1, 128, 128, 32, 32)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    ours, theirs = conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1)
    assert ours is not None
    assert (ours - exact).square().mean().sqrt() < 3 * (theirs - exact).square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_threads_or_batch(dtype: torch.dtype) -> None:
    x, weight, bias = some(12, 64, 32, 14, 14, dtype=dtype)
    gradient = torch.randn(12, 32, 14, 14).to(dtype)

    def numbers() -> tuple[Tensor, ...]:
        made = conv3x3(x, weight, bias)
        assert made is not None
        return made, *torch.autograd.grad(made, (x, weight, bias), gradient)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = numbers()
        torch.set_num_threads(3)
        three = numbers()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one[:3], three[:3]))
    few = conv3x3(x[4:9].detach().contiguous(memory_format=LAST), weight, bias)
    assert few is not None and torch.equal(few, one[0][4:9])


def test_only_required_gradients_are_computed() -> None:
    x, weight, bias = some(4, 32, 32, 16, 16)
    made = conv3x3(x, weight.detach(), bias.detach())
    assert made is not None
    made.sum().backward()
    assert x.grad is not None and weight.grad is None and bias.grad is None


def test_kernel_is_not_rounded_under_autocast() -> None:
    x, weight, bias = some(4, 32, 32, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv3x3(x, weight, bias)
    assert found is not None and found.dtype == torch.bfloat16
    exact = F.conv2d(x.bfloat16().double(), weight.double(), bias.double(), padding=1)
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-7, atol=1e-5)
    found.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_unsupported_inputs_are_left_to_torch() -> None:
    x, weight, bias = (t.detach() for t in some(2, 32, 32, 16, 16))
    assert conv3x3(x, weight, bias) is not None
    assert conv3x3(x.contiguous(), weight, bias) is None  # not channels_last
    assert conv3x3(x[:, :, :4, :4].contiguous(memory_format=LAST), weight, bias) is None  # few cells
    assert conv3x3(x.double(), weight.double(), bias.double()) is None
    assert conv3x3(x, weight[:8], bias[:8]) is None
    assert conv3x3(x, weight[:, :, :1, :1], bias) is None
    assert conv3x3(x, torch.randn(32, 64, 3, 3), bias) is None  # here and below torch says what is wrong
    assert conv3x3(x, weight, bias[:8]) is None
    assert conv3x3(x, weight.bfloat16(), bias) is None
    assert torch.func.vmap(lambda one: Conv3x3(32, 32)(one), randomness="same")(x[None]).shape == (1, *x.shape)
    with torch.autocast("cpu", torch.float16):
        assert conv3x3(x, weight, bias) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3(x.double(), weight, bias) is None
    with switches.force_backend(native="off"):
        assert conv3x3(x, weight, bias) is None


def test_convolution_ignores_default_dtype_and_device() -> None:
    x, weight, bias = some(2, 32, 64, 16, 16)
    wanted = conv3x3(x, weight, bias)
    assert wanted is not None
    gradients = torch.autograd.grad(wanted.sum(), (x, weight, bias))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = conv3x3(x, weight, bias)
            assert found is not None and torch.equal(found, wanted)
            assert all(map(torch.equal, torch.autograd.grad(found.sum(), (x, weight, bias)), gradients))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("before, width, side", [(32, 64, 16), (3, 32, 16), (32, 3, 16), (64, 32, 2)])
def test_module_is_a_torch_convolution(before: int, width: int, side: int) -> None:
    torch.manual_seed(0)
    ours = Conv3x3(before, width)
    torch.manual_seed(0)
    theirs = nn.Conv2d(before, width, 3, padding=1)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    x = torch.randn(2, before, side, side)
    torch.testing.assert_close(ours(image_layout(x)), theirs(x), rtol=1e-4, atol=1e-5)
