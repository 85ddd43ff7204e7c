"""Chooses batch sizes, so that generation does not run out of memory. Estimates only; allocates nothing."""

from __future__ import annotations

from dalle.device import free_memory
from dalle.kernels.linear import packed_bytes
from dalle.models.dalle import DALLE

_MEMORY_FRACTION = 0.5  # of the free memory, for one batch: the estimate leaves out the allocator's fragmentation


def plan_batches(
    model: DALLE,
    candidates: int,
    known_prefix: int,
    guided: bool,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    window: int = 1,
) -> tuple[int, bool]:
    """Choose how many candidates to generate at once.

    Args:
        model: the model to generate with.
        candidates: total number of candidates.
        known_prefix: number of image tokens at the start that all of them have given, which are run at once.
        guided: whether classifier-free guidance doubles the rows.
        batch_size: candidates per batch; None: as many as fit.
        memory_limit: bytes that one batch may take besides the weights; None: half of the free memory.
        window: image tokens per decode step.

    Returns:
        Candidates per batch, at least one; and whether there is memory left for a second copy of the weights, in the
        layout that is fast for that many rows (`dalle.kernels.linear.packed`).
    """
    device = model.image_head.weight.device
    budget = int(_MEMORY_FRACTION * free_memory(device)) if memory_limit is None else memory_limit
    per = row_bytes(model, known_prefix, window) * (2 if guided else 1)
    fitting = min(batch_size or max(1, budget // per), candidates)
    copy = packed_bytes(model, fitting * window * (2 if guided else 1))
    if batch_size is None and 0 < copy < budget - per:
        # Fewer candidates with packed weights are faster than more without, unless too few to be packed at all
        fewer = max(1, min(fitting, (budget - copy) // per))
        if packed_bytes(model, fewer * window * (2 if guided else 1)):
            fitting = fewer
    return fitting, copy + fitting * per <= budget


def row_bytes(model: DALLE, known_prefix: int, window: int = 1) -> int:
    """Peak memory of one row of a batch, in bytes: KV cache, activations of the longest run of tokens, and logits."""
    config, shape = model.config, model.config.transformer
    size = next(model.transformer.parameters()).element_size()
    prefix = config.prefix_length
    tokens = max(known_prefix, prefix, window)  # the longest run of tokens at once
    inner, hidden = shape.heads * shape.head_width, shape.hidden or int(shape.width * shape.mlp_ratio)
    # The text is cached twice: once per prompt, for all its candidates, and again in the cache of whole sequences
    kept = shape.key_heads * shape.head_width
    cached = shape.depth * (2 * kept + (shape.width if config.shift_tokens else 0)) * (2 * prefix + config.token_length)
    # Of each token: the residual stream and its copies, q, k, v and their mix, two maps of the feed-forward, and scores
    # with their softmax
    states = tokens * (4 * shape.width + 4 * inner + 2 * hidden + 2 * shape.heads * (prefix + known_prefix))
    # Logits: about eight float32 copies, of sampling's sorts and sums
    return size * (cached + states) + 4 * 8 * config.image_vocab * window
