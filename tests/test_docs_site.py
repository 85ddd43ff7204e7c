"""The documentation site: it builds without a warning, and its reference has what the code has."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.__main__ import COMMANDS
from dalle.cli.scripts import SCRIPTS
from dalle.config import option_rows
from dalle.training.recipe import STAGES

ROOT = Path(__file__).parents[1]


def words(page: Path) -> str:
    """The text of a page, without tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_architecture_picture_is_up_to_date() -> None:
    command = [sys.executable, "docs/architecture_picture.py", "--print"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert written.stdout == (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_site_builds_strictly_and_lists_commands_options_and_modules(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    commands = words(tmp_path / "reference/cli.html")
    for name in (*SCRIPTS, *COMMANDS):
        shown = "eval classify" if name == "eval_classify" else name.replace("_", "-")
        assert re.search(rf"^ *dalle {shown}\b", commands, re.MULTILINE), name

    options = words(tmp_path / "reference/config.html")
    names = {row[0].partition(" ")[0] for schema in STAGES.values() for row in option_rows(schema, {}, "")}
    assert len(names) > 100 and all(name in options for name in names)

    pages = "".join(page.read_text(encoding="utf-8") for page in (tmp_path / "reference/api").glob("*.html"))
    modules = {
        file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for file in (ROOT / "dalle").rglob("*.py")
        if not file.name.startswith("__")
    }
    assert all(f'id="{module}"' in pages for module in modules)
    assert 'href="reference/api/dalle.models.html#dalle.models.dalle"' in (tmp_path / "index.html").read_text()
