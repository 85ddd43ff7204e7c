"""The page in a browser, part by part: stop, going on, masks by mouse, history, tabs, seeds, tokens, accessibility."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.apps.vqgan_clip.optimize import Painter
from dalle.pipelines.init_image import InitImage
from dalle.pipelines.text_to_image import TextToImage
from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig
from support.browser import Opened, draw, opened, pixels, violations
from support.published.language_models import byte_level
from support.server import Pause, Running, running, running_whole
from support.tiny_model import GRID, IMAGE_SIZE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tiny_model: Path, tiny_pipe: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With all there is: an index, a CLIP, an unCLIP."""
    with running_whole(tiny_model, tiny_pipe, tmp_path_factory.mktemp("served"), [picture(i) for i in range(5)]) as one:
        yield one


@pytest.fixture
def there(browser: Any, served: Running) -> Iterator[Opened]:
    with opened(browser, served.url) as one:
        one.go()
        yield one


def picture(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((64, 64), Image.Resampling.NEAREST)


def png(seed: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return {"name": f"{seed}.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def kept_rows(pipe: TextToImage, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What each later call keeps of an image, [h, w]."""
    found: list[torch.Tensor] = []
    original = pipe.encode_init_image

    def recorded(*args: Any) -> InitImage | None:
        given = original(*args)
        if given is not None:
            found.append(given.known_mask)
        return given

    monkeypatch.setattr(pipe, "encode_init_image", recorded)
    return found


def test_stop_ends_generation_and_the_next_request_runs(there: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    pause, page = Pause(monkeypatch, 6), there.page
    page.fill("#prompt", "a red heart")
    page.click("#go")
    page.wait_for_selector("#grid .tile img")  # rows appear
    assert pause.reached.wait(120) and page.is_visible("#progress") and page.is_disabled("#go")
    page.click("#stop")
    page.wait_for_selector("#status:text-is('Stopped.')")
    assert page.is_hidden("#stop") and page.is_enabled("#go") and page.locator("#history li").count() == 0
    first = page.locator("#grid .tile").first
    assert "stopped" in first.inner_text() and page.is_visible("#grid + .click")  # what was drawn stays
    first.click()
    assert page.is_visible("#large")
    page.click("#close")
    pause.go.set()
    draw(there, "a red heart")
    last = GRID[0] * GRID[1] - 1
    assert sum(last in seen for seen in pause.seen) == 1  # of the second one: the first was broken off
    there.check()


def test_tiles_without_an_image_are_square_in_a_row_of_their_own(there: Opened) -> None:
    width, height = there.page.locator("#grid").evaluate(
        """grid => {
            const tile = document.createElement("button");
            tile.className = "tile";
            grid.append(tile);
            const { width, height } = tile.getBoundingClientRect();
            tile.remove();
            return [width, height];
        }"""
    )
    assert width == pytest.approx(height, abs=1)


def test_more_like_this_and_from_the_top_half_keep_rows(
    there: Opened, tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, page = kept_rows(tiny_pipe, monkeypatch), there.page
    draw(there, "a red heart")
    for number, (button, rows) in enumerate({"#more": 1, "#half": 2}.items(), 2):
        page.locator("#grid .tile").first.click()
        first = there.file()
        page.click(button)
        page.wait_for_selector(f"#history li:nth-child({number})")
        page.locator("#grid .tile").first.click()
        assert found[-1].int().sum(1).tolist() == [GRID[1]] * rows + [0] * (GRID[0] - rows)
        image = Image.open(io.BytesIO(there.file()))
        assert json.loads(image.text["options"])["keep_rows"] == rows / GRID[0]  # type: ignore[attr-defined]
        assert not torch.equal(pixels(there.file()), pixels(first))
        page.click("#close")
    there.check()


def test_mask_painted_with_the_mouse_is_inpainted(
    there: Opened, tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, page = kept_rows(tiny_pipe, monkeypatch), there.page
    draw(there, "two green stars")
    page.locator("#grid .tile").first.click()
    before = pixels(there.file())
    page.click("#mask-on")
    box = page.locator("#mask").bounding_box()
    side = box["width"] / GRID[1]
    page.mouse.move(box["x"] + 1.5 * side, box["y"] + 1.5 * side)  # a stroke from cell (1, 1) to (1, 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 2.5 * side, box["y"] + 1.5 * side, steps=4)
    page.mouse.up()
    page.click("#anew")
    page.wait_for_selector("#history li:nth-child(2)")
    assert (~found[-1]).nonzero().tolist() == [[1, 1], [1, 2]]
    page.locator("#grid .tile").first.click()
    step = IMAGE_SIZE // GRID[0]
    changed = (pixels(there.file()) != before).any(2)
    outside = changed.clone()
    outside[step : 2 * step, step : 3 * step] = False
    assert not outside.any()
    there.check()


def test_history_reproduces_an_image_exactly(there: Opened, browser: Any, served: Running) -> None:
    page = there.page
    draw(there, "लाल दिल", seed="9007199254740995", temperature="0.9", n="2")  # above 2^53
    page.locator("#grid .tile").nth(1).click()
    drawn = there.file()
    assert Image.open(io.BytesIO(drawn)).text["seed"] == "9007199254740996"  # type: ignore[attr-defined]
    assert "seed 9007199254740996" in page.inner_text("#caption")
    page.click("#close")
    link = page.locator("#history a").first.get_attribute("href")
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    assert page.locator("#history li").count() == 1  # kept in the browser
    with opened(browser, served.url) as other:  # somebody else's browser
        other.page.goto(f"{served.url}/{link}")
        other.page.wait_for_selector("#history li")
        other.page.locator("#grid .tile").nth(1).click()
        assert torch.equal(pixels(other.file()), pixels(drawn))
        other.check()
    there.check()


def test_negative_prompt_is_used_and_comes_back_from_the_file(browser: Any, tiny_model: Path) -> None:
    words = byte_level(["<pad>"], 290).to_str().encode()
    config = JSONTokenizerConfig(vocab_size=300, negative_template="{}")
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    pipe.text_tokenizer = JSONTokenizer(config, words)
    wanted = [pipe("a fox", seed=7, guidance=3, negative=text)[0].images[0] for text in ("blurry", None)]
    with running(tiny_model, pipe) as served, opened(browser, served.url) as one:
        page = one.go()
        draw(one, "a fox", guidance="3", negative="blurry")
        page.locator("#grid .tile").first.click()
        drawn = one.file()
        page.click("#close")
        draw(one, "a fox", guidance="3", negative="")
        page.locator("#grid .tile").first.click()
        for image, file in zip(wanted, (drawn, one.file()), strict=True):
            assert image.tobytes() == Image.open(io.BytesIO(file)).convert("RGB").tobytes()
        assert drawn != one.file()
        page.click("#close")
        page.set_input_files("#open", {"name": "mine.png", "mimeType": "image/png", "buffer": drawn})
        page.wait_for_selector("#status:text-is('Its options are back.')")
        assert page.input_value("#negative") == "blurry" and page.input_value("#guidance") == "3"
        one.check()


def test_negative_prompt_of_another_model_is_refused_and_can_be_cleared(there: Opened) -> None:
    page = there.page
    page.locator("#options").evaluate("element => { element.open = true; }")
    assert page.is_visible("#temperature") and page.is_hidden("#negative")
    page.evaluate("location.hash = new URLSearchParams({ prompt: 'a red heart', negative: 'blurry' })")
    page.wait_for_selector("#message:has-text('takes no negative prompt')")
    page.fill("#negative", "")
    page.click("#go")
    page.wait_for_selector("#history li")


def test_search_and_classify_tabs_show_results(there: Opened) -> None:
    page = there.page
    page.click("#tab-search")
    page.fill("#query", "a red heart")
    page.press("#query", "Enter")
    page.wait_for_selector("#hits .tile:nth-child(5) img")
    assert all(text.startswith("fits ") for text in page.locator("#hits .tile").all_inner_texts())
    page.click("#tab-classify")
    page.set_input_files("#classify-image", png(1))
    page.wait_for_selector("#classify-image + img")  # what was chosen is shown
    page.set_input_files("#classify-image", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_selector("#classify-image + img", state="hidden")
    page.set_input_files("#classify-image", png(1))
    page.fill("#labels", "heart, लाल, star")
    page.press("#labels", "Enter")
    page.wait_for_selector("#classes li:nth-child(3)")
    shown = [text.rsplit(": ", 1) for text in page.locator("#classes li").all_inner_texts()]
    assert {name for name, _ in shown} == {"heart", "लाल", "star"}
    assert sum(float(share.removesuffix(" %")) for _, share in shown) == pytest.approx(100, abs=0.2)
    page.fill("#labels", "heart")
    page.press("#labels", "Enter")
    page.wait_for_selector("#message:has-text('labels')")


def test_paint_tab_shows_steps_and_stops(there: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step, reached, go, end = Painter.take_step, threading.Event(), threading.Event(), threading.Event()

    def slow(self: Painter) -> dict[str, float]:
        if self.step == 12:
            reached.set()
            assert (end if go.is_set() else go).wait(120)  # the second painting must not end before it is stopped
        return take_step(self)

    monkeypatch.setattr(Painter, "take_step", slow)
    page = there.page
    page.click("#tab-paint")
    page.fill("#paint-prompt", "a red heart")
    page.fill("#paint-seed", "5")
    page.set_input_files("#paint-image", png(2))
    page.press("#paint-prompt", "Enter")
    page.wait_for_selector("#painting img")
    assert reached.wait(120)
    page.wait_for_selector("#paint-progress[value='0.1']")
    page.click("#paint-stop")
    page.wait_for_selector("#paint-status:text-is('Stopped.')")
    go.set()
    page.click("#painting")
    texts = Image.open(io.BytesIO(there.file())).text  # type: ignore[attr-defined]
    assert (texts["seed"], texts["step"], texts["prompt"]) == ("5", "10", "a red heart")
    page.click("#close")
    page.select_option("#preset", "best")
    page.click("#paint-go")  # a client has one at a time, and the first has ended
    page.wait_for_selector("#paint-status:has-text('left')")
    page.click("#paint-stop")
    page.wait_for_selector("#paint-status:text-is('Stopped.')")
    end.set()
    there.check()


def test_variations_tab_shows_variations_and_blends(there: Opened) -> None:
    page = there.page
    page.click("#tab-unclip")
    page.set_input_files("#vary-image", png(1))
    page.click("#vary-go")
    page.wait_for_selector("#varied .tile:nth-child(4) img")
    page.set_input_files("#first-image", png(1))
    page.fill("#second-text", "a red heart")
    page.click("#blend-go")
    page.wait_for_selector("#varied .tile:nth-child(5) img")
    page.locator("#varied .tile").nth(2).click()
    assert "a blend" in page.inner_text("#caption")
    page.click("#close")
    there.check()
    page.fill("#second-text", "")
    page.click("#blend-go")
    page.wait_for_selector("#message:has-text('Give an image or words')")


def test_tabs_are_switched_by_keyboard(there: Opened) -> None:
    page = there.page
    page.focus("#tab-draw")
    names = []
    for _ in range(6):
        names.append(page.evaluate("document.activeElement.textContent"))
        page.keyboard.press("ArrowRight")
    assert names == ["Draw", "Paint", "Variations", "Search", "Classify", "Draw"]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#classify") or page.is_visible("#draw")
    there.check()


def test_token_is_asked_for_and_remembered(
    browser: Any, tiny_model: Path, tiny_pipe: TextToImage, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef-test\n")
    with running(tiny_model, tiny_pipe, token_file=tmp_path / "tokens") as served, opened(browser, served.url) as one:
        page = one.page
        page.goto(served.url)
        page.wait_for_selector("#token")
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        page.wait_for_selector("#message:has-text('the token is wrong')")
        page.fill("#token", "0123456789abcdef-test")
        page.press("#token", "Enter")
        page.wait_for_selector("#model:not(:empty)")
        assert page.is_hidden("#token-form")
        one.go("/docs")  # in the same tab: the token is known


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_have_no_accessibility_violations(browser: Any, served: Running, scheme: str) -> None:
    """Every tab, the large view, the mask and the page of the API, as axe-core sees them."""
    with opened(browser, served.url, color_scheme=scheme, viewport={"width": 390, "height": 800}) as one:
        page = one.go()
        assert violations(page) == []
        draw(one, "लाल दिल")
        assert violations(page) == []
        page.locator("#grid .tile").first.click()
        assert violations(page) == []
        page.click("#mask-on")
        assert violations(page) == []
        page.keyboard.press("Escape")
        for tab in ("paint", "unclip", "search", "classify"):
            page.click(f"#tab-{tab}")
            assert violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        one.check()
        one.go("/docs")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_api_page_lists_and_tries_endpoints(browser: Any, served: Running) -> None:
    with opened(browser, served.url) as one:
        page = one.go("/docs")
        titles = page.locator("summary").all_inner_texts()
        assert {"POST /v1/images/generations", "POST /v1/paint", "GET /v1/models"} <= set(titles)
        box = page.locator("details", has=page.get_by_text("POST /v1/images/generations", exact=True))
        box.locator("summary").click()
        row = box.locator("tr", has=page.get_by_text("seed", exact=True))
        assert "Seed of the first image" in row.inner_text() and "integer, from 0 below 2^63" in row.inner_text()
        box.locator("button").click()
        box.locator("pre:has-text('b64_json')").wait_for()
        box.locator("textarea").fill('{"prompt": "a", "n": 0}')
        box.locator("button").click()
        page.wait_for_selector("#message:has-text('n: ')")
        assert one.hosts == {served.url.removeprefix("http://"), "data"} or one.hosts == {
            served.url.removeprefix("http://")
        }
