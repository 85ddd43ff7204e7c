"""The page: its files and headers; and, slow, what it does in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dalle.apps.server
from dalle.pipelines.init_image import InitImage
from dalle.pipelines.text_to_image import TextToImage
from support.browser import opened, pixels
from support.server import running
from support.tiny_model import GRID, make_tiny_model


def test_page_refers_to_no_other_host(tiny_model: Path) -> None:
    with running(tiny_model) as served, served.http() as http:
        page = http.get("/")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        assert set(links) == {"data:,", "/static/app.js", "/static/style.css", "/docs"}
        folder = Path(dalle.apps.server.__file__).parent / "page"
        files = ["/docs", *(f"/static/{file.name}" for file in folder.iterdir() if file.suffix != ".html")]
        assert len(files) > 8
        for answer in [page, *(http.get(file) for file in files)]:
            assert answer.status_code == 200 and not re.search(r"https?://|\burl\(|@import", answer.text)
            for module in re.findall(r'(?:from|import) "([^"]*)"', answer.text):
                assert f"/static/{module.removeprefix('./')}" in files
            policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
            assert policy["connect-src"] == "'self'" and policy["img-src"] == "'self' data: blob:"
        assert http.get("/static/../app.py").status_code == 404


def _drop(page: Any, data: bytes) -> None:
    """Drop a PNG on the page, as a file that is dragged in from a folder."""
    script = """data => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer();
        transfer.items.add(new File([bytes], 'mine.png', { type: 'image/png' }));
        document.dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, base64.b64encode(data).decode())


@pytest.mark.slow
def test_page_works_in_a_browser(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_model(tmp_path)
    pipe = TextToImage.from_pretrained(folder, device="cpu")
    masks: list[torch.Tensor] = []
    original = pipe.encode_init_image

    def recorded(*args: Any) -> InitImage:
        found = original(*args)
        masks.append(found.known_mask.flatten())
        return found

    monkeypatch.setattr(pipe, "encode_init_image", recorded)
    with running(folder, pipe) as served, opened(browser, served.url) as one:
        page = one.go()

        # Draw, with the keyboard alone
        page.locator("summary", has_text="Options").click()
        for name, value in {"n": "2", "candidates": "4", "seed": "7", "temperature": "0.8"}.items():
            page.fill(f"#{name}", value)
        page.fill("#prompt", "लाल दिल")
        page.press("#prompt", "Enter")
        page.wait_for_selector("#history li")
        tiles = page.locator("#grid .tile")
        assert tiles.count() == 2
        scores = [float(text.removeprefix("fits ")) for text in tiles.all_inner_texts()]
        assert scores == sorted(scores, reverse=True)
        tiles.first.press("Enter")
        drawn = one.file()
        texts: dict[str, str] = Image.open(io.BytesIO(drawn)).text  # type: ignore[attr-defined]
        assert texts["prompt"] == "लाल दिल" and json.loads(texts["options"])["temperature"] == 0.8

        # A mask of one cell, marked with the keyboard
        page.click("#mask-on")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        page.click("#anew")
        page.wait_for_selector("#history li:nth-child(2)")
        (known,) = masks
        assert known.logical_not().nonzero()[:, -1].tolist() == [1] and known.numel() == GRID[0] * GRID[1]
        assert "from an image" in page.locator("#history li").first.inner_text()
        tiles.first.click()
        assert {"image", "mask"} <= json.loads(Image.open(io.BytesIO(one.file())).text["options"]).keys()  # type: ignore[attr-defined]
        page.click("#close")

        # Dragged in: the options come back, and draw the same image
        page.fill("#prompt", "")
        _drop(page, drawn)
        page.wait_for_selector("#status:text-is('Its options are back.')")
        values = {name: page.input_value(f"#{name}") for name in ("prompt", "seed", "n", "temperature")}
        assert values == {"prompt": "लाल दिल", "seed": texts["seed"], "n": "1", "temperature": "0.8"}
        page.click("#go")
        page.wait_for_selector("#history li:nth-child(3)")
        tiles.first.click()
        assert torch.equal(pixels(one.file()), pixels(drawn))
        page.click("#close")

        # On a phone nothing is wider than the screen
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        tiles.first.click()
        assert page.evaluate("document.querySelector('dialog').getBoundingClientRect().right") <= 360
        page.click("#close")

        # What the server refuses is said in its words
        one.check()
        page.fill("#temperature", "-1")
        page.evaluate("document.querySelector('#temperature').removeAttribute('min')")
        page.click("#go")
        page.wait_for_selector("#message:has-text('temperature')")
