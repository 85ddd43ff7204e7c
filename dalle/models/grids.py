"""A model for images of another grid: its weights are shared, what depends on the grid is made anew."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from dalle.models.dalle import DALLE


def with_grid(model: DALLE, grid: tuple[int, int], null_ids: Sequence[int] | None = None) -> DALLE:
    """The same model for images of another grid.

    Its modules and parameters are those of `model`; only its config and its tables of positions are its own.

    Args:
        model: one with `DALLEConfig.grids`.
        grid: rows and columns of image tokens.
        null_ids: the null caption, which may say the size of the image too; None: as it is.

    Raises:
        ValueError: the model draws no such grid.
    """
    config = model.config
    problem = "it draws no other" if config.grids is None else config.grids.problem(grid)
    if problem is not None and grid != config.grid:
        raise ValueError(f"grid is {grid}, of a model for {config.grid}: {problem}")
    view = copy.copy(model)
    # The copy has the same dictionaries, into which a registered table would go
    view._parameters, view._modules, view._buffers = dict(model._parameters), dict(model._modules), dict(model._buffers)
    null = config.null_ids if null_ids is None else tuple(null_ids)
    view.config = replace(config, grid=grid, null_ids=null)
    view.input_length = view.config.input_length
    view._add_positions(view.config)
    device = model.image_head.weight.device
    for name in ("rope_cos", "rope_sin"):
        view._buffers[name] = view.get_buffer(name).to(device)
    return view
