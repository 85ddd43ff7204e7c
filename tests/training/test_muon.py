"""Muon beside torch's own, which knows neither fused projections nor steps that are skipped on the device."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from dalle.models.transformer import Transformer
from dalle.training.muon import orthogonalize
from dalle.training.optim import OptimConfig, build_optimizer, clipped_step, gradient_norm, update_ratio
from support.tiny_configs import transformer_config

OPTIM = OptimConfig(kind="muon", lr=1e-2, weight_decay=0.3)


class Model(nn.Module):
    """An embedding and a head, which AdamW trains, around blocks with fewer keys than queries.

    Without biases: the gradient of that of the keys is rounding error alone, which AdamW makes as large as any.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 16)
        self.blocks = Transformer(transformer_config(width=16, depth=2, heads=4, kv_heads=2, biases="none"))
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(ids), "causal"))


def backward(model: nn.Module, seed: int) -> None:
    model.zero_grad()
    ids = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(seed))
    (100 * model(ids).square().mean()).backward()


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_orthogonalized_matrices_have_the_same_singular_vectors_and_values_near_1(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.mT @ orthogonalize(matrix * 1e-3) @ v.mT  # diagonal if the vectors are the same; scale does not matter
    values = rotated.diagonal()
    assert values.min() > 0.5 and values.max() < 1.3  # [0.7, 1.2] in exact arithmetic, for values that are not tiny
    torch.testing.assert_close(rotated - values.diag(), torch.zeros_like(rotated), atol=0.05, rtol=0)


def test_steps_are_those_of_torchs_muon_on_each_matrix_and_of_adamw_elsewhere() -> None:
    model = Model()
    twin = copy.deepcopy(model)
    optimizer = build_optimizer(model, OPTIM)
    matrices, rest = {}, []
    for name, weight in twin.named_parameters():
        if name.endswith("qkv.weight"):
            matrices[name] = [nn.Parameter(part.clone()) for part in weight.detach().split((16, 8, 8))]
        elif name.startswith("blocks.blocks") and weight.ndim == 2:
            matrices[name] = [weight]
        else:
            rest.append(weight)
    parts = [part for pieces in matrices.values() for part in pieces]
    muon = torch.optim.Muon(parts, lr=1e-2, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    plain = [g | {"params": [p for p in rest if (p.ndim >= 2 and p.shape != (7, 16)) == (i == 0)], "weight_decay": w}
             for i, (g, w) in enumerate([({}, 0.3), ({}, 0.0)])]  # fmt: skip
    adamw = torch.optim.AdamW(plain, lr=1e-2, betas=OPTIM.betas, eps=OPTIM.eps)
    for seed in range(4):
        backward(model, seed)
        optimizer.step()
        backward(twin, seed)
        for name, pieces in matrices.items():
            if len(pieces) == 3:
                gradient = twin.get_parameter(name).grad
                assert gradient is not None
                for piece, part in zip(pieces, gradient.split((16, 8, 8)), strict=True):
                    piece.grad = part
        muon.step()
        adamw.step()
        with torch.no_grad():
            for name, pieces in matrices.items():
                twin.get_parameter(name).copy_(torch.cat([piece.detach() for piece in pieces]))
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight, twin.get_parameter(name), atol=2e-5, rtol=1e-4, msg=name)


def test_the_update_ratio_is_that_of_all_weights() -> None:
    model = Model()
    optimizer = build_optimizer(model, OPTIM)
    for seed in range(3):
        before = nn.utils.parameters_to_vector(model.parameters()).clone()
        backward(model, seed)
        optimizer.step()
        after = nn.utils.parameters_to_vector(model.parameters())
        assert update_ratio(optimizer) == pytest.approx(((after - before).norm() / after.norm()).item(), rel=1e-3)


def test_nonfinite_step_is_skipped_and_a_large_one_clipped() -> None:
    finished = []
    for unwanted in ((), (0, 2)):
        model = Model()
        optimizer = build_optimizer(model, OPTIM)
        for seed in range(4):
            backward(model, seed)
            if seed in unwanted:
                for weight in model.parameters():
                    assert weight.grad is not None
                    weight.grad.fill_(math.nan)
                clipped_step(optimizer, gradient_norm(model.parameters()), 0.1)
                backward(model, seed)
            clipped_step(optimizer, gradient_norm(model.parameters()), 0.1)
        finished.append(model)
    for name, weight in finished[0].named_parameters():
        assert torch.equal(weight, finished[1].get_parameter(name)), name
        assert weight.isfinite().all()


def test_training_goes_on_from_a_saved_state() -> None:
    model = Model()
    optimizer = build_optimizer(model, OPTIM)
    for seed in range(2):
        backward(model, seed)
        optimizer.step()
    again = copy.deepcopy(model)
    other = build_optimizer(again, OPTIM)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for twin, steps in ((model, optimizer), (again, other)):
        for seed in (2, 3):
            backward(twin, seed)
            steps.step()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name


def test_a_module_without_transformer_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.kind is muon.*Linear has none: use adamw"):
        build_optimizer(nn.Linear(3, 3), OPTIM)
