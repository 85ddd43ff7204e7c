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
from support.browser import chromium

ROOT = Path(__file__).parents[1]


def words(page: Path) -> str:
    """The text of a page, without tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_architecture_picture_is_up_to_date() -> None:
    command = [sys.executable, "docs/architecture_picture.py", "--print"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert written.stdout == (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_reference_lists_commands_options_and_modules(site: Path) -> None:
    commands = words(site / "reference/cli.html")
    for name in (*SCRIPTS, *COMMANDS):
        shown = name.replace("_", " " if name.startswith("eval_") else "-")
        assert re.search(rf"^ *dalle {shown}\b", commands, re.MULTILINE), name

    options = words(site / "reference/config.html")
    names = {row[0].partition(" ")[0] for schema in STAGES.values() for row in option_rows(schema, {}, "")}
    assert len(names) > 100 and all(name in options for name in names)

    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference/api").glob("*.html"))
    modules = {
        file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for file in (ROOT / "dalle").rglob("*.py")
        if not file.name.startswith("__")
    }
    assert all(f'id="{module}"' in pages for module in modules)
    assert 'href="reference/api/dalle.models.html#dalle.models.dalle"' in (site / "index.html").read_text()


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    loaded = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]+)")
    assert [(str(page), url) for page in site.rglob("*.html") for url in loaded.findall(page.read_text())] == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_site_works_from_a_disk(scheme: str, site: Path) -> None:
    """Search finds something, images are there, the reader's own scheme is taken, nothing else is asked for."""
    with chromium() as browser:
        page = browser.new_context(color_scheme=scheme).new_page()
        page.set_default_timeout(600_000)  # the index has 5 MB, and the machine may be busy
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        taken = page.evaluate("document.body.getAttribute('data-md-color-scheme')")
        assert taken == {"light": "default", "dark": "slate"}[scheme]
        assert page.evaluate("[...document.images].filter(one => !one.naturalWidth).map(one => one.src)") == []
        page.evaluate("document.getElementById('__search').click()")
        page.fill("input.md-search__input", "guidance")
        page.wait_for_selector(".md-search-result__item")
        assert not [url for url in asked if not url.startswith(("file:", "data:"))]
