"""Muon: steps of matrices are orthogonalized (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dalle.models.transformer import Attention, Transformer

MOMENTUM = 0.95
# Of the odd polynomial that Jordan et al. iterate: the steepest at 0 that keeps singular values in about [0.7, 1.2]
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """Move all singular values of a matrix near 1 by Newton-Schulz iterations in bfloat16.

    Args:
        matrix: [rows, columns], float.

    Returns:
        About U V^T of the singular value decomposition U S V^T, [rows, columns] in the dtype of the matrix.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]  # so that the Gram matrix is that of the shorter side
    x = (matrix if wide else matrix.mT).bfloat16()
    x = x / x.norm().clamp(min=1e-7)  # the iteration converges for singular values up to 1
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrix.dtype)


def sections_of_matrices(module: nn.Module) -> dict[int, tuple[int, ...]]:
    """Find the matrices that Muon trains: those of the transformer blocks in a module.

    Returns:
        `id` of each weight -> the rows of the matrices that it holds: a fused projection is that to the queries, to the
        keys and to the values, each a map of its own.
    """
    found: dict[int, tuple[int, ...]] = {}
    for transformer in (m for m in module.modules() if isinstance(m, Transformer)):
        for part in transformer.blocks.modules():
            if isinstance(part, nn.Linear):
                found.setdefault(id(part.weight), (part.weight.shape[0],))
            if isinstance(part, Attention):
                queries, keys = part.heads * part.head_width, part.kv_heads * part.head_width
                found[id(part.qkv.weight)] = (queries, keys, keys)
    return found


class Muon(torch.optim.AdamW):
    """Muon for groups with `sections`, one per weight; AdamW for all others, in one step.

    A step is scaled by 0.2 sqrt(longer side), so that its root mean square is about AdamW's and both take one learning
    rate and weight decay (Liu et al. 2025, arXiv 2502.16982, section 2.2). Momentum is Nesterov's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all groups. Like AdamW's fused kernel, reads `grad_scale` and `found_inf` if they are set."""
        groups = self.param_groups
        for group in groups:
            for weight, sections in zip(group["params"], group.get("sections", ()), strict=False):
                if weight.grad is not None:
                    self._step_matrices(weight, weight.grad, sections, group["lr"], group["weight_decay"])
        # AdamW steps the groups that it finds here
        self.param_groups = [group for group in groups if "sections" not in group]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _step_matrices(
        self, weight: Tensor, gradient: Tensor, sections: tuple[int, ...], rate: float, decay: float
    ) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)  # AdamW expects one where it loads a state
            state["momentum"] = torch.zeros_like(weight)
            state["moved"] = torch.zeros((), device=weight.device)  # norm of the last step, for `update_ratio`
        divisor, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        gradient = gradient if divisor is None else gradient / divisor
        momentum = state["momentum"].lerp(gradient, 1 - MOMENTUM)
        direction = gradient.lerp(momentum, MOMENTUM)
        step = torch.cat([orthogonalize(m) * (0.2 * max(m.shape) ** 0.5) for m in direction.split(sections)])
        step.add_(weight, alpha=decay).mul_(rate)
        if found_inf is not None:  # chosen on the device: the host does not wait to learn whether the step is taken
            skipped = found_inf.bool()
            momentum = torch.where(skipped, state["momentum"], momentum)
            step = torch.where(skipped, torch.zeros_like(step), step)
        state["step"] += 1 if found_inf is None else 1 - found_inf
        state["momentum"].copy_(momentum)
        state["moved"].copy_(step.norm())
        weight.sub_(step)
