"""The loss of a head in pieces against torch's own over all logits: values, gradients, hits, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.cross_entropy import mean_loss, token_scores
from dalle.kernels.linear import Int8Linear, Linear
from support.memory_peaks import peak_of

ROWS, WIDTH, CODES = 23, 12, 37


def made(bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = Linear(WIDTH, CODES, bias=bias).to(dtype)
    hidden = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, CODES, (ROWS,))
    targets[:4] = head(hidden)[:4].argmax(-1)  # some that are right
    return head, hidden, targets


def whole(head: nn.Module, hidden: Tensor, targets: Tensor, z_weight: float) -> tuple[Tensor, Tensor]:
    """The loss, and log² Z, from all logits at once."""
    logits = head(hidden).float()
    z = logits.exp().sum(-1).log().square().mean()
    return F.cross_entropy(logits, targets) + z_weight * z, z


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss, of))


@pytest.mark.parametrize("max_logits", [1, CODES, 5 * CODES + 3, 8 * CODES, 2**20])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_mean_loss_equals_the_unchunked_loss(max_logits: int, z_weight: float, bias: bool) -> None:
    head, hidden, targets = made(bias)
    of = (hidden, *head.parameters())
    expected, z = whole(head, hidden, targets, z_weight)
    found = mean_loss(head, hidden, targets, z_weight, accuracy=True, max_logits=max_logits)
    torch.testing.assert_close(found.loss, expected)
    right = int((head(hidden).argmax(-1) == targets).sum())
    assert found.accuracy is not None and found.accuracy.item() == pytest.approx(right / ROWS) and right >= 4
    assert mean_loss(head, hidden, targets, z_weight, max_logits=max_logits).accuracy is None
    torch.testing.assert_close(found.nats, F.cross_entropy(head(hidden), targets).detach())
    torch.testing.assert_close(found.z, z.detach())
    torch.testing.assert_close(gradients(found.loss, *of), gradients(expected, *of))
    with torch.no_grad():
        torch.testing.assert_close(
            mean_loss(head, hidden, targets, z_weight, accuracy=True, max_logits=max_logits), found
        )


@pytest.mark.parametrize("max_logits", [CODES, 5 * CODES + 3, 2**20])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize("form", ["bias", "no bias", "other"])
def test_label_smoothing_equals_torchs(max_logits: int, z_weight: float, form: str) -> None:
    plain, hidden, targets = made(form != "no bias")
    head = Doubled(plain) if form == "other" else plain
    of = (hidden, *head.parameters())
    logits = head(hidden)
    expected = F.cross_entropy(logits, targets, label_smoothing=0.2) + z_weight * logits.logsumexp(-1).square().mean()
    found = mean_loss(head, hidden, targets, z_weight, smoothing=0.2, max_logits=max_logits)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.nats, F.cross_entropy(logits, targets).detach())
    torch.testing.assert_close(gradients(found.loss, *of), gradients(expected, *of))
    with torch.no_grad():
        again = mean_loss(head, hidden, targets, z_weight, smoothing=0.2, max_logits=max_logits)
        torch.testing.assert_close(again.loss, expected)
        torch.testing.assert_close(again.nats, found.nats)


def test_native_label_smoothing_in_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    head, targets = Linear(64, 512), torch.randint(0, 512, (96,))
    hidden = torch.randn(96, 64, requires_grad=True)
    of = (hidden, head.weight, head.bias)
    expected = F.cross_entropy(head(hidden), targets, label_smoothing=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_loss(head, hidden, targets, smoothing=0.1).loss
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    for near, exact in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        assert (near - exact).norm() < 0.01 * exact.norm()


class Doubled(nn.Module):
    """A head of another form, as LoRA's are."""

    def __init__(self, head: Linear) -> None:
        super().__init__()
        self.head, self.weight = head, head.weight

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.head(x)


@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_subclassed_heads_are_called(z_weight: float) -> None:
    head, hidden, targets = made()
    other = Doubled(head)
    expected, _ = whole(other, hidden, targets, z_weight)
    found = mean_loss(other, hidden, targets, z_weight, max_logits=4 * CODES)
    torch.testing.assert_close(found.loss, expected)
    of = (hidden, *head.parameters())
    torch.testing.assert_close(gradients(found.loss, *of), gradients(expected, *of))


