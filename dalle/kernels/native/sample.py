"""Sampling one token per row in one pass over the logits: temperature, top-k and nucleus."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.native.bindings import functions, threads
from dalle.kernels.switches import allows_native_inference


def sample_tokens(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    failed: Tensor | None = None,
) -> Tensor | None:
    """`dalle.kernels.sample.sample_tokens`; None if PyTorch must do it."""
    function = functions().get("sample") if allows_native_inference(logits) else None
    if function is None or logits.dtype != torch.float32 or logits.ndim != 2:
        return None
    rows, vocabulary = logits.shape
    if uniform.shape != (rows,) or uniform.device != logits.device or (top_k is not None and top_k < 1):
        return None
    logits, uniform = logits.contiguous(), uniform.double().contiguous()
    tokens = torch.empty(rows, dtype=torch.int64, device="cpu")
    failures = function(
        logits.data_ptr(),
        uniform.data_ptr(),
        tokens.data_ptr(),
        rows,
        vocabulary,
        temperature,
        vocabulary if top_k is None else min(top_k, vocabulary),
        1.0 if top_p is None else top_p,
        threads(4 * logits.numel()) if rows > 1 else 1,
    )
    if failures and failed is not None:
        failed.fill_(True)
    return tokens
