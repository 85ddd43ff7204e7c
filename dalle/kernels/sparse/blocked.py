"""Block-sparse attention on a CPU: fused attention over text keys and over blocks of image keys, then merged.

The result equals `dalle.kernels.attention.attend` with the dense mask. Only queries, keys, values and the result are
saved for the backward pass.

Shapes: B batch, H heads, T queries, S keys, D head width, P text tokens, G blocks of Q queries and K keys each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dalle.kernels.pattern import AttentionBlocks, Pattern, attention_blocks

# What scaled_dot_product_attention calls on a CPU; these also return and take the log-sum-exp of each query's scores
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Attention of the last T of S tokens.

    Args:
        q: [B, H, T, D]; either T is S (text and image), or all are image tokens.
        k: [B, H, S, D].
        v: [B, H, S, D].
        pattern: with P < S.

    Returns:
        [B, H, T, D].
    """
    end = k.shape[2]
    start = end - q.shape[2]
    assert pattern.text < end and (start == 0 or start >= pattern.text)
    return _Attend.apply(q, k, v, attention_blocks(pattern, start, end, q.dtype, q.device), pattern.text)


class _Attend(torch.autograd.Function):
    """Softmax over text and image keys as two softmaxes, weighted by their denominators.

    With o1, o2 the two results and l1, l2 their log-sum-exps, the whole is o1 exp(l1 - l) + o2 exp(l2 - l) with
    l = log(exp(l1) + exp(l2)). Its gradient is that of each part, given the common l and result (as in ring attention,
    Liu et al. 2023, arXiv 2310.01889), so each part is one call of fused attention's own backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, at: AttentionBlocks, text: int) -> Tensor:
        begin = _first_image_query(q, k, text)
        # Image queries to image keys, with one batch entry per head and one "head" per block
        image, image_lse = _forward(
            _gather(q[:, :, begin:], at.queries, at), _gather(k[:, :, text:], at.keys, at),
            _gather(v[:, :, text:], at.keys, at), attn_mask=at.bias,
        )  # fmt: skip
        # Back in order: results [B, H, T', D] and log-sum-exps [B, H, T', 1] of the image queries
        image, image_lse = _ungather(image, q, at), _ungather(image_lse[..., None], q, at)
        if text:
            # All queries to the text keys: causal for text queries, everything for image queries. The kernel's causal
            # mask aligns the first query with the first key, so one call does both.
            mixed, text_lse = _forward(q, k[:, :, :text], v[:, :, :text], is_causal=begin > 0)
            text_lse = text_lse[..., None]  # [B, H, T, 1]
            lse = torch.logaddexp(text_lse[:, :, begin:], image_lse)  # [B, H, T', 1]
            image = image * (image_lse - lse).exp() + mixed[:, :, begin:] * (text_lse[:, :, begin:] - lse).exp()
            mixed, lse = (torch.cat((old[:, :, :begin], new), 2) for old, new in ((mixed, image), (text_lse, lse)))
        else:
            mixed, lse = image, image_lse
        mixed = mixed.to(q.dtype)
        ctx.save_for_backward(q, k, v, mixed, lse)
        ctx.at, ctx.text = at, text
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, lse = ctx.saved_tensors
        at, text, begin = ctx.at, ctx.text, _first_image_query(q, k, ctx.text)
        gradient = gradient.contiguous()
        # Given the common result and log-sum-exp, the kernel recomputes each part's share of the attention weights
        parts = [_gather(x[:, :, begin:], at.queries, at) for x in (gradient, mixed, lse)]
        q_grad, k_grad, v_grad = _backward(
            parts[0], _gather(q[:, :, begin:], at.queries, at), _gather(k[:, :, text:], at.keys, at),
            _gather(v[:, :, text:], at.keys, at), parts[1], parts[2][..., 0], 0.0, False, attn_mask=at.bias,
        )  # fmt: skip
        q_grad = _ungather(q_grad, q, at)
        k_grad, v_grad = (_scatter_add(x, k, text, at) for x in (k_grad, v_grad))
        if not text:
            return q_grad, k_grad, v_grad, None, None
        text_grads = _backward(
            gradient, q, k[:, :, :text], v[:, :, :text], mixed, lse[..., 0].contiguous(), 0.0, begin > 0
        )
        # Text queries see text only; image queries get a part of their gradient from either side
        q_grad = torch.cat((text_grads[0][:, :, :begin], text_grads[0][:, :, begin:] + q_grad), 2)
        return q_grad, torch.cat((text_grads[1], k_grad), 2), torch.cat((text_grads[2], v_grad), 2), None, None


def _first_image_query(q: Tensor, k: Tensor, text: int) -> int:
    return text if q.shape[2] == k.shape[2] else 0


def _gather(x: Tensor, index: Tensor, at: AttentionBlocks) -> Tensor:
    """[B, H, ., D] to blocks [B * H, G, ., D]."""
    return x.index_select(2, index).flatten(0, 1).unflatten(1, (at.bias.shape[1], -1))


def _ungather(x: Tensor, q: Tensor, at: AttentionBlocks) -> Tensor:
    """Blocks of queries [B * H, G, Q, .] to [B, H, T, .]."""
    return x.flatten(1, 2).index_select(1, at.slots).unflatten(0, q.shape[:2])


def _scatter_add(x: Tensor, k: Tensor, text: int, at: AttentionBlocks) -> Tensor:
    """Sum blocks of key gradients [B * H, G, K, D] over the blocks that share a key: [B, H, S - P, D]."""
    total = x.new_zeros(len(x), k.shape[2] - text, k.shape[3])
    return total.index_add_(1, at.keys, x.flatten(1, 2)).unflatten(0, k.shape[:2])
