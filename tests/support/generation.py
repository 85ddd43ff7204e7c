"""`generate` and `sample` with the fields of their config classes as keyword arguments, for tests of many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from dalle.generation import generate as _generate
from dalle.generation import sampling as _sampling
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.models.dalle import DALLE


def _taken(cls: type, options: dict[str, Any]) -> Any:
    return cls(**{field.name: options.pop(field.name) for field in fields(cls) if field.name in options})


def generate(model: DALLE, text: Tensor, seeds: Sequence[Sequence[int]], **options: Any) -> Tensor:
    """`dalle.generation.generate.generate`."""
    sampling, engine = _taken(SamplingConfig, options), _taken(EngineOptions, options)
    return _generate.generate(model, text, seeds, sampling, engine, **options)


def sample(logits: Tensor, uniform: Tensor, failed: Tensor | None = None, **options: Any) -> Tensor:
    """`dalle.generation.sampling.sample`."""
    return _sampling.sample(logits, uniform, SamplingConfig(**options), failed)
