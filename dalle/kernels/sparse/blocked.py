"""Sparse attention in blocks, on the CPU: text and image apart, each with fused attention, then put together.

What is computed is what `dalle.kernels.attention.attend` gives with the dense mask. Nothing but queries, keys, values
and the result is kept for the backward pass.

Letters: B batch, H heads, T queries, S keys, D head width, P text tokens, G blocks of Q queries and K keys each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dalle.kernels.pattern import Blocks, Pattern, blocks

# What scaled_dot_product_attention calls on a CPU; these also give and take the logarithm of the softmax's denominator
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Attention of the last T of S tokens.

    Args:
        q: [B, H, T, D]; T is S (text and image), or these are image tokens alone.
        k: [B, H, S, D].
        v: [B, H, S, D].
        pattern: with P < S.

    Returns:
        [B, H, T, D].
    """
    end = k.shape[2]
    start = end - q.shape[2]
    assert pattern.text < end and (start == 0 or start >= pattern.text)
    return _Attend.apply(q, k, v, blocks(pattern, start, end, q.dtype, q.device), pattern.text)


class _Attend(torch.autograd.Function):
    """The softmax over text and image is the two softmaxes, weighted by their denominators.

    Its gradient is that of each of the two with the common denominator and result (as in ring attention, Liu et al.
    2023, arXiv 2310.01889), so each is one call of fused attention's own backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, at: Blocks, text: int) -> Tensor:
        begin = _first(q, k, text)
        image, weight = _forward(
            _gather(q[:, :, begin:], at.queries, at), _gather(k[:, :, text:], at.keys, at),
            _gather(v[:, :, text:], at.keys, at), attn_mask=at.bias,
        )  # fmt: skip
        image, weight = _place(image, q, at), _place(weight[..., None], q, at)
        if text:
            mixed, of_text = _forward(q, k[:, :, :text], v[:, :, :text], is_causal=begin > 0)
            of_text = of_text[..., None]  # [B, H, T, 1]
            total = torch.logaddexp(of_text[:, :, begin:], weight)
            image = image * (weight - total).exp() + mixed[:, :, begin:] * (of_text[:, :, begin:] - total).exp()
            mixed, weight = (torch.cat((old[:, :, :begin], new), 2) for old, new in ((mixed, image), (of_text, total)))
        else:
            mixed = image
        mixed = mixed.to(q.dtype)
        ctx.save_for_backward(q, k, v, mixed, weight)
        ctx.at, ctx.text = at, text
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, weight = ctx.saved_tensors
        at, text, begin = ctx.at, ctx.text, _first(q, k, ctx.text)
        gradient = gradient.contiguous()
        parts = [_gather(x[:, :, begin:], at.queries, at) for x in (gradient, mixed, weight)]
        to_q, to_k, to_v = _backward(
            parts[0], _gather(q[:, :, begin:], at.queries, at), _gather(k[:, :, text:], at.keys, at),
            _gather(v[:, :, text:], at.keys, at), parts[1], parts[2][..., 0], 0.0, False, attn_mask=at.bias,
        )  # fmt: skip
        to_q = _place(to_q, q, at)
        to_k, to_v = (_scatter(x, k, text, at) for x in (to_k, to_v))
        if not text:
            return to_q, to_k, to_v, None, None
        of_text = _backward(
            gradient, q, k[:, :, :text], v[:, :, :text], mixed, weight[..., 0].contiguous(), 0.0, begin > 0
        )
        to_q = torch.cat((of_text[0][:, :, :begin], of_text[0][:, :, begin:] + to_q), 2)
        return to_q, torch.cat((of_text[1], to_k), 2), torch.cat((of_text[2], to_v), 2), None, None


def _first(q: Tensor, k: Tensor, text: int) -> int:
    """The first query that is of the image."""
    return text if q.shape[2] == k.shape[2] else 0


def _gather(x: Tensor, index: Tensor, at: Blocks) -> Tensor:
    """[B, H, ., D] to blocks [B * H, G, ., D]."""
    return x.index_select(2, index).flatten(0, 1).unflatten(1, (at.bias.shape[1], -1))


def _place(x: Tensor, q: Tensor, at: Blocks) -> Tensor:
    """Queries of blocks [B * H, G, Q, .] to [B, H, T, .]."""
    return x.flatten(1, 2).index_select(1, at.places).unflatten(0, q.shape[:2])


def _scatter(x: Tensor, k: Tensor, text: int, at: Blocks) -> Tensor:
    """The sums over keys of blocks [B * H, G, K, D]: [B, H, S - P, D]."""
    total = x.new_zeros(len(x), k.shape[2] - text, k.shape[3])
    return total.index_add_(1, at.keys, x.flatten(1, 2)).unflatten(0, k.shape[:2])