def test_frozen_head_passes_gradients_on() -> None:
    head, hidden, targets = made()
    expected, _ = whole(head, hidden, targets, 0.0)
    (wanted,) = gradients(expected, hidden)
    head.requires_grad_(False)
    loss = mean_loss(head, hidden, targets, max_logits=4 * CODES).loss
    (3 * loss).backward()
    torch.testing.assert_close(hidden.grad, wanted)
    assert head.weight.grad is None and head.bias.grad is None


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_token_scores_equal_torchs_for_each_row(kind: str) -> None:
    head, hidden, targets = made()
    used: nn.Module = Int8Linear(head) if kind == "int8" else head
    for max_logits in (1, 5 * CODES, 2**20):
        logits, scores = used(hidden), token_scores(used, hidden, targets, max_logits=max_logits)
        torch.testing.assert_close(scores.nats, F.cross_entropy(logits, targets, reduction="none"))
        torch.testing.assert_close(scores.lse, logits.logsumexp(-1))
        assert torch.equal(scores.argmax, logits.argmax(-1))
        assert torch.equal(scores.argmax[:4], targets[:4]) or kind == "int8"
        weights = torch.linspace(-1, 1, ROWS)  # each row has a gradient of its own
        found = gradients((weights * scores.nats).sum(), hidden)
        wanted = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
        torch.testing.assert_close(found, gradients(wanted, hidden))


@pytest.mark.parametrize("mode", ["autocast", "weights"])
def test_bfloat16_is_as_near_to_float32_as_torchs_own(mode: str) -> None:
    head, hidden, targets = made(dtype=torch.bfloat16 if mode == "weights" else torch.float32)
    of = (hidden, *head.parameters())
    exact_head, exact_hidden, _ = made()
    exact_of = (exact_hidden, *exact_head.parameters())
    exact, _ = whole(exact_head, exact_hidden, targets, 0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        plain, _ = whole(head, hidden, targets, 0.1)
        found = mean_loss(head, hidden, targets, 0.1, max_logits=6 * CODES).loss
    assert found.dtype == torch.float32
    assert abs(found - exact) <= abs(plain - exact) + 1e-3
    rows = zip(gradients(found, *of), gradients(plain, *of), gradients(exact, *exact_of))
    for ours, theirs, right in rows:
        assert ours.dtype == theirs.dtype
        assert (ours - right).norm() <= 1.3 * (theirs - right).norm() + 1e-3 * right.norm()


def test_float16_gradients_are_scaled_before_underflow() -> None:
    """A share of a row of a share of a code is below what float16 holds; the loss scale must reach it first."""
    head, hidden, targets = made(dtype=torch.float16)
    many = hidden.detach().repeat(400, 1).requires_grad_()
    loss = mean_loss(head, many, targets.repeat(400)).loss
    scaled = torch.autograd.grad(loss * 2**10, many)[0].float() / 2**10
    exact = many.detach().float().requires_grad_()
    wanted = torch.autograd.grad(mean_loss(head.float(), exact, targets.repeat(400)).loss, exact)[0]
    assert (scaled - wanted).norm() < 0.01 * wanted.norm()


def test_peak_memory_is_that_of_a_chunk(tmp_path: Path) -> None:
    rows, codes, max_logits = 512, 4096, 32 * 4096
    head, hidden = Linear(16, codes), torch.randn(rows, 16, requires_grad=True)
    targets = torch.randint(0, codes, (rows,))
    peak = peak_of(lambda: mean_loss(head, hidden, targets, max_logits=max_logits).loss.backward(), tmp_path)
    assert peak < 6 * 4 * max_logits < rows * codes * 4  # some pieces, a gradient of the head
    peak = peak_of(lambda: token_scores(head, hidden, targets, max_logits=max_logits).nats.sum().backward(), tmp_path)
    assert peak < 6 * 4 * max_logits
