"""Sampling one token a row in one pass over the logits: temperature, top-k and nucleus."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.native.bindings import functions, threads
from dalle.kernels.switches import inference


def sample_tokens(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    failed: Tensor | None = None,
) -> Tensor | None:
    """What `dalle.kernels.sample.sample_tokens` gives for a temperature above 0; None if torch is to do it."""
    function = functions().get("sample") if inference(logits) else None
    if function is None or logits.dtype != torch.float32 or logits.ndim != 2:
        return None
    rows, vocabulary = logits.shape
    if uniform.shape != (rows,) or uniform.device != logits.device or (top_k is not None and top_k < 1):
        return None
    logits, uniform = logits.contiguous(), uniform.double().contiguous()
    drawn = torch.empty(rows, dtype=torch.int64, device="cpu")
    without = function(
        logits.data_ptr(),
        uniform.data_ptr(),
        drawn.data_ptr(),
        rows,
        vocabulary,
        temperature,
        vocabulary if top_k is None else min(top_k, vocabulary),
        1.0 if top_p is None else top_p,
        threads(4 * logits.numel()) if rows > 1 else 1,
    )
    if without and failed is not None:
        failed.fill_(True)
    return drawn
