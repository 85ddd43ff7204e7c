"""Which steps of a diffusion a sampler visits."""

from __future__ import annotations

from typing import Literal

Spacing = Literal["linspace", "leading", "trailing"]


def spaced_steps(total: int, count: int, spacing: Spacing = "linspace") -> list[int]:
    """The steps that a sampler visits, from noise to data: one list for sampling and for inversion.

    Args:
        total: steps T of the schedule.
        count: how many of them, 1 to `total`.
        spacing: linspace has both the last step and step 0 (unCLIP's; one step alone is the last), leading step 0 and
            not the last, trailing the last and not step 0 (Lin et al. 2023, arXiv 2305.08891, table 2).

    Returns:
        `count` falling steps, each from 0 to `total` - 1.

    Raises:
        ValueError: a count out of range.
    """
    if not 1 <= count <= total:
        raise ValueError(f"steps is {count}; this model was trained with {total}, give 1 to {total}")
    if count == 1 and spacing == "linspace":
        return [total - 1]
    if spacing == "linspace":
        return [round(i * (total - 1) / (count - 1)) for i in reversed(range(count))]
    if spacing == "leading":
        return [i * (total // count) for i in reversed(range(count))]
    return [round(total - i * total / count) - 1 for i in range(count)]
