"""Cross-entropy of logits and its gradient in their place, by compiled code: what torch does in eight passes."""

from __future__ import annotations

import torch
from torch import Tensor

from dalle.kernels.ids import check_ids
from dalle.kernels.native import bindings
from dalle.kernels.switches import differentiable


def cross_entropy_slopes(
    logits: Tensor, ids: Tensor, z_weight: float, bias_gradient: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Put the gradient of the summed cross-entropy + z_weight log² Z in the place of logits, if this is the fast way.

    Args:
        logits: [M, V] float32 or bfloat16; overwritten.
        ids: int64 [M], the right answers, each at least 0 and below V.
        z_weight: weight of log² Z.
        bias_gradient: float32 [V], to which the gradient's sum over rows is added before it is rounded; None: nobody
            wants it.

    Returns:
        Cross-entropy and log Z of each row, float32 [M] each; None if torch is to do it, and nothing was changed.

    Raises:
        IndexError: an id is out of range; nothing was changed.
        ValueError: logits, ids and bias_gradient do not fit each other.
    """
    rows, codes = logits.shape
    if not differentiable(logits) or not logits.is_contiguous() or codes % bindings.STEP:
        return None
    function = bindings.functions().get(f"entropy_{bindings.TYPES.get(logits.dtype)}")
    if function is None or ids.dtype != torch.int64:
        return None
    if ids.shape != (rows,) or ids.device != logits.device:
        raise ValueError(f"{rows} rows of logits with ids {list(ids.shape)} on {ids.device}: give each row one id")
    if bias_gradient is not None and (
        bias_gradient.shape != (codes,) or bias_gradient.dtype != torch.float32 or not bias_gradient.is_contiguous()
    ):
        raise ValueError(
            f"bias_gradient is {list(bias_gradient.shape)} {bias_gradient.dtype}; it must be float32 [{codes}]"
        )
    check_ids(ids, codes, "targets")
    ids = ids.contiguous()
    nats, log_z = torch.empty(2, rows, dtype=torch.float32, device="cpu").unbind()
    to = None if bias_gradient is None else bias_gradient.data_ptr()
    tensors = (logits, ids, nats, log_z)
    function(*(t.data_ptr() for t in tensors), to, rows, codes, z_weight, bindings.threads(8 * logits.numel()))
    return nats, log_z
