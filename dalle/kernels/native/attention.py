"""Fused bfloat16 attention over whole sequences, forward and backward, for training; scores are never stored."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dalle.kernels.native import bindings
from dalle.kernels.native.build import library
from dalle.kernels.switches import allows_native

Mask = Tensor | Literal["causal"] | None

_MAX_TOKENS = 512  # for longer sequences PyTorch's attention is faster (docs/log.md)
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class _Sequences(ctypes.Structure):
    """`struct Sequences` of attention.h."""

    # Order and types as in C: ctypes cannot check them
    _fields_ = (
        *((name, _POINTER) for name in ("q", "k", "v")),
        ("strides", _NUMBER * 9),
        ("mask", _POINTER),
        *((name, _NUMBER) for name in ("causal", "batch", "heads", "tokens", "channels")),
        ("scale", ctypes.c_float),
        *((name, _POINTER) for name in ("out", "lse", "out_grad", "q_grad", "k_grad", "v_grad")),
        ("grad_stride", _NUMBER),
    )


@functools.cache
def _fast() -> bool:
    """Whether the CPU has bfloat16 dot products (AVX512-BF16) but no AMX, with which PyTorch's own are faster."""
    compiled = library()
    return compiled is not None and bool(compiled.has_bfloat16_dot()) and not torch.cpu._is_amx_tile_supported()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor | None:
    """`dalle.kernels.attention.attend` for whole sequences in training; None if PyTorch is faster or required."""
    if dropout or q.shape != k.shape or not _wanted(q, mask):
        return None
    # A str is "causal"
    return attend_sequences(torch.stack((q, k, v)), mask if isinstance(mask, Tensor) else None, isinstance(mask, str))


def attend_packed(qkv: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor | None:
    """`dalle.kernels.attention.attend_packed` likewise, without copying q, k and v."""
    if dropout or not _wanted(qkv, mask):
        return None
    return attend_sequences(qkv, mask if isinstance(mask, Tensor) else None, isinstance(mask, str))


def _wanted(x: Tensor, mask: Mask) -> bool:
    """Only in training: in sampling, results must be those of PyTorch's functions whatever the CPU."""
    short = x.shape[-2] <= _MAX_TOKENS and (not isinstance(mask, Tensor) or mask.ndim == 2)
    return short and torch.is_grad_enabled() and x.requires_grad and usable(x)


def usable(x: Tensor) -> bool:
    """Whether `attend_sequences` can take queries, keys or values [..., T, D] like these."""
    # Head widths are multiples of 32, as 16 x 16 words of two channels are transposed at a time
    return allows_native(x) and x.dtype == torch.bfloat16 and not x.shape[-1] % 32 and x.stride(-1) == 1 and _fast()


def attend_sequences(qkv: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention, with scores and weights in float32, where PyTorch rounds them to bfloat16.

    Args:
        qkv: [3, B, H, T, D] bfloat16: queries, keys and values of whole sequences, each of them `usable`.
        mask: bool [T, T], True = may attend, or None.
        causal: without a mask: whether each token sees only those up to itself.

    Returns:
        [B, H, T, D], stored as [B, T, H, D].

    Raises:
        ValueError: qkv is not `usable`, or the mask has another shape.
    """
    tokens = qkv.shape[-2]
    if qkv.ndim != 5 or len(qkv) != 3 or not all(usable(part) for part in qkv):
        raise ValueError(
            f"qkv is {list(qkv.shape)} {qkv.dtype}; native attention takes bfloat16 [3, B, H, T, D], D a multiple of 32"
        )
    if mask is not None and (mask.shape != (tokens, tokens) or mask.dtype != torch.bool or mask.device != qkv.device):
        raise ValueError(
            f"the mask is {list(mask.shape)} {mask.dtype} for {tokens} tokens; it must be bool [{tokens}, {tokens}]"
        )
    out: Tensor = _Attend.apply(qkv, mask, causal)
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        _, batch, heads, tokens, channels = qkv.shape
        out = qkv.new_empty(batch, tokens, heads, channels)
        # Saved, so that the backward pass can recompute the attention weights without another softmax
        lse = torch.empty(batch, heads, tokens, dtype=torch.float32, device="cpu")
        mask = None if mask is None else mask.contiguous()
        arguments = _arguments(qkv, mask, causal, out, lse)
        bindings.functions()["attention_forward"](ctypes.byref(arguments), torch.get_num_threads())
        ctx.save_for_backward(qkv, mask, out, lse)
        ctx.causal = causal
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        qkv, mask, out, lse = ctx.saved_tensors
        arguments = _arguments(qkv, mask, ctx.causal, out, lse)
        out_grad = gradient.to(out.dtype).transpose(1, 2).contiguous()
        batch, tokens, heads, channels = out.shape  # of [B, T, H, D]
        # In the layout of the projection that made qkv, whose backward pass then needs no copy
        grads = out.new_empty(batch, tokens, 3, heads, channels)
        arguments.out_grad = out_grad.data_ptr()
        arguments.q_grad, arguments.k_grad, arguments.v_grad = (grads[:, :, i].data_ptr() for i in range(3))
        arguments.grad_stride = grads.stride(1)
        bindings.functions()["attention_backward"](ctypes.byref(arguments), torch.get_num_threads())
        return grads.permute(2, 0, 3, 1, 4), None, None  # [B, T, 3, H, D] to [3, B, H, T, D]


def _arguments(qkv: Tensor, mask: Tensor | None, causal: bool, out: Tensor, lse: Tensor) -> _Sequences:
    _, batch, heads, tokens, channels = qkv.shape
    strides = [stride for part in qkv for stride in part.stride()[:3]]  # of batch, head and token
    return _Sequences(
        *(part.data_ptr() for part in qkv),
        (_NUMBER * 9)(*strides),
        None if mask is None else mask.data_ptr(),
        *(int(causal), batch, heads, tokens, channels),
        1 / math.sqrt(channels),
        *(out.data_ptr(), lse.data_ptr()),
    )
