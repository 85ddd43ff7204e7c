"""Attention within whole sequences in bfloat16 by compiled code: forward and backward, no scores in memory."""

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
from dalle.kernels.switches import differentiable

Mask = Tensor | Literal["causal"] | None

_MOST_TOKENS = 512  # of a sequence: for longer ones PyTorch has better (docs/log.md)
_P, _N = ctypes.c_void_p, ctypes.c_int64


class _Sequences(ctypes.Structure):
    """As in attention.h."""

    _fields_ = (
        *((name, _P) for name in ("q", "k", "v")),
        ("strides", _N * 9),
        ("mask", _P),
        *((name, _N) for name in ("causal", "batch", "heads", "tokens", "channels")),
        ("scale", ctypes.c_float),
        *((name, _P) for name in ("out", "log_sum", "given", "of_q", "of_k", "of_v")),
        ("row", _N),
    )


@functools.cache
def _fast() -> bool:
    """Whether the CPU multiplies pairs of bfloat16, and has no AMX, which torch's products would use."""
    compiled = library()
    return compiled is not None and bool(compiled.pairs_of_bfloat16()) and not torch.cpu._is_amx_tile_supported()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor | None:
    """`dalle.kernels.attention.attend` of whole sequences in training, if this code is the fast way to it."""
    if dropout or q.shape != k.shape or not _wanted(q, mask):
        return None
    return attend_sequences(torch.stack((q, k, v)), mask if isinstance(mask, Tensor) else None, isinstance(mask, str))


def attend_packed(qkv: Tensor, mask: Mask = None, dropout: float = 0.0) -> Tensor | None:
    """`dalle.kernels.attention.attend_packed` likewise, without copies."""
    if dropout or not _wanted(qkv, mask):
        return None
    return attend_sequences(qkv, mask if isinstance(mask, Tensor) else None, isinstance(mask, str))


def _wanted(x: Tensor, mask: Mask) -> bool:
    """Only in training: in sampling, numbers stay those of PyTorch's functions."""
    short = x.shape[-2] <= _MOST_TOKENS and (not isinstance(mask, Tensor) or mask.ndim == 2)
    return short and torch.is_grad_enabled() and x.requires_grad and usable(x)


def usable(x: Tensor) -> bool:
    """Whether `attend_sequences` takes queries [..., T, D] like these."""
    return differentiable(x) and x.dtype == torch.bfloat16 and not x.shape[-1] % 32 and x.stride(-1) == 1 and _fast()


def attend_sequences(qkv: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention. Scores and shares are float32, where torch rounds them to bfloat16 in between.

    Args:
        qkv: [3, B, H, T, D] bfloat16: queries, keys and values of whole sequences, of which each is `usable`.
        mask: bool [T, T], True = may look, or None.
        causal: without a mask: whether each token sees only those up to itself.

    Returns:
        [B, H, T, D], in memory [B, T, H, D].

    Raises:
        ValueError: the queries are not `usable`, or the mask is not of their number.
    """
    tokens = qkv.shape[-2]
    if qkv.ndim != 5 or len(qkv) != 3 or not all(usable(part) for part in qkv):
        raise ValueError(f"qkv is {list(qkv.shape)} {qkv.dtype}; compiled attention takes bfloat16 [3, B, H, T, 32 n]")
    if mask is not None and (mask.shape != (tokens, tokens) or mask.dtype != torch.bool or mask.device != qkv.device):
        raise ValueError(
            f"the mask is {list(mask.shape)} {mask.dtype} of {tokens} tokens; it must be bool, [{tokens}] * 2"
        )
    out: Tensor = _Attend.apply(qkv, mask, causal)
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        _, batch, heads, tokens, channels = qkv.shape
        out = qkv.new_empty(batch, tokens, heads, channels)
        log_sum = torch.empty(batch, heads, tokens, dtype=torch.float32, device="cpu")
        mask = None if mask is None else mask.contiguous()
        told = _told(qkv, mask, causal, out, log_sum)
        bindings.functions()["sequences_forward"](ctypes.byref(told), torch.get_num_threads())
        ctx.save_for_backward(qkv, mask, out, log_sum)
        ctx.causal = causal
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        qkv, mask, out, log_sum = ctx.saved_tensors
        told = _told(qkv, mask, ctx.causal, out, log_sum)
        given = gradient.to(out.dtype).transpose(1, 2).contiguous()
        batch, tokens, heads, channels = out.shape
        to = out.new_empty(batch, tokens, 3, heads, channels)  # as a linear map gave qkv: no copy on the way there
        told.given = given.data_ptr()
        told.of_q, told.of_k, told.of_v = (to[:, :, i].data_ptr() for i in range(3))
        told.row = to.stride(1)
        bindings.functions()["sequences_backward"](ctypes.byref(told), torch.get_num_threads())
        return to.permute(2, 0, 3, 1, 4), None, None


def _told(qkv: Tensor, mask: Tensor | None, causal: bool, out: Tensor, log_sum: Tensor) -> _Sequences:
    _, batch, heads, tokens, channels = qkv.shape
    strides = [stride for part in qkv for stride in part.stride()[:3]]
    return _Sequences(
        *(part.data_ptr() for part in qkv),
        (_N * 9)(*strides),
        None if mask is None else mask.data_ptr(),
        *(int(causal), batch, heads, tokens, channels),
        1 / math.sqrt(channels),
        *(out.data_ptr(), log_sum.data_ptr()),
    )
