"""How many candidates are drawn at a time, so that nothing runs out of memory. Estimates; allocates nothing."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from dalle.linear import packed_bytes
from dalle.model import DALLE

_SHARE = 0.5  # of what is free, to be spent on one batch: the estimate leaves out the allocator's own losses
_CGROUP, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def shares(
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
        that is fast for so many rows (`dalle.linear.packed`).
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


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device: of the machine's memory, or what a limit leaves of it.

    Limits are those of the control groups that the process is in, and of its address space and data (`ulimit -v`, -d).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: half of the machine's memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([free, *_left_by_groups(), *_left_by_limits()]))


def _left_by_groups() -> list[int]:
    """What each control group, of the process and above, leaves; files that are kept in memory can be let go."""
    left = []
    for folder, names in _groups():
        try:
            limit, used = ((folder / name).read_text().strip() for name in names)
        except OSError:  # none, or not to be read
            continue
        stat = folder / "memory.stat"
        lines = stat.read_text().splitlines() if stat.is_file() else []
        kept = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
        if limit.isdecimal():  # else "max"
            left.append(int(limit) - int(used) + kept)
    return left


def _groups() -> Iterator[tuple[Path, tuple[str, str]]]:
    """Folders of control groups of memory, and the names of limit and use there: of version 2, and of version 1."""
    new, old = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    yield _CGROUP, new
    yield _CGROUP / "memory", old
    try:
        own = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in own:
        _, controllers, path = line.split(":", 2)
        root, names = (_CGROUP, new) if not controllers else (_CGROUP / "memory", old)
        if not controllers or "memory" in controllers.split(","):
            parts = Path(path.strip("/")).parts
            for depth in range(len(parts), 0, -1):
                yield root.joinpath(*parts[:depth]), names


def _left_by_limits() -> list[int]:
    """What limits of the process leave."""
    pages = [int(number) for number in Path("/proc/self/statm").read_text().split()]
    used = {resource.RLIMIT_AS: pages[0], resource.RLIMIT_DATA: pages[5]}
    limits = {kind: resource.getrlimit(kind)[0] for kind in used}
    size = os.sysconf("SC_PAGE_SIZE")
    return [limit - used[kind] * size for kind, limit in limits.items() if limit != resource.RLIM_INFINITY]
