"""The notebook of examples/ runs as it is, but for fewer steps."""

from __future__ import annotations

import json
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[3] / "examples" / "paint.ipynb"


def test_notebook_cells_run() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert "STEPS, CUTOUTS = 80, 8" in code[0]
    code[0] = code[0].replace("STEPS, CUTOUTS = 80, 8", "STEPS, CUTOUTS = 2, 2")
    names: dict[str, object] = {}
    for source in code:
        exec(compile(source, str(NOTEBOOK), "exec"), names)  # noqa: S102, it is ours
    for name in ("painted", "half", "fourier"):
        assert name in names
