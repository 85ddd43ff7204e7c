"""The calls of docs/serve.md work as they are written there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import dalle
from dalle.apps.search import ImageIndex
from dalle.files import ROOT
from support.server import Running, running
from support.tiny_model import IMAGE_SIZE

DOCS = (ROOT / "docs/serve.md").read_text("utf-8")


@pytest.fixture(scope="module")
def served(tiny_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With an index, under whose name it does not matter."""
    root = tmp_path_factory.mktemp("served")
    (root / "photos").mkdir()
    for color in ("red", "green", "blue"):
        Image.new("RGB", (16, 16), color).save(root / "photos" / f"{color}.png")
    ImageIndex.build(root / "photos.index", root / "photos", clip=dalle.load_clip(tiny_parts / "clip"))
    with running(tiny_parts / "model", index=root / "photos.index") as one:
        yield one


def commands() -> list[str]:
    """The calls of curl that need nothing else than `dalle serve --index`, each with its next lines."""
    blocks = re.findall(r"^```\n(curl .*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_calls_of_curl_work_as_they_are_written(served: Running, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is missing: apt-get install curl")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    said = []
    for command in commands():
        own = command.replace("http://127.0.0.1:8000", served.url)
        found = subprocess.run(
            ["bash", "-o", "pipefail", "-c", own], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        said.append(found.stdout)
    drawn, stream, edited, hits, classes = said
    assert drawn == "" and Image.open(tmp_path / "heart.png").size == (IMAGE_SIZE, IMAGE_SIZE)
    for text, kind in ((stream, "image_generation"), (edited, "image_edit")):
        events = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
        assert events == [f"{kind}.partial_image"] * (len(events) - 1) + [f"{kind}.completed"] and len(events) > 1
    assert len(json.loads(hits)["data"]) == 3
    assert {one["label"] for one in json.loads(classes)["data"][0]["labels"]} == {"heart", "dog", "tree"}


def test_call_of_openais_client_works_as_it_is_written(served: Running) -> None:
    (block,) = [
        text for text in re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL) if "OpenAI(" in text
    ]
    names: dict[str, object] = {}
    exec(block.replace("http://127.0.0.1:8000", served.url), names)  # noqa: S102, our own text
    answer = names["answer"]
    assert len(answer.data) == 2 and all(one.score is not None for one in answer.data)  # type: ignore[attr-defined]
