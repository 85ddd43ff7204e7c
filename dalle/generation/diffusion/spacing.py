"""Which time steps of a diffusion a sampler visits."""

from __future__ import annotations

from typing import Literal

Spacing = Literal["linspace", "leading", "trailing"]


def check_steps(total: int, count: int, name: str = "steps") -> None:
    """Check that a schedule of `total` time steps has as many as are asked for.

    Raises:
        ValueError: count is out of range; the message calls it `name`.
    """
    if not 1 <= count <= total:
        raise ValueError(f"{name} is {count}; this model was trained with {total} steps, so give 1 to {total}")


def spaced_steps(total: int, count: int, spacing: Spacing = "linspace") -> list[int]:
    """The time steps that a sampler visits, from noise to data; sampling and inversion use the same list.

    Args:
        total: number of time steps T of the schedule.
        count: number of steps to visit, 1 to `total`.
        spacing: linspace includes both the last step and step 0 (unCLIP's; a single step is the last), leading includes
            step 0 but not the last, trailing the last but not step 0 (Lin et al. 2023, arXiv 2305.08891, table 2).

    Returns:
        `count` descending steps, each from 0 to `total` - 1.

    Raises:
        ValueError: count is out of range.
    """
    check_steps(total, count)
    if count == 1 and spacing == "linspace":
        return [total - 1]
    if spacing == "linspace":
        return [round(i * (total - 1) / (count - 1)) for i in reversed(range(count))]
    if spacing == "leading":
        return [i * (total // count) for i in reversed(range(count))]
    # Rounded, so that the steps are spread evenly even if count does not divide total
    return [round(total - i * total / count) - 1 for i in range(count)]
