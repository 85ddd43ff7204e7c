"""The tiny model that many tests stand on, made once a session with random weights; what must differ is in a copy."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

import dalle
from dalle.models.clip import CLIP
from dalle.pipelines.text_to_image import TextToImage
from support.tiny_model import make_tiny_model

# `dalle sample` sets it for its process, which is that of all tests that follow: they would go without native kernels
os.environ["DALLE_COMPILE_IN_BACKGROUND"] = ""


def pytest_configure() -> None:
    """Processes of pytest-xdist share the cores, as do those that they start: more threads only wait for each other."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A report goes to pytest-xdist's main process as UTF-8, and some tests write names and texts that are not."""
    return _as_utf_8((yield))


def _as_utf_8(data: Any) -> Any:
    """The same with escapes for lone surrogates in all texts."""
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {_as_utf_8(key): _as_utf_8(value) for key, value in data.items()}
    return type(data)(map(_as_utf_8, data)) if type(data) in (list, tuple) else data


def pytest_collection_finish() -> None:
    """What was imported stays: looking for garbage among it again and again would take a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, clip/, image_tokenizer/ and text_tokenizer/, to be read only."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny")).parent


@pytest.fixture
def tiny_copy(tiny_parts: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_parts` of its own, to be changed: parts/ in the test's folder."""
    return shutil.copytree(tiny_parts, tmp_path / "parts")


@pytest.fixture(scope="session")
def tiny_model(tiny_parts: Path) -> Path:
    """The folder of a DALL-E with CLIP, to be read only."""
    return tiny_parts / "model"


@pytest.fixture(scope="module")
def tiny_pipe(tiny_model: Path) -> TextToImage:
    """The same as a pipeline on the CPU."""
    return TextToImage.from_pretrained(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def tiny_clip(tiny_parts: Path) -> CLIP:
    """The same model's CLIP."""
    return dalle.load_clip(tiny_parts / "clip")
