"""Errors before a command runs, in one line: an interrupt or a missing package while modules are imported."""

from __future__ import annotations

import os
import sys
from types import TracebackType

# Top-level names of the packages that `pip install -e .` brings ([project.dependencies] of pyproject.toml)
REQUIRED = frozenset(
    {
        *("accelerate", "datasets", "einops", "huggingface_hub", "numpy", "PIL", "pillow_lunasvg", "pydantic"),
        *("safetensors", "sentencepiece", "torch", "tqdm", "typing_extensions", "yaml"),
    }
)


def explain_startup_errors(program: str) -> None:
    """Report an uncaught Ctrl-C by exit code 130 alone, and a missing required package by one line and exit code 2.

    Importing torch takes seconds, in which no command has begun that could catch either. Must be called before
    anything else is imported.

    Args:
        program: name of the command, for the message.
    """
    show = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            _exit(130)
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in REQUIRED:
            print(f"{program}: {missing(str(error.name))}", file=sys.stderr)
            _exit(2)
        show(kind, error, traceback)

    sys.excepthook = report


def missing(package: str) -> str:
    """What to do about a required package that this Python does not have."""
    # Of the checkout, three levels above this file
    here = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), ".venv")
    activate = os.path.join(here, "bin", "activate")
    todo = f"source {activate}" if os.path.exists(activate) else "make demo (or pip install -e .) in the checkout"
    return f"{package.partition('.')[0]} is not installed for {sys.executable}: {todo}"


def _exit(code: int) -> None:
    """End the process: Python would go on to kill itself by the signal, or to print the exception."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)
