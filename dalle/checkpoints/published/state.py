"""Tensors of published files under their published names, and tables that give each of them its name in our modules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dalle.checkpoints.published.others import refuse_others
from dalle.checkpoints.published.pickles import OpaqueObject
from dalle.checkpoints.tensors import LazyTensor, check_fit, drop_pages

_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_IN_FRONT = ("module.", "model.")
SHAPE_ERRORS = (IndexError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError)
"""What comes of tensors of shapes or types that nobody has thought of."""


@dataclass(frozen=True)
class Published:
    """A published model as one of ours.

    Attributes:
        family: what it is called in messages.
        licence: of the weights, as its project states it.
        config: the architecture.
        tensors: the state of the module that `config` builds; some of it made when it is asked for.
        dropped: published names that are left out, by rule.
        rules: patterns of published names and what they became, see `renamed`.
    """

    family: str
    licence: str
    config: Any
    tensors: Mapping[str, Tensor | LazyTensor]
    dropped: list[str]
    rules: Sequence[tuple[str, str]] = ()

    def check(self, module: nn.Module, source: str) -> None:
        """Refuse tensors that the module of `config` has no place for.

        Raises:
            ValueError: keys are missing, left over, or of another shape; it calls them by their published names.
        """
        causes = (
            f"perhaps it is of another version of {self.family}, or only a part of it",
            f"perhaps it is of {self.family} in another size, or stands on another tokenizer",
        )
        check_fit(module, self.tensors, source, lambda name: published_name(name, self.rules) or name, causes)


def concat_lazy(*tensors: Tensor) -> LazyTensor:
    """Tensors one after the other on their first dimension.

    Raises:
        ValueError: their other dimensions differ, or there are none.
    """
    if len({tensor.shape[1:] for tensor in tensors}) > 1 or not all(tensor.ndim for tensor in tensors):
        raise ValueError(f"it has parts of shapes {[list(t.shape) for t in tensors]}, which do not go together")
    size = torch.Size((sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:]))
    return derived(tensors, size, lambda: torch.cat(tensors))


def derived(tensors: Sequence[Tensor], size: torch.Size, make: Callable[[], Tensor]) -> LazyTensor:
    """A tensor that is made of others, whose memory is given back where they are mapped from a file."""

    def make_and_forget() -> Tensor:
        made = make()
        for tensor in tensors:
            drop_pages(tensor)
        return made

    return LazyTensor(size, tensors[0].dtype, make_and_forget)


def state_of(tree: Any) -> dict[str, Tensor]:
    """The tensors of what a checkpoint holds, by their dotted names, without wrappers (`unwrapped`).

    Args:
        tree: a state dict, a dict with one under `state_dict`, `model` or `weights`, a pickled module, or what a
            TorchScript archive holds.

    Raises:
        ValueError: there is none of these.
    """
    return unwrapped(as_saved(tree))


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names that they have in the module itself, not in what trained it.

    DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Lightning put words into names.
    """
    names = list(tensors)
    for wrapper in wrappers_of(names):
        front = wrapper in _IN_FRONT
        names = [name.removeprefix(wrapper) if front else name.replace(wrapper, "") for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def wrappers_of(names: Iterable[str]) -> list[str]:
    """The words that training code has put into names, in the order in which they are taken off."""
    names = list(names)
    found = [wrapper for wrapper in _ANYWHERE if any(wrapper in name for name in names)]
    for wrapper in found:
        names = [name.replace(wrapper, "") for name in names]
    while names and (wrapper := next((w for w in _IN_FRONT if all(name.startswith(w) for name in names)), "")):
        refuse_others(names)  # language models begin so themselves
        found.append(wrapper)
        names = [name.removeprefix(wrapper) for name in names]
    return found


def as_saved(tree: Any) -> dict[str, Tensor]:
    """`state_of` by the names that are in the file."""
    if isinstance(tree, OpaqueObject) and isinstance(tree.state, dict):
        found = dict(_of_module(tree, "") if "_modules" in tree.state else _of_script(tree, ""))
        if found:
            return found
    if isinstance(tree, dict):
        for key in ("state_dict", "model", "weights"):
            if isinstance(tree.get(key), dict):
                return as_saved(tree[key])
        tensors = {str(name): value for name, value in tree.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError("it holds no named tensors")


def arguments_of(tree: Any) -> dict[str, Any]:
    """The options of a training, which stand beside the weights as an argparse.Namespace; none if they do not."""
    arguments = tree.get("args") if isinstance(tree, dict) else None
    state = arguments.state if isinstance(arguments, OpaqueObject) else arguments
    return state if isinstance(state, dict) else {}


def _of_module(module: OpaqueObject, prefix: str) -> list[tuple[str, Tensor]]:
    own = module.state if isinstance(module.state, dict) else {}
    found = [
        (prefix + name, value)
        for part in ("_parameters", "_buffers")
        for name, value in (own.get(part) or {}).items()
        if isinstance(value, Tensor)
    ]
    for name, child in (own.get("_modules") or {}).items():
        if isinstance(child, OpaqueObject):
            found += _of_module(child, f"{prefix}{name}.")
    return found


def _of_script(module: OpaqueObject, prefix: str) -> list[tuple[str, Tensor]]:
    """Parameters, buffers and submodules are all attributes there."""
    found: list[tuple[str, Tensor]] = []
    for name, value in module.state.items() if isinstance(module.state, dict) else ():
        if isinstance(value, Tensor):
            found.append((f"{prefix}{name}", value))
        elif isinstance(value, OpaqueObject):
            found += _of_script(value, f"{prefix}{name}.")
    return found


def renamed(
    tensors: Mapping[str, Tensor], rules: Sequence[tuple[str, str]], dropped: str = r"(?!)"
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the published names that were left out.

    Args:
        tensors: by their published names.
        rules: patterns of whole names and what they become, as in `re.sub`; the first that fits counts.
        dropped: pattern of whole names that are left out.

    Raises:
        ValueError: they are of another family, or a name fits no rule.
    """
    refuse_others(tensors)
    ours: dict[str, Tensor] = {}
    left_out, unknown = [], []
    for name, tensor in tensors.items():
        if re.fullmatch(dropped, name):
            left_out.append(name)
            continue
        for pattern, replacement in rules:
            if re.fullmatch(pattern, name):
                ours[re.sub(pattern, replacement, name, count=1)] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(f"it holds names of another family: {', '.join(unknown[:3])}{more}")
    return ours, left_out


def published_name(name: str, rules: Sequence[tuple[str, str]]) -> str | None:
    """What a tensor of ours is called in the file, by rules as `renamed` takes; None where none of them tells."""
    for pattern, replacement in rules:
        parts = re.split(r"\\(\d)", replacement)  # text, number of a group, text, ...
        ours = "".join(f"(?P<g{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        match = re.fullmatch(ours, name)
        if match is None:
            continue
        groups = iter(range(1, re.compile(pattern).groups + 1))
        put = partial(_put, match.groupdict(), groups)
        theirs = re.sub(r"\((?:\?:)?[^()]*\)", put, pattern).replace("\\.", ".")
        if re.fullmatch(pattern, theirs):
            return theirs
    return None


def _put(held: Mapping[str, str], groups: Iterator[int], found: re.Match[str]) -> str:
    """What stands in place of a group of a pattern: what was held, or the first of its alternatives."""
    first = found[0].removeprefix("(?:").strip("()").split("|")[0]
    return first if found[0].startswith("(?:") else held.get(f"g{next(groups)}", first)


def shape(
    tensors: Mapping[str, Tensor] | Mapping[str, Tensor | LazyTensor], name: str, dims: int | None = None
) -> tuple[int, ...]:
    """Shape of a tensor, which has `dims` dimensions if they are given.

    Raises:
        ValueError: there is no such tensor, or it has other dimensions.
    """
    if name not in tensors:
        raise ValueError(f"it has no {name}")
    found = tuple(tensors[name].shape)
    if dims is not None and len(found) != dims:
        raise ValueError(f"its {name} is {list(found)}, expected {dims} dimensions")
    return found


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that stands in the first group of `pattern` in some name; 0 where none fits.

    Raises:
        ValueError: it is larger than the number of all tensors, so that most of what it counts is missing.
    """
    found = {match[1]: name for name in tensors if (match := re.match(pattern, name))}
    last = max(found, key=lambda number: (len(number), number), default="-1")
    if len(last) > 9 or int(last) >= len(tensors):
        raise ValueError(f"it has {found[last]:.100}, and not what comes before it")
    return int(last) + 1


def square(cells: int) -> tuple[int, int]:
    """Rows and columns of a square grid.

    Raises:
        ValueError: the number of cells is no square.
    """
    side = math.isqrt(cells)
    if side < 1 or side * side != cells:
        raise ValueError(f"it has {cells} image positions, which make no square")
    return side, side
