"""Every number of every config class has a range: what is out of it is one line, at once, and builds nothing."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dalle
from dalle.config import ConfigError, config, from_dict
from dalle.config.ranges import PositiveInt, Probability, Range, check_ranges, field_annotations, numbers
from dalle.training.optim import OptimConfig
from dalle.training.recipe import RunConfig

MODULES = [name for _, name, _ in pkgutil.walk_packages(dalle.__path__, "dalle.") if not name.endswith("__main__")]


def config_classes() -> list[Any]:
    found = {
        value
        for name in MODULES
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "__pydantic_config__")
    }
    found -= {base for cls in found for base in cls.__bases__}  # what several share is no config by itself
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


REQUIRED: dict[str, Any] = {
    "steps": 10, "batch_size": 4, "dir": Path("runs/none"), "path": "somewhere", "first": 0.5, "last": 0.5,
    "prompts": ["a dog"], "weights": Path("weights.pth"), "source": "clip",
}  # fmt: skip
LISTS: dict[str, Any] = {
    "stored_masks": tuple(range(8)),
    "null_ids": (0, 1, 2),
    "dropped_ids": (0, 1, 2),
    "grid": (4, 4),
    "weights": (1.0, 2.0),
    "betas": (0.9, 0.96),
}
VALUES: dict[str, Any] = {
    "nan": math.nan, "inf": math.inf, "minus inf": -math.inf, "minus one": -1, "zero": 0, "two": 2, "huge": 10**13,
    "over 64 bits": 2**80, "over 4,300 digits": 10**5000, "1e300": 1e300, "a half": 0.5,
}  # fmt: skip


def build(cls: Any, **given: Any) -> Any:
    required = {
        field.name: REQUIRED[field.name]
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name in REQUIRED
    }
    return cls(**required | given)


def recipe_parts(cls: Any) -> bool:
    """Whether its other fields are configs that have no defaults; its numbers are tried without those."""
    return cls.__name__.endswith("Recipe")


FIELDS = [
    (cls, field.name, field_annotations(cls)[field.name])
    for cls in config_classes()
    for field in dataclasses.fields(cls)
    if any(list(numbers(field.name, probe, field_annotations(cls)[field.name])) for probe in (1, (1, 1, 1)))
]


def test_all_config_classes_are_found() -> None:
    names = {cls.__name__ for cls, _, _ in FIELDS}
    assert {"RunConfig", "OptimConfig", "TransformerConfig", "VQConfig", "PaintOptions", "SampleConfig"} <= names
    assert len(FIELDS) > 150


def test_each_number_states_a_range() -> None:
    missing = [
        f"{cls.__name__}.{place}"
        for cls, name, annotation in FIELDS
        for probe in (1, (1, 1, 1))
        for place, _, (_, limits) in numbers(name, probe, annotation)
        if limits is None
    ]
    assert not missing, f"annotate them (dalle.config.ranges): {', '.join(missing)}"


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_extreme_values_are_refused_in_one_line_or_accepted_quickly(value: Any) -> None:
    """All fields with one value: a refusal is a line that names the field; what is taken has cost no time."""
    begun = time.process_time()
    for cls, name, annotation in FIELDS:
        several = not list(numbers(name, 1, annotation))
        given = value if not several else _with(cls, name, value)
        try:
            if recipe_parts(cls):  # its numbers alone: the parts are tried as classes of their own
                instance = object.__new__(cls)
                for field in dataclasses.fields(cls):
                    object.__setattr__(instance, field.name, None)
                object.__setattr__(instance, name, given)
                check_ranges(instance)
            else:
                build(cls, **{name: given})
        except ValueError as error:
            text = str(error)
            assert name in text.replace("betas go from", f"betas {name}"), f"{cls.__name__}.{name}: {text}"
            assert "\n" not in text and len(text) < 400, text
        else:
            assert not (isinstance(value, float) and not math.isfinite(value)), f"{cls.__name__}.{name} took {value}"
    assert time.process_time() - begun < 20, "something was built"


def _with(cls: Any, name: str, value: Any) -> Any:
    """A list or tuple as the field has it by default, with `value` in its first place."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
    items = list(default or LISTS[name])
    return type(default or LISTS[name])([value, *items[1:]])


@pytest.mark.parametrize(
    "cls, given, message",
    [
        (OptimConfig, {"lr": math.nan}, "lr is nan; it must be a finite number, at least 0"),
        (OptimConfig, {"lr": np.float32("nan")}, "lr is nan; it must be a finite number, at least 0"),
        (OptimConfig, {"betas": (1.5, 2)}, "betas[0] is 1.5; it must be at least 0 and below 1"),
        (OptimConfig, {"eps": -1}, "eps is -1; it must be above 0 and at most 1"),
        (OptimConfig, {"warmup": 1.5}, "warmup is 1.5; it must be a whole number"),
        (OptimConfig, {"lr": "fast"}, "lr is 'fast'; it must be a number"),
        (RunConfig, {"seed": -1}, "seed is -1; it must be at least 0"),
        (RunConfig, {"seed": 2**63}, "seed is 2^63 or more; it must be at most 4611686018427387903; is it mistyped?"),
        (RunConfig, {"workers": 999}, "workers is 999; it must be at most 512; is it mistyped?"),
        (RunConfig, {"batch_size": 10**8}, "batch_size is 100000000; it must be at most 1048576; is it mistyped?"),
        (RunConfig, {"tokens": math.inf}, "tokens is inf; it must be a finite number, above 0 (null counts in steps)"),
    ],
)
def test_range_errors_name_value_and_bounds(cls: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(cls, **given)
    assert str(caught.value) == message


@config
class Inner:
    share: Probability = 0.5


@config
class Outer:
    inner: Inner = Inner()
    sizes: tuple[PositiveInt, ...] = ()
    few: Probability | None = None


@pytest.mark.parametrize(
    "data, message",
    [
        ({"inner": {"share": 2}}, "x.yaml: inner: share is 2.0; it must be from 0 to 1"),
        ({"sizes": [3, 0]}, "x.yaml: sizes[1] is 0; it must be at least 1"),
        ({"few": math.nan}, "x.yaml: few is nan; it must be a finite number, from 0 to 1"),
    ],
)
def test_range_errors_of_files_name_the_key(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, data, "x.yaml")
    assert str(caught.value) == message
    assert from_dict(Outer, {"few": None, "sizes": [1]}, "x.yaml") == Outer(sizes=(1,))


def test_range_bounds_may_be_exclusive() -> None:
    limits = Range(0, 1, above=True)
    assert limits.problem(1) is None and limits.problem(0) and limits.problem(1.01)
    limits = Range(0, 1, below=True)
    assert limits.problem(0) is None and limits.problem(1)
