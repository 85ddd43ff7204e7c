"""The notebooks of examples/: their code runs as it stands, and what they keep of it is small."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(file.name for file in (ROOT / "examples").glob("*.ipynb"))


def code_of(name: str) -> str:
    """The code cells of a notebook, one after the other."""
    cells = json.loads((ROOT / "examples" / name).read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_small_and_stored_as_run(name: str) -> None:
    file = ROOT / "examples" / name
    cells = [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    ast.parse(code_of(name))  # nothing that only a notebook understands
    assert file.stat().st_size < 300_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_import_what_exists(name: str) -> None:
    for node in ast.walk(ast.parse(code_of(name))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dalle"):
            module = importlib.import_module(str(node.module))
            for imported in node.names:
                assert hasattr(module, imported.name), f"{node.module}.{imported.name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text(code_of(name), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "notebook.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
