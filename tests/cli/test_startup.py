"""Before a command begins: a Python without the packages, and Ctrl-C while modules are imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.cli.startup import REQUIRED, explain_startup_errors

ROOT = Path(__file__).resolve().parents[2]
IMPORTED_AS = {"huggingface-hub": "huggingface_hub", "pillow": "PIL", "pillow-lunasvg": "pillow_lunasvg"}
IMPORTED_AS |= {"pyyaml": "yaml", "typing-extensions": "typing_extensions"}


@pytest.mark.parametrize("command", [["sample.py", "a dog"], ["train.py", "emoji/dalle"], ["-m", "dalle", "index"]])
def test_missing_packages_give_a_one_line_error(command: list[str]) -> None:
    """Without site-packages (-S) it is as where no environment is activated."""
    done = subprocess.run([sys.executable, "-S", "-E", *command], cwd=ROOT, capture_output=True, text=True)
    name = {"-m": "dalle"}.get(command[0], command[0])
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(rf"{name}: \w+ is not installed for {re.escape(sys.executable)}: .+\n", done.stderr)


def test_required_packages_equal_the_dependencies() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dependencies = \[(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    names = re.findall(r'^    "([a-z-]+)', found[1], flags=re.MULTILINE)
    assert {IMPORTED_AS.get(name, name) for name in names} == REQUIRED


@pytest.mark.parametrize(
    "raised, code, told",
    [
        ("KeyboardInterrupt", 130, ""),
        ("ModuleNotFoundError('x', name='torch.nn')", 2, "dalle: torch is not installed for"),
        ("ModuleNotFoundError('no av', name='av')", 1, "Traceback"),
        ("ValueError('a bug')", 1, "Traceback"),
    ],
)
def test_only_interrupts_and_missing_packages_are_explained(raised: str, code: int, told: str) -> None:
    program = f"from dalle.cli.startup import explain_startup_errors as f; f('dalle'); print(1); raise {raised}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "1\n")
    assert done.stderr.startswith(told) and bool(done.stderr) == bool(told)


def test_previous_excepthook_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: seen.append(kind))
    explain_startup_errors("dalle")
    sys.excepthook(ValueError, ValueError("x"), None)
    assert seen == [ValueError]
