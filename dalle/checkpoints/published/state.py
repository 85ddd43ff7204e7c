"""State dicts of published files: finding them, removing wrappers from names, and renaming tensors by rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.mapped_files import drop_pages
from dalle.checkpoints.modules import check_fit
from dalle.checkpoints.published.others import reject_unsupported
from dalle.checkpoints.published.unpickler import OpaqueObject

# Wrappers whose names may stand anywhere, and those that are in front of all names
_INFIX_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_PREFIX_WRAPPERS = ("module.", "model.")
SHAPE_ERRORS = (IndexError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError)
"""The exceptions that tensors with unexpected shapes or dtypes cause during conversion."""


@dataclass(frozen=True)
class Published:
    """A published model, converted to our architecture.

    Attributes:
        family: name of its family for messages.
        license: license of the weights, as stated by its project.
        config: our config of its architecture.
        tensors: state dict for the module of `config`, partly computed lazily.
        dropped: published names of tensors that are not needed.
        rules: the renaming rules, see `rename_tensors`.
    """

    family: str
    license: str
    config: Any
    tensors: Mapping[str, Tensor | LazyTensor]
    dropped: list[str]
    rules: Sequence[tuple[str, str]] = ()

    def check(self, module: nn.Module, source: str) -> None:
        """Check that the tensors match the module of `config`.

        Raises:
            ValueError: keys are missing or unexpected, or shapes differ; the message has the published names.
        """
        causes = (
            f"perhaps it is another version of {self.family}, or incomplete",
            f"perhaps it is {self.family} of another size, or with another tokenizer",
        )
        check_fit(module, self.tensors, source, lambda name: published_name(name, self.rules) or name, causes)


def concat_lazy(*tensors: Tensor) -> LazyTensor:
    """Concatenate tensors lazily along their first dimension.

    Raises:
        ValueError: their other dimensions differ, or they have none.
    """
    if len({tensor.shape[1:] for tensor in tensors}) > 1 or not all(tensor.ndim for tensor in tensors):
        raise ValueError(
            f"it has tensors of shapes {[list(t.shape) for t in tensors]} to concatenate, which do not match"
        )
    size = torch.Size((sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:]))
    return derived(tensors, size, lambda: torch.cat(tensors))


def fuse_qkv(state: dict[str, Tensor | LazyTensor], tensors: Mapping[str, Tensor]) -> None:
    """Replace separate query, key and value projections, `attention.q` and so on, in `state` by the fused one."""
    for name in tensors:
        place, found, kind = name.partition(".attention.q.")
        if found:
            parts = [f"{place}.attention.{part}.{kind}" for part in "qkv"]
            for part in parts:
                shape(tensors, part)
                del state[part]
            state[f"{place}.attention.qkv.{kind}"] = concat_lazy(*(tensors[part] for part in parts))


def derived(tensors: Sequence[Tensor], size: torch.Size, make: Callable[[], Tensor]) -> LazyTensor:
    """A lazy tensor computed from others, whose memory-mapped pages are released afterward."""

    def make_and_drop_pages() -> Tensor:
        made = make()
        for tensor in tensors:
            drop_pages(tensor)
        return made

    return LazyTensor(size, tensors[0].dtype, make_and_drop_pages)


def named_tensors(tree: Any) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, without wrappers (`strip_wrappers`).

    Args:
        tree: a state dict; a dict with one under `state_dict`, `model` or `weights`; a pickled module; or the content
            of a TorchScript archive.

    Raises:
        ValueError: it is none of these.
    """
    return strip_wrappers(stored_state(tree))


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the names in the bare module.

    DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Lightning insert parts into names.
    """
    names = list(tensors)
    for wrapper in find_wrappers(names):
        front = wrapper in _PREFIX_WRAPPERS
        names = [name.removeprefix(wrapper) if front else name.replace(wrapper, "") for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def find_wrappers(names: Iterable[str]) -> list[str]:
    """The wrapper parts in names, in the order in which to remove them."""
    names = list(names)
    # Infixes first: they may hide a prefix
    found = [wrapper for wrapper in _INFIX_WRAPPERS if any(wrapper in name for name in names)]
    for wrapper in found:
        names = [name.replace(wrapper, "") for name in names]
    # A prefix is a wrapper's only if all names have it
    while names and (wrapper := next((w for w in _PREFIX_WRAPPERS if all(name.startswith(w) for name in names)), "")):
        reject_unsupported(names)  # checked first: language models' own names begin with "model."
        found.append(wrapper)
        names = [name.removeprefix(wrapper) for name in names]
    return found


def stored_state(tree: Any) -> dict[str, Tensor]:
    """Like `named_tensors`, but by the exact names in the file."""
    if isinstance(tree, OpaqueObject) and isinstance(tree.state, dict):
        found = dict(_of_module(tree, "") if "_modules" in tree.state else _of_script(tree, ""))  # a pickled nn.Module
        if found:
            return found
    if isinstance(tree, dict):
        for key in ("state_dict", "model", "weights"):
            if isinstance(tree.get(key), dict):
                return stored_state(tree[key])
        tensors = {str(name): value for name, value in tree.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError("it holds no named tensors")


def training_options(tree: Any) -> dict[str, Any]:
    """The training options stored beside the weights as an argparse.Namespace; {} if there are none."""
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
    """Tensors of a TorchScript module, where parameters, buffers and submodules are plain attributes."""
    found: list[tuple[str, Tensor]] = []
    for name, value in module.state.items() if isinstance(module.state, dict) else ():
        if isinstance(value, Tensor):
            found.append((f"{prefix}{name}", value))
        elif isinstance(value, OpaqueObject):
            found += _of_script(value, f"{prefix}{name}.")
    return found


def rename_tensors(
    tensors: Mapping[str, Tensor],
    rules: Sequence[tuple[str, str]],
    dropped: str = r"(?!)",  # nothing
    *,
    recognized: bool = False,
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename tensors from published names to ours.

    Args:
        tensors: tensors by their published names.
        rules: (pattern of a full name, replacement) as for `re.sub`; the first match applies.
        dropped: pattern of full names of tensors that are not needed.
        recognized: whether the family is certain, so that names of unsupported ones mean nothing.

    Returns:
        The tensors by our names, and the published names that were dropped.

    Raises:
        ValueError: they are of another family, or a name matches no rule.
    """
    if not recognized:
        reject_unsupported(tensors)
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
        raise ValueError(
            f"it has unknown tensor names: {', '.join(unknown[:3])}{more}; it is of another family or version"
        )
    return ours, left_out


