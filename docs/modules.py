"""Write docs/modules.md: every module of `dalle` with the first line of its docstring. python docs/modules.py"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Modules

Every module with its first line, package by package. Written by `python docs/modules.py`, and a test holds it to the
code; how the parts work together is in [architecture.md](architecture.md).
"""


def listing() -> str:
    """The page."""
    sections = [HEAD]
    for folder in (ROOT / "dalle", *sorted(path.parent for path in (ROOT / "dalle").rglob("*/__init__.py"))):
        files = sorted(folder.glob("*.py"), key=lambda file: (file.name != "__init__.py", file.name))
        name = folder.relative_to(ROOT).as_posix()
        first = f"## {name}/\n\n{_line(files[0])}\n"
        rows = [f"| [{file.name}](../{name}/{file.name}) | {_line(file)} |" for file in files[1:]]
        sections.append(first + ("\n| | |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""))
    return "\n".join(sections)


def _line(file: Path) -> str:
    """The first line of a module's docstring, for a cell of a table."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0].replace("|", r"\|")


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(listing(), end="")
    else:
        (ROOT / "docs/modules.md").write_text(listing(), encoding="utf-8")
