"""Draw the pictures of docs/serve.md: python docs/serve_pictures.py [MODEL] [--index INDEX] [--only NAME ...] [--every]

Starts `dalle serve` and takes pictures of its page in Chromium, which needs `pip install playwright` and
`apt-get install chromium fonts-lohit-deva`. With --every, each state is taken on a desk and on a phone, light and dark.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("serve_pictures.py")

from playwright.sync_api import Page, sync_playwright

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool

CHROMIUM = "/usr/bin/chromium"
DESK, PHONE = {"width": 900, "height": 720}, {"width": 390, "height": 800}
_PATIENCE = 600_000  # milliseconds: a model may take minutes for eight candidates


@dataclass(frozen=True)
class Picture:
    """A state of the page, and how the documentation shows it."""

    reach: Callable[[Page], None]
    screen: dict[str, int]
    scheme: str = "light"
    needs: str = "#tab-draw"  # the tab that it is in: servers have not all of them


def _draw(page: Page, prompt: str, seed: str = "1", n: str = "4", candidates: str = "8") -> None:
    page.evaluate("document.querySelector('#options').open = true")
    for name, value in {"prompt": prompt, "seed": seed, "n": n, "candidates": candidates}.items():
        page.fill(f"#{name}", value)
    page.evaluate("document.querySelector('#options').open = false")
    page.click("#go")


def _whole(page: Page) -> None:
    page.wait_for_selector("#grid .tile:enabled img")
    page.evaluate("scrollTo(0, 0)")


def start(page: Page) -> None:
    page.hover("h1")


def drawing(page: Page) -> None:
    _draw(page, "a red heart, 3d style")
    page.wait_for_function("document.querySelector('#progress').value > 0.55")


def drawn(page: Page) -> None:
    _draw(page, "लाल दिल", candidates="4")
    _whole(page)


def options(page: Page) -> None:
    page.click("#options summary")


def large(page: Page) -> None:
    _draw(page, "a palm tree", n="1", candidates="1")
    _whole(page)
    page.click("#grid .tile")


def mask(page: Page) -> None:
    large(page)
    page.click("#mask-on")
    box = page.locator("#mask").bounding_box()
    assert box is not None

    def move(x: float, y: float) -> None:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=20)

    move(0.2, 0.4)
    page.mouse.down()
    for y in (0.4, 0.5, 0.6):
        for x in (0.2, 0.7) if y != 0.5 else (0.7, 0.2):
            move(x, y)
    page.mouse.up()


def paint(page: Page) -> None:
    page.click("#tab-paint")
    page.fill("#paint-prompt", "a red heart | 3d style:0.5")
    page.fill("#paint-seed", "1")
    page.click("#paint-go")
    page.wait_for_function("document.querySelector('#paint-progress').value > 0.4")


def search(page: Page) -> None:
    page.click("#tab-search")
    page.fill("#query", "a red heart")
    page.press("#query", "Enter")
    page.wait_for_selector("#hits .tile:nth-child(8) img")


def classify(page: Page) -> None:
    file = _file_of_a_heart(page)
    page.click("#tab-classify")
    page.set_input_files("#classify-image", file)
    page.fill("#labels", "heart, dog, tree")
    page.press("#labels", "Enter")
    page.wait_for_selector("#classes li")


def variations(page: Page) -> None:
    file = _file_of_a_heart(page)
    page.click("#tab-unclip")
    page.set_input_files("#vary-image", file)
    page.click("#vary-go")
    page.wait_for_selector("#varied .tile:nth-child(4) img")


def _file_of_a_heart(page: Page) -> dict[str, Any]:
    content = page.request.post(
        "/v1/images/generations", data={"prompt": "a red heart", "seed": 1}, timeout=_PATIENCE
    ).body()
    data = base64.b64decode(json.loads(content)["data"][0]["b64_json"])
    return {"name": "heart.png", "mimeType": "image/png", "buffer": data}


def refused(page: Page) -> None:
    page.fill("#prompt", "a red heart " * 500)
    page.click("#go")
    page.wait_for_selector("#message:not(:empty)")


def card(page: Page) -> None:
    page.click("#card-box summary")
    page.evaluate("document.querySelector('#card-box').scrollIntoView()")


PICTURES = {
    "drawing": Picture(drawing, DESK),
    "mask": Picture(mask, DESK),
    "paint": Picture(paint, DESK, needs="#tab-paint"),
    "phone": Picture(drawn, PHONE, "dark"),
    "search": Picture(search, DESK, needs="#tab-search"),
    "variations": Picture(variations, DESK, needs="#tab-unclip"),
}
OTHERS = {
    "start": Picture(start, DESK),
    "options": Picture(options, DESK),
    "large": Picture(large, DESK),
    "classify": Picture(classify, DESK, needs="#tab-classify"),
    "refused": Picture(refused, DESK),
    "card": Picture(card, DESK),
}


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[str]:
    """The address of a server, which ends with the block."""
    command = [sys.executable, "-m", "dalle", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = None
        while found is None:
            line = process.stderr.readline()
            if not line:
                raise SystemExit(f"the server ended: {' '.join(command)}")
            found = re.search(r"page: (http://\S+)/,", line)
        yield found[1]
    finally:
        process.terminate()
        process.communicate()


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", help="model folder; the one that ships if not given")
    parser.add_argument("--index", help="of the search")
    parser.add_argument("--unclip", help="of the variations")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=PICTURES | OTHERS, metavar="NAME", help="default: all of the docs")
    parser.add_argument("--every", action="store_true", help="every state, screen and scheme")
    args = parser.parse_args()
    options = [("--model", args.model), ("--index", args.index), ("--unclip", args.unclip)]
    with serving([word for pair in options if pair[1] for word in pair]) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        args.out.mkdir(parents=True, exist_ok=True)
        for name in args.only or (PICTURES | OTHERS if args.every else PICTURES):
            one = (PICTURES | OTHERS)[name]
            for screen, scheme in (
                product((DESK, PHONE), ("light", "dark")) if args.every else [(one.screen, one.scheme)]
            ):
                kind = f"-{screen['width']}-{scheme}" if args.every else ""
                context = browser.new_context(viewport=screen, color_scheme=scheme, base_url=url, bypass_csp=True)
                page = context.new_page()
                page.set_default_timeout(_PATIENCE)
                page.goto("/")
                page.wait_for_selector("#model:not(:empty)")
                if page.is_visible(one.needs):
                    one.reach(page)
                    page.screenshot(path=args.out / f"serve-{name}{kind}.png")
                    print(args.out / f"serve-{name}{kind}.png", flush=True)
                else:
                    print(f"{name}: left out, the server has no {one.needs}", flush=True)
                context.close()
        browser.close()


if __name__ == "__main__":
    sys.exit(run_tool(main))
