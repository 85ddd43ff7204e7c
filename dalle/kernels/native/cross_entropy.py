"""Cross-entropy and its gradient in place of the logits, in one pass where PyTorch takes eight."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.ids import check_ids
from dalle.kernels.native import bindings
from dalle.kernels.switches import allows_native


def cross_entropy_grad_(
    logits: Tensor, ids: Tensor, z_weight: float, bias_gradient: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """`dalle.kernels.cross_entropy.cross_entropy_grad_`: overwrite logits by the gradient of the summed loss.

    Args:
        logits: [M, V] float32 or bfloat16; overwritten.
        ids: int64 [M], the targets, each in [0, V).
        z_weight: weight of log² Z.
        bias_gradient: float32 [V], to which the sum of the gradient over the rows is added, before rounding; None: not
            needed.

    Returns:
        Cross-entropy and log Z of each row, float32 [M] each; None, with nothing changed, if PyTorch must do it.

    Raises:
        IndexError: an id is out of range; nothing has been changed.
        ValueError: the shapes of logits, ids and bias_gradient do not match.
    """
    rows, vocabulary = logits.shape
    if not allows_native(logits) or not logits.is_contiguous() or vocabulary % bindings.ROW_MULTIPLE:
        return None
    function = bindings.functions().get(f"cross_entropy_{bindings.DTYPE_NAMES.get(logits.dtype)}")
    if function is None or ids.dtype != torch.int64:
        return None
    if ids.shape != (rows,) or ids.device != logits.device:
        raise ValueError(f"{rows} rows of logits with ids {list(ids.shape)} on {ids.device}; give one id per row")
    if bias_gradient is not None and (
        bias_gradient.shape != (vocabulary,)
        or bias_gradient.dtype != torch.float32
        or not bias_gradient.is_contiguous()
    ):
        raise ValueError(
            f"bias_gradient is {list(bias_gradient.shape)} {bias_gradient.dtype}; it must be float32 [{vocabulary}]"
        )
    check_ids(ids, vocabulary, "targets")
    ids = ids.contiguous()
    nats, lse = torch.empty(2, rows, dtype=torch.float32, device="cpu").unbind()
    bias = None if bias_gradient is None else bias_gradient.data_ptr()
    tensors = (logits, ids, nats, lse)
    threads = bindings.threads(8 * logits.numel())  # an exponential costs about eight
    function(*(t.data_ptr() for t in tensors), bias, rows, vocabulary, z_weight, threads)
    return nats, lse
