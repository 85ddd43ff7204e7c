"""The page in a browser where something is missing: images that are gone, late answers, disabled fields, low limits."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle.pipelines.text_to_image import TextToImage
from support.browser import Opened, opened
from support.server import Running, running, running_whole

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tiny_model: Path, tiny_pipe: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With an index and an unCLIP, and two images at a time."""
    photos = [noise(seed) for seed in range(3)]
    with running_whole(tiny_model, tiny_pipe, tmp_path_factory.mktemp("served"), photos, max_n=2) as one:
        yield one


@pytest.fixture
def there(browser: Any, served: Running) -> Iterator[Opened]:
    with opened(browser, served.url) as one:
        one.go()
        # Of the URLs of files, those that are held
        one.page.evaluate(
            """() => {
                const held = window.held = new Set(), { createObjectURL, revokeObjectURL } = URL;
                URL.createObjectURL = (file) => { const url = createObjectURL(file); held.add(url); return url; };
                URL.revokeObjectURL = (url) => { held.delete(url); revokeObjectURL(url); };
            }"""
        )
        yield one


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def png(seed: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    noise(seed).save(buffer, "PNG")
    return {"name": f"{seed}.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def search(page: Any, words: str) -> None:
    page.click("#tab-search")
    page.fill("#query", words)
    page.press("#query", "Enter")


def test_an_image_that_is_gone_hides_no_others(there: Opened) -> None:
    page = there.page
    page.route("**/v1/search/images/1", lambda route: route.fulfill(status=404, json={"error": {"message": "gone"}}))
    search(page, "a red heart")
    page.wait_for_selector("#hits .tile:nth-child(3)")
    assert sorted(text.split()[0] for text in page.locator("#hits .tile").all_inner_texts()) == ["fits", "fits", "gone"]
    page.wait_for_function("held.size === 0")
    assert page.inner_text("#message") == ""


def test_hits_of_a_siglip_have_its_probability(there: Opened) -> None:
    page = there.page
    hit = {"path": "a.png", "score": 0.012, "probability": 0.75, "caption": "", "number": 0}
    page.route("**/v1/search", lambda route: route.fulfill(json={"data": [hit, hit | {"probability": None}]}))
    search(page, "a red heart")
    page.wait_for_selector("#hits .tile:nth-child(2)")
    assert page.locator("#hits .tile").all_inner_texts() == ["fits 0.750", "fits 0.012"]
    there.check()


def test_a_late_answer_does_not_replace_that_of_a_later_search(there: Opened) -> None:
    page, late = there.page, []

    def answer(route: Any) -> None:
        late.append(route) if route.request.post_data_json["text"] == "slow" else route.continue_()

    page.route("**/v1/search", answer)
    search(page, "slow")
    search(page, "a red heart")
    page.wait_for_selector("#hits .tile:nth-child(3)")
    with page.expect_response("**/v1/search") as answered:
        late[0].fulfill(json={"data": []})
    answered.value.finished()
    page.evaluate("new Promise((resolve) => { setTimeout(resolve); })")  # after what follows the answer
    assert page.locator("#hits .tile").count() == 3 and page.inner_text("#found") == ""
    there.check()


def test_variations_keep_to_the_limit_and_are_not_drawn_by_their_label(there: Opened) -> None:
    page = there.page
    page.click("#tab-unclip")
    page.set_input_files("#vary-image", png(1))
    for button, label in (("#vary-go", "a variation"), ("#blend-go", "a blend")):
        page.set_input_files("#first-image", png(1))
        page.fill("#second-text", "a red heart")
        page.click(button)
        page.wait_for_selector(f"#varied .tile:nth-child(2) img[alt='{label}']")
        assert page.locator("#varied .tile").count() == 2
        page.locator("#varied .tile").first.click()
        assert label in page.inner_text("#caption") and page.get_attribute("#large-image", "alt") == label
        page.click("#close")
    page.locator("#varied .tile").first.click()
    there.check()
    page.click("#more")
    page.wait_for_selector("#large", state="hidden")  # after the prompt is set
    assert page.input_value("#prompt") == ""


def test_files_dropped_on_a_field_are_its_own(there: Opened) -> None:
    page = there.page
    page.click("#tab-paint")
    drop = """(element) => {
        const data = new DataTransfer();
        data.items.add(new File(["no image"], "a.png", { type: "image/png" }));
        const event = (type) => new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true });
        return ["dragover", "drop"].map((type) => !element.dispatchEvent(event(type)));  // whether the page takes it
    }"""
    assert page.locator("#paint-image").evaluate(drop) == [False, False]
    assert page.is_visible("#paint") and page.inner_text("#message") == ""
    assert page.locator("#paint-prompt").evaluate(drop) == [True, True]
    page.wait_for_selector("#message:has-text('a.png is no image that can be read')")
    assert page.is_visible("#draw")
    page.set_input_files("#open", png(2))
    page.wait_for_selector("#grid .tile img")
    page.wait_for_function("held.size === 0")
    there.check()


def test_a_link_with_candidates_is_drawn_without_a_clip(browser: Any, tiny_model: Path) -> None:
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    pipe.clip = None
    with running(tiny_model, pipe) as served, opened(browser, served.url) as one:
        page = one.page
        page.goto(f"{served.url}/#prompt=a+red+heart&seed=7&n=1&candidates=8")
        page.wait_for_selector("#history li")
        assert page.is_disabled("#candidates")
        kept = json.loads(page.evaluate("localStorage.getItem('dalle.history')"))
        assert "candidates" not in kept[0]["values"]
        one.check()
