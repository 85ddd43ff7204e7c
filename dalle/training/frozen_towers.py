"""Freezing a CLIP's towers (`lock`), whole or up to a block."""

from __future__ import annotations

import re

from dalle.models.clip import CLIP
from dalle.models.clip_config import CLIPConfig

_TOWERS = {"image": "vision", "text": "text"}  # as a recipe calls them -> in the model


def parse_lock(lock: str, model: CLIPConfig) -> dict[str, int | None]:
    """Read a recipe's `lock`.

    Args:
        lock: towers separated by commas, each whole (`image`) or its first blocks (`image:6`).
        model: the CLIP whose towers they are.

    Returns:
        Tower -> number of blocks that are frozen, counted from the input; None for the whole tower.

    Raises:
        ValueError: there is no such tower or block, or nothing but the temperature would be trained.
    """
    found: dict[str, int | None] = {}
    for part in lock.split(","):
        parsed = re.fullmatch(r"\s*(\w+)\s*(?::\s*(\d+)\s*)?", part)
        if parsed is None or parsed[1] not in _TOWERS or parsed[1] in found:
            raise ValueError(
                f"lock is {lock!r}: expected a tower to freeze, image or text, or its first blocks, such as image:6; "
                "both with a comma, such as image:6,text:2"
            )
        depth = model.depths[parsed[1]]
        blocks = None if parsed[2] is None else int(parsed[2])
        if blocks is not None and not 1 <= blocks <= depth:
            raise ValueError(
                f"lock is {lock!r}, but the {parsed[1]} tower has {depth} blocks: give 1 to {depth}, or {parsed[1]} "
                "for the whole tower"
            )
        found[parsed[1]] = blocks
    if list(found.values()) == [None, None]:
        raise ValueError(f"lock is {lock!r}: both towers would be frozen; leave one, or some of its blocks, to train")
    return found


def freeze(model: CLIP, lock: str) -> None:
    """Freeze what `lock` names: whole towers, or first blocks with everything before them (patches, tokens, positions).

    A frozen part stores no activations, since what it computes needs no gradient.

    Args:
        model: changed in place.
        lock: as for `parse_lock`.

    Raises:
        ValueError: as in `parse_lock`.
    """
    distance = model.layers_from_top()
    for tower, blocks in parse_lock(lock, model.config).items():
        name = _TOWERS[tower]
        # Block i of a tower of depth d, counted from 0, is d - i layers from the top
        highest = -1 if blocks is None else model.config.depths[tower] - blocks
        for parameter_name, parameter in getattr(model, name).named_parameters():
            # Farther from the output than the last block that is trained
            if distance[f"{name}.{parameter_name}"] > highest:
                parameter.requires_grad_(False)
