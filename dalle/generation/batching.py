"""How many candidates are drawn at a time, so that nothing runs out of memory. Estimates; allocates nothing."""

from __future__ import annotations

from dalle.device import free_memory
from dalle.kernels.linear import packed_bytes
from dalle.models.dalle import DALLE

_SHARE = 0.5  # of what is free, to be spent on one batch: the estimate leaves out the allocator's own losses


def plan_batches(
    model: DALLE,
    candidates: int,
    lead: int,
    guided: bool,
    batch_size: int | None = None,
    limit: int | None = None,
    window: int = 1,
) -> tuple[int, bool]:
    """Cut candidates into batches.

    Args:
        model: what draws.
        candidates: how many there are.
        lead: image tokens that all of them keep at the start, run at once.
        guided: whether each takes a second row.
        batch_size: candidates at a time, if that is said; the memory is then not looked at for them.
        limit: bytes that one batch may take beside the weights; None: half of what is free.
        window: image tokens that are run at once while drawing.

    Returns:
        Candidates at a time, at least one; and whether there is memory for a second copy of the weights, in the layout
        that is fast for so many rows (`dalle.kernels.linear.packed`).
    """
    device = model.image_head.weight.device
    budget = int(_SHARE * free_memory(device)) if limit is None else limit
    per = row_bytes(model, lead, window) * (2 if guided else 1)
    fitting = min(batch_size or max(1, budget // per), candidates)
    copy = packed_bytes(model, fitting * window * (2 if guided else 1))
    if batch_size is None and 0 < copy < budget - per:
        fewer = max(1, min(fitting, (budget - copy) // per))
        if packed_bytes(model, fewer * window * (2 if guided else 1)):  # so few that none are packed: no gain
            fitting = fewer
    return fitting, copy + fitting * per <= budget


def row_bytes(model: DALLE, lead: int, window: int = 1) -> int:
    """What one row of a batch takes at the most: keys and values, the states of its longest run of tokens, logits."""
    config, shape = model.config, model.config.transformer
    size = next(model.transformer.parameters()).element_size()
    prefix = config.prefix_length
    tokens = max(lead, prefix, window)  # the longest run of tokens at once
    inner, hidden = shape.heads * shape.head_width, shape.hidden or int(shape.width * shape.mlp_ratio)
    # The text is held twice: by itself, for all candidates of its prompt, and in the cache of whole sequences
    held = shape.depth * (2 * inner + (shape.width if config.shift_tokens else 0)) * (2 * prefix + config.image_length)
    states = tokens * (4 * shape.width + 4 * inner + 2 * hidden + 2 * shape.heads * (prefix + lead))
    return size * (held + states) + 4 * 8 * config.image_vocab * window
