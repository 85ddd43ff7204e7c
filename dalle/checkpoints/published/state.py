"""Published tensors to ours: a converted model, renaming by rules, tensors computed lazily from others, and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.mapped_files import drop_pages
from dalle.checkpoints.modules import check_fit
from dalle.checkpoints.published.others import reject_unsupported

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
