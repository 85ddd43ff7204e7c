"""The vector quantizer against slow loops and the formulas of its averages."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.image_tokenizers import vq
from dalle.image_tokenizers.vq import VectorQuantizer, VQConfig


def quantizer(**options: object) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(VQConfig(**({"codebook_size": 12, "code_channels": 4, "revive_after": 0} | options)))


def cells(batch: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 4, 3, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nearest_code_equals_a_slow_loop(distance: str) -> None:
    model = quantizer(distance=distance)
    if distance == "euclidean":
        model.codebook.copy_(torch.randn(12, 4))
    z = cells(3)
    codes = model.encode(z)
    for b in range(3):
        for y in range(3):
            for x in range(2):
                cell, rows = z[b, :, y, x], model.codebook
                if distance == "cosine":
                    cell, rows = cell / cell.norm(), rows / rows.norm(dim=1, keepdim=True)
                gaps = [float((cell - row).square().sum()) for row in rows]
                assert codes[b, y, x] == gaps.index(min(gaps))
                assert torch.allclose(model.lookup(codes)[b, :, y, x], rows[codes[b, y, x]])


def test_chunked_nearest_code_equals_unchunked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantizer()
    whole = model.encode(cells(3))
    monkeypatch.setattr(vq, "_MAX_DISTANCES", 12 * 5)
    assert torch.equal(model.encode(cells(3)), whole)


def test_distances_stay_in_float32_under_autocast() -> None:
    model = quantizer(codebook_size=500)
    z = cells(50)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(z), quantizer(codebook_size=500).encode(z))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_codebook_ema_equals_the_formula(distance: str) -> None:
    model = quantizer(distance=distance, decay=0.9)
    count, total = torch.ones(12), model.codebook.clone()
    for seed in (1, 2):
        z = cells(2, seed)
        codes = model(z, 1.0).codes.flatten()
        flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
        flat = F.normalize(flat, dim=1) if distance == "cosine" else flat
        model.on_step_end()
        for k in range(12):
            mine = flat[codes == k]
            count[k] = 0.9 * count[k] + 0.1 * len(mine)
            total[k] = 0.9 * total[k] + 0.1 * mine.sum(0)
            row = total[k] / count[k]
            row = row / row.norm() if distance == "cosine" else row
            assert torch.allclose(model.codebook[k], row, atol=1e-6)


def test_losses_and_codebook_gradients_equal_the_formulas() -> None:
    model = quantizer(update="gradient", distance="euclidean", commitment=0.25)
    z = cells(2).requires_grad_()
    made = model(z, 1.0)
    rows = model.codebook.detach()[made.codes].permute(0, 3, 1, 2)
    assert torch.allclose(made.losses["codebook"], 1.25 * (z - rows).square().mean())
    made.losses["codebook"].backward()
    assert torch.allclose(z.grad, 0.25 * 2 * (z - rows).detach() / z.numel())
    expected = torch.zeros(12, 4)
    for row, code in zip((rows - z).detach().permute(0, 2, 3, 1).reshape(-1, 4), made.codes.flatten(), strict=True):
        expected[code] += 2 * row / z.numel()
    assert torch.allclose(model.codebook.grad, expected, atol=1e-7)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_straight_through_gradient_is_the_identity(update: str) -> None:
    model = quantizer(update=update, distance="euclidean")
    z = cells(2).requires_grad_()
    made = model(z, 1.0)
    assert torch.allclose(made.latents, model.lookup(made.codes), atol=1e-6)
    weights = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((made.latents * weights).sum(), z)
    assert torch.equal(gradient, weights)


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_two_micro_batches_equal_one_batch(update: str, distance: str) -> None:
    one = quantizer(update=update, distance=distance, revive_after=2, codebook_size=30)
    two = copy.deepcopy(one)
    for seed in range(5):
        z = cells(8, seed)
        one(z, 1.0)
        two(z[:4], 1.0)
        two(z[4:], 1.0)
        one.on_step_end()
        two.on_step_end()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value)


def test_two_processes_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = quantizer(revive_after=2, codebook_size=30)
    ranks = [copy.deepcopy(one), copy.deepcopy(one)]
    rank, barrier, shared = threading.local(), threading.Barrier(2, timeout=20), [torch.empty(0), torch.empty(0)]
    monkeypatch.setattr(vq.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(vq.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(vq.dist, "get_rank", lambda: rank.number)

    def reduce(x: Tensor) -> Tensor:
        shared[rank.number] = x
        barrier.wait()
        total = shared[0] + shared[1]
        barrier.wait()
        return total

    def process(number: int) -> None:
        rank.number = number
        for seed in range(4):
            own = cells(8, seed)[4 * number : 4 * number + 4]  # in two accumulation steps
            for micro in own.split(2):
                ranks[number](micro, 1.0)
            ranks[number].on_step_end(reduce)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, range(2)))
    for seed in range(4):
        one(cells(8, seed), 1.0)
        one.on_step_end()
    assert int(one.age.max()) < 2  # codes were revived on the way
    for model in ranks:
        for name, value in one.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_dead_codes_are_reset_to_encoder_outputs(update: str) -> None:
    model = quantizer(update=update, distance="euclidean", revive_after=3, codebook_size=6)
    with torch.no_grad():
        model.codebook.copy_(torch.tensor([[0.0] * 4] + [[100.0 + k] * 4 for k in range(5)]))
        model.age.zero_()
    if update == "ema":
        model.ema_sum.copy_(model.codebook)
    far = model.codebook.detach().clone()
    for seed in range(3):
        assert torch.equal(model.codebook.detach()[1:], far[1:])
        z = cells(2, seed)
        model(z, 1.0)
        model.on_step_end()
    flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
    places = [(flat == row).all(1).nonzero().flatten().tolist() for row in model.codebook.detach()[1:]]
    assert all(len(place) == 1 for place in places)
    assert len({place[0] for place in places}) == 5
    assert model.age.tolist() == [0] * 6


def test_first_step_resets_unused_codes() -> None:
    model = quantizer(revive_after=50, distance="euclidean", codebook_size=16)
    model(cells(4), 1.0)
    model.on_step_end()
    assert len(model.encode(cells(4)).unique()) >= 12


def test_dead_codes_stay_with_resets_off() -> None:
    model = quantizer(codebook_size=100)
    before = model.codebook.clone()
    codes = model(cells(1), 1.0).codes
    model.on_step_end()
    unused = [k for k in range(100) if k not in codes]
    assert torch.equal(model.codebook[unused], before[unused])


def test_evaluation_and_discarded_passes_leave_no_trace() -> None:
    model = quantizer(revive_after=2)
    before = copy.deepcopy(model.state_dict())
    model.eval()(cells(2), 1.0)
    model.on_step_end()
    model.train()(cells(2), 1.0)
    model.reset_statistics()
    model.on_step_end()
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)


def test_resumed_quantizer_equals_uninterrupted() -> None:
    one = quantizer(revive_after=2, codebook_size=40)
    for seed in range(3):
        one(cells(2, seed), 1.0)
        one.on_step_end()
    two = quantizer(revive_after=2, codebook_size=40)
    two.load_state_dict(one.state_dict())
    torch.manual_seed(99)
    for model in (one, two):
        for seed in range(3, 6):
            model(cells(2, seed), 1.0)
            model.on_step_end()
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"codebook_size": 0}, {"revive_after": -1}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        VQConfig(**options)
