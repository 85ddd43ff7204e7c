"""The server's page in headless Chromium: what it asks for and complains of is kept; skipped where there is none."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(sys.prefix) / "node_modules/axe-core/axe.min.js"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, or a skipped test that says what is missing."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium fonts-lohit-deva")
    driver = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with driver.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield one
        one.close()


class Opened:
    """A page of the server in a browser context of its own."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.wrong: list[str] = []
        self.hosts: set[str] = set()
        self.url = url
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc or "data"))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def go(self, path: str = "/") -> Any:
        """Load the page and wait for the model."""
        self.page.goto(self.url + path)
        self.page.wait_for_selector("#endpoints details" if path == "/docs" else "#model:not(:empty)")
        return self.page

    def file(self) -> bytes:
        """The file of the image in the large view."""
        return base64.b64decode(self.page.locator("#download").get_attribute("href").partition(",")[2])

    def check(self) -> None:
        """Nothing went wrong, and no other host was asked for anything."""
        assert self.wrong == [] and self.hosts <= {urlsplit(self.url).netloc, "data"}


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Opened]:
    """A page, closed at the end."""
    one = Opened(browser, url, **options)
    yield one
    one.context.close()


def draw(one: Opened, prompt: str, **options: str) -> None:
    """Draw and wait for the images."""
    page = one.page
    page.locator("#options").evaluate("element => { element.open = true; }")
    for name, value in {"n": "1", "candidates": "", "seed": "7", **options}.items():
        page.fill(f"#{name}", value)
    page.fill("#prompt", prompt)
    before = page.locator("#history li").count()
    page.click("#go")
    page.wait_for_selector(f"#history li:nth-child({before + 1})")


def pixels(data: bytes) -> torch.Tensor:
    """Of an image file, uint8 [H, W, 3]."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def violations(page: Any) -> list[str]:
    """What axe-core (https://github.com/dequelabs/axe-core) finds that people with disabilities would stumble over."""
    if not AXE.exists():
        pytest.skip(f"{AXE} is missing: npm install --prefix {sys.prefix} axe-core")
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text("utf-8"))  # by the debugger, which the page's policy does not bind
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert found["passes"]
    return [f"{one['id']}: {node['html'][:120]}" for one in found["violations"] for node in one["nodes"]]
