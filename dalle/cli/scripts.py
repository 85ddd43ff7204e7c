"""`dalle sample` and `dalle train`: sample.py and train.py of the repository, which a wheel holds too."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, cast

from dalle.files import ROOT

SCRIPTS = {
    "sample": "images for prompts, into a folder of its own",
    "train": "train any stage from a recipe, by name or path",
}


def add(commands: Any) -> None:
    """Add both to the subparsers of `dalle`, for its --help: their own parsers read their arguments."""
    for name, text in SCRIPTS.items():
        commands.add_parser(name, help=text, add_help=False)


def run_script(name: str, argv: Sequence[str]) -> int:
    """Run the main function of a script; returns its exit code.

    The file is the one that stands at the root of the checkout, or the copy of it in the wheel: the loop stays where a
    reader of the repository looks first, and there is no second one.
    """
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main = cast(Callable[[Sequence[str], str], int], module.main)
    return main(argv, f"dalle {name}")