def published_name(name: str, rules: Sequence[tuple[str, str]]) -> str | None:
    """The published name of one of our tensors, by inverting the rules of `rename_tensors`; None if no rule matches."""
    for pattern, replacement in rules:
        parts = re.split(r"\\(\d)", replacement)  # literal, group number, literal, ...
        # Our name as a pattern: literals escaped, each group of the replacement named
        ours = "".join(f"(?P<g{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        match = re.fullmatch(ours, name)
        if match is None:
            continue
        groups = iter(range(1, re.compile(pattern).groups + 1))
        put = partial(_expand_group, match.groupdict(), groups)
        # Put the texts into the groups of their pattern, innermost first, and take the backslashes off
        theirs = re.sub(r"\((?:\?:)?[^()]*\)", put, pattern).replace("\\.", ".")
        if re.fullmatch(pattern, theirs):  # alternatives may have been guessed wrong
            return theirs
    return None


def _expand_group(held: Mapping[str, str], groups: Iterator[int], found: re.Match[str]) -> str:
    """The replacement of a group in a pattern: the matched text, or the first of its alternatives."""
    first = found[0].removeprefix("(?:").strip("()").split("|")[0]
    return first if found[0].startswith("(?:") else held.get(f"g{next(groups)}", first)


def shape(
    tensors: Mapping[str, Tensor] | Mapping[str, Tensor | LazyTensor], name: str, dims: int | None = None
) -> tuple[int, ...]:
    """The shape of a tensor, which must have `dims` dimensions, if given.

    Raises:
        ValueError: there is no such tensor, or it has another number of dimensions.
    """
    if name not in tensors:
        raise ValueError(f"it has no tensor {name}")
    found = tuple(tensors[name].shape)
    if dims is not None and len(found) != dims:
        raise ValueError(f"its {name} is {list(found)}, expected {dims} dimensions")
    return found


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """The number of layers: one more than the largest number matched by the first group of `pattern`, or 0.

    Raises:
        ValueError: the number exceeds the number of tensors, so that most layers are missing.
    """
    found = {match[1]: name for name in tensors if (match := re.match(pattern, name))}
    # Compared as strings: a name of a hostile file may contain millions of digits.
    last = max(found, key=lambda number: (len(number), number), default="-1")
    if len(last) > 9 or int(last) >= len(tensors):
        raise ValueError(f"it has {found[last]:.100}, but not the layers before it")
    return int(last) + 1


def square(cells: int) -> tuple[int, int]:
    """Rows and columns of a square grid of `cells` cells.

    Raises:
        ValueError: the number of cells is not a square.
    """
    side = math.isqrt(cells)
    if side < 1 or side * side != cells:
        raise ValueError(f"it has {cells} image positions, which do not form a square")
    return side, side


def quantizer_statistics(codes: int) -> dict[str, Tensor]:
    """Statistics of our quantizer of so many codes, which no published one has; they start at zero."""
    return {
        "quantize.age": torch.zeros(codes, dtype=torch.int64),
        "quantize.updates": torch.zeros((), dtype=torch.int64),
    }
