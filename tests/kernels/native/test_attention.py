"""Attention within whole sequences by compiled code against torch's in float64: values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.kernels import attention, switches
from dalle.kernels.native import attention as sequence

NEEDED = pytest.mark.skipif(
    not sequence.usable(torch.zeros(1, 1, 1, 32).bfloat16()), reason="no compiler, or no products of bfloat16"
)


def exact(qkv: Tensor, mask: Tensor | None, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """What attention gives in float64, and the gradient of qkv [B, T, 3, H, D]."""
    own = qkv.detach().double().requires_grad_()
    q, k, v = own.permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out.backward(gradient.double())
    assert own.grad is not None
    return out.detach(), own.grad


def off(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@NEEDED
@pytest.mark.parametrize("kind", ["causal", "all", "table"])
@pytest.mark.parametrize(
    "tokens, channels, threads", [(1, 32, 1), (33, 64, 2), (66, 96, 1), (131, 64, 2), (320, 128, 1)]
)
def test_values_and_gradients_equal_torchs(tokens: int, channels: int, threads: int, kind: str) -> None:
    """Nearer to the exact ones than torch's own steps in bfloat16, whose scores are rounded."""
    torch.manual_seed(0)
    qkv = (2 * torch.randn(2, tokens, 3, 3, channels)).bfloat16().requires_grad_()
    gradient = torch.randn(2, 3, tokens, channels).bfloat16()
    mask: Tensor | None = None
    if kind == "causal":
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    elif kind == "table":
        mask = (torch.rand(tokens, tokens) < 0.3) | torch.eye(tokens, dtype=torch.bool)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = sequence.attend_sequences(
            qkv.permute(2, 0, 3, 1, 4), mask if kind == "table" else None, kind == "causal"
        )
        found.backward(gradient)
    finally:
        torch.set_num_threads(before)
    own, qkv.grad = qkv.grad, None
    with switches.force_backend(native="off"):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        plain = attention.attend(q, k, v, mask)
        plain.backward(gradient)
    values, gradients = exact(qkv, mask, gradient)
    assert own is not None and qkv.grad is not None
    assert off(found, values) <= min(5e-3, 1.01 * off(plain, values) + 1e-9)
    assert off(own, gradients) <= min(8e-3, 1.1 * off(qkv.grad, gradients) + 1e-9)


@NEEDED
def test_native_attention_in_training_but_not_in_decoding() -> None:
    q, k, v = torch.randn(3, 2, 2, 40, 32).bfloat16().requires_grad_()
    packed = attention.attend_packed(torch.stack((q, k, v)), "causal")
    apart = attention.attend(q, k, v, "causal")
    assert torch.equal(packed, apart)
    assert "Attend" in type(packed.grad_fn).__name__ or "Attend" in str(packed.grad_fn)
    with switches.force_backend(native="off"):
        plain = attention.attend(q, k, v, "causal")
    assert not torch.equal(packed, plain)
    with torch.no_grad():
        assert torch.equal(attention.attend_packed(torch.stack((q, k, v)), "causal"), plain)


@NEEDED
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_inputs_propagate(value: float) -> None:
    """A step with it must be skipped, so it has to reach the loss."""
    for part in range(3):
        qkv = torch.randn(3, 1, 2, 20, 32).bfloat16()
        qkv[part, 0, 1, 7, 3] = value
        out = sequence.attend_sequences(qkv.requires_grad_(), None, True)
        assert not out.isfinite().all()
        out.sum().backward()
        assert qkv.grad is not None and not qkv.grad.isfinite().all()


def test_unsupported_inputs_are_left_to_torch() -> None:
    fitting = torch.zeros(1, 2, 4, 32).bfloat16()
    for other in (fitting.float(), fitting[..., :24], fitting.transpose(-1, -2), fitting[:, :, :0]):
        assert not sequence.usable(other)
    with switches.force_backend(native="off"):
        assert not sequence.usable(fitting)
