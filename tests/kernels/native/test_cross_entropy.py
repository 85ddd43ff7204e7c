"""Cross-entropy and its gradient in the place of logits, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dalle.kernels import switches
from dalle.kernels.native import bindings
from dalle.kernels.native.cross_entropy import cross_entropy_grad_

pytestmark = pytest.mark.skipif(not bindings.functions(), reason="no compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, codes, weight", [(1, 32, 0.0), (37, 1024, 0.0), (130, 96, 0.3)])
def test_values_and_gradients_equal_torchs(dtype: torch.dtype, rows: int, codes: int, weight: float) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(rows, codes)).to(dtype)
    ids = torch.randint(0, codes, (rows,))
    exact = logits.double().requires_grad_()
    nats, log_z = F.cross_entropy(exact, ids, reduction="none"), exact.logsumexp(-1)
    (nats + weight * log_z.square()).sum().backward()
    of_bias = torch.ones(codes)
    found = cross_entropy_grad_(logits, ids, weight, of_bias)
    assert found is not None and exact.grad is not None
    torch.testing.assert_close(found[0].double(), nats.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1].double(), log_z.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_bias.double(), 1 + exact.grad.sum(0), atol=1e-5, rtol=1e-4)
    near = 1e-6 if dtype == torch.float32 else 1e-3
    torch.testing.assert_close(logits.double(), exact.grad, atol=near, rtol=max(near, 1e-2 * (near == 1e-3)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_logits_propagate(value: float) -> None:
    logits = torch.randn(3, 64)
    logits[1, 40] = value
    found = cross_entropy_grad_(logits, torch.tensor([1, 2, 3]), 0.0, None)
    assert found is not None and found[0].isfinite().tolist() == [True, False, True]
    assert logits.isfinite().all(1).tolist() == [True, False, True]


def test_unsupported_inputs_are_left_to_torch() -> None:
    ids = torch.tensor([0, 1])
    for other in (torch.ones(2, 33), torch.ones(2, 32).double(), torch.ones(32, 2).t(), torch.ones(0, 32)):
        assert cross_entropy_grad_(other, ids[: len(other)], 0.0, None) is None
    with switches.force_backend(native="off"):
        assert cross_entropy_grad_(torch.ones(2, 32), ids, 0.0, None) is None
