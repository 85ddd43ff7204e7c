"""`dalle sample` and `dalle train`: run sample.py and train.py of the checkout, or their copies in the wheel."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, cast

from dalle.cli.threads import compile_in_background
from dalle.files import ROOT

SCRIPTS = {
    "sample": "generate images for prompts",
    "train": "train a tokenizer, CLIP, DALL-E or unCLIP stage from a recipe",
}


def add(commands: Any, name: str) -> None:
    """Add a script to the subparsers of `dalle`, for its --help only: the scripts parse their arguments."""
    commands.add_parser(name, help=SCRIPTS[name], add_help=False)


def run_script(name: str, argv: Sequence[str]) -> int:
    """Run the main function of a script; returns its exit code.

    The scripts are at the root of the repository, where a reader looks first, and therefore not in this package.
    """
    if name == "sample":
        compile_in_background()
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main = cast(Callable[[Sequence[str], str], int], module.main)
    return main(argv, f"dalle {name}")
