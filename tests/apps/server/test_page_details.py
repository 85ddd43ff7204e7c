"""The page in a browser: streams that end too early, links of other models, cards, masks on grids of many cells."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dalle.pipelines.text_to_image import TextToImage
from support.browser import Opened, chromium, draw, opened, violations
from support.server import Running, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tiny_model: Path, tiny_pipe: TextToImage) -> Iterator[Running]:
    with running(tiny_model, tiny_pipe) as one:
        yield one


@pytest.fixture
def there(served: Running) -> Iterator[Opened]:
    with chromium() as browser, opened(browser, served.url) as one:
        one.go()
        yield one


def test_streams_that_end_too_early_are_told(there: Opened, served: Running) -> None:
    """A proxy may end them as if they were whole: what was drawn stays, and is not taken for the image."""
    page = there.page
    with served.http() as http:
        body = {"prompt": "a red heart", "seed": 7, "stream": True, "partial_images": 2}
        partial = http.post("/v1/images/generations", json=body).text.partition("\n\n")[0] + "\n\n"
    assert json.loads(partial.partition("data: ")[2])["type"] == "image_generation.partial_image"
    page.route("**/v1/images/generations", lambda route: route.fulfill(content_type="text/event-stream", body=partial))
    page.fill("#prompt", "a red heart")
    page.click("#go")
    page.wait_for_selector("#message:has-text('broke off')")
    assert "stopped" in page.locator("#grid .tile").first.inner_text() and page.locator("#history li").count() == 0
    page.click("#tab-paint")
    painted = partial.replace("image_generation.", "paint.")
    page.route("**/v1/paint", lambda route: route.fulfill(content_type="text/event-stream", body=painted))
    page.fill("#paint-prompt", "a red heart")
    page.click("#paint-go")
    page.wait_for_selector("#message:has-text('broke off')")
    there.check()


def test_links_of_another_model_are_told(there: Opened) -> None:
    page = there.page
    draw(there, "a red heart")
    link = page.locator("#history a").first.get_attribute("href")
    page.evaluate("link => { location.hash = link; }", link)
    page.wait_for_selector("#history li:nth-child(2)")
    assert "Another model" not in page.inner_text("#message")
    page.evaluate("link => { location.hash = link; }", re.sub("model=[0-9a-f]+", "model=0123", link))
    page.wait_for_selector("#message:has-text('Another model drew this image')")
    assert page.locator("#history li").count() == 3


CELLS = """() => {
    const mask = document.querySelector("#mask"), context = mask.getContext("2d"), side = mask.width / 16, found = [];
    for (let row = 0; row < 16; row++) for (let column = 0; column < 16; column++) {
        if (context.getImageData((column + .5) * side, (row + .5) * side, 1, 1).data[3]) found.push([row, column]);
    }
    return found;
}"""


CARD = """---
license: mit
---

# A model

Draws `icons`, **small** ones, by [a recipe](https://example.org/recipe) and
[a file](file.md). <b>No element.</b>

![samples](samples.png)

- one
  of two
- another

| | nats |
|---|---|
| `test` | 5.1 |

```
python train.py
```
## License
MIT
"""


def test_model_card_is_shown_as_a_page(tiny_model: Path, tmp_path: Path) -> None:
    """What is no text of it, is no element either; files beside it are not served, so that they are no links."""
    folder = shutil.copytree(tiny_model.parent, tmp_path / "parts") / tiny_model.name
    (folder / "README.md").write_text(CARD)
    with running(folder) as served, chromium() as browser, opened(browser, served.url) as one:
        page = one.go()
        page.click("#card-box summary")
        found = page.locator("#card").evaluate("box => [...box.children].map(one => [one.tagName, one.innerText])")
        assert [name for name, _ in found] == ["H2", "P", "UL", "TABLE", "PRE", "H2", "P"]
        texts = [text for _, text in found]
        assert texts[1] == "Draws icons, small ones, by a recipe and a file. <b>No element.</b>"
        assert texts[2] == "one of two\nanother" and texts[4] == "python train.py" and texts[6] == "MIT"
        assert page.locator("#card td").all_inner_texts() == ["", "test", "5.1"]  # no heading without words
        assert [link.get_attribute("href") for link in page.locator("#card a").all()] == ["https://example.org/recipe"]
        assert violations(page) == []
        one.check()


def test_strokes_have_no_gaps_and_a_width(there: Opened) -> None:
    """On 16x16 cells: three around a quick stroke of one event, one by keyboard."""
    page = there.page
    draw(there, "a red heart")
    page.evaluate("import('/static/common.js').then(({ shared }) => { shared.model.grid = [16, 16]; })")
    page.locator("#grid .tile").first.click()
    page.click("#mask-on")
    page.keyboard.press("Space")
    assert page.evaluate(CELLS) == [[0, 0]]
    page.click("#clear")
    box = page.locator("#mask").bounding_box()
    side = box["width"] / 16
    page.mouse.move(box["x"] + 2.5 * side, box["y"] + 5.5 * side)
    page.mouse.down()
    page.mouse.move(box["x"] + 11.5 * side, box["y"] + 5.5 * side)
    page.mouse.up()
    found: list[Any] = page.evaluate(CELLS)
    assert {tuple(cell) for cell in found} >= {(5, column) for column in range(2, 12)}
    assert {row for row, _ in found} <= {4, 5, 6} and {column for _, column in found} <= set(range(1, 13))
    page.mouse.move(box["x"] + 2.5 * side, box["y"] + 12.5 * side)  # another stroke begins where it is put down
    page.mouse.down()
    page.mouse.up()
    assert not {(row, column) for row, column in page.evaluate(CELLS) if 7 <= row <= 10}
