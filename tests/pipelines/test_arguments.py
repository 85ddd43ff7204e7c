"""Arguments of Python calls that are of another type or shape: one line that says what is expected, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import dalle
from dalle.pipelines.text_to_image import TextToImage
from dalle.pipelines.unclip import UnCLIP
from support.tiny_unclip import make_tiny_unclip

IMAGE = Image.new("RGB", (16, 16))
Z, NOISE = torch.zeros(1, 8), torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def unclip(tmp_path_factory: pytest.TempPathFactory) -> UnCLIP:
    folder: Path = make_tiny_unclip(tmp_path_factory.mktemp("unclip"))
    return dalle.UnCLIP.from_pretrained(folder, device="cpu")


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (5, {}, "prompts is of type int: give a list of texts, or one text"),
        (None, {}, "prompts is of type NoneType: give a list of texts, or one text"),
        (b"a", {}, "prompts is of type bytes: give a list of texts, or one text"),
        (["a", None], {}, "the prompt is of type NoneType: give a text"),
        ("a", {"seed": 1.5}, "seed is 1.5: give a whole number"),
        ("a", {"seed": "1"}, "seed is '1': give a whole number"),
        ("a", {"seed": None}, "seed is None: give a whole number"),
        ("a", {"n": 2.0}, "n is 2.0: give a whole number"),
        ("a", {"n": True}, "n is True: give a whole number"),
        ("a", {"n": 2, "keep": "1"}, "keep is '1': give a whole number"),
        ("a", {"image": IMAGE, "mask": 3}, "mask is of type int: give a PIL.Image"),
        ("a", {"guidance": "3"}, "guidance is '3'; it must be a number"),
    ],
)
def test_both_pipelines_check_a_call(
    prompts: Any, options: dict[str, Any], message: str, unclip: UnCLIP, tiny_pipe: TextToImage
) -> None:
    for pipe in (unclip, tiny_pipe):
        refused(lambda pipe=pipe: pipe(prompts, **options), message)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative": 5}, "the negative prompt is of type int: give a text"),
        ({"image": IMAGE, "keep_rows": "x"}, "keep_rows is 'x': give a number of rows"),
        ({"size": 5}, "size is 5: give WIDTHxHEIGHT in pixels"),
        ({"size": (16.5, 16)}, "size is (16.5, 16): give WIDTHxHEIGHT"),
        ({"size": (16,)}, "size is (16,): give WIDTHxHEIGHT"),
        ({"window": "x"}, "window is 'x'; it must be a whole number"),
    ],
)
def test_text_to_image_checks_its_own(options: dict[str, Any], message: str, tiny_pipe: TextToImage) -> None:
    refused(lambda: tiny_pipe("a", **options), message)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("__call__", {"prompts": "a", "sampler": "euler"}, "sampler is 'euler'; choose from ddpm, ddim, dpm++"),
        ("blend", {"items": IMAGE}, "items is of type Image: give a list of 2 or more images and texts"),
        ("blend", {"items": "ab"}, "items is of type str: give a list of 2 or more images and texts"),
        ("blend", {"items": [IMAGE, 5]}, "item 2 is of type int: give a PIL.Image or a text"),
        ("blend", {"items": [[IMAGE], "a"]}, "item 1 is of type list: give a PIL.Image or a text"),
        ("blend", {"items": ["a", "b"], "weights": ["1", "2"]}, "a weight is '1': give a number"),
        ("blend", {"items": ["a", "b"], "weights": "12"}, "weights is of type str: give a list of numbers"),
        ("blend", {"items": ["a", "b"], "weights": 1}, "weights is of type int: give a list of numbers"),
        ("blend", {"items": ["a", "b"], "frames": 2.5}, "frames is 2.5: give a whole number"),
        ("blend", {"items": ["a", "b"], "steps": None}, "steps is None; it must be a whole number"),
        ("edit", {"image": IMAGE, "before": ["a"], "after": "b"}, "the text is of type list: give a text"),
        ("edit", {"image": IMAGE, "before": "a", "after": None}, "the text is of type NoneType: give a text"),
        ("edit", {"image": [IMAGE], "before": "a", "after": "b"}, "image is of type list: give a PIL.Image"),
        ("edit", {"image": IMAGE, "before": "a", "after": "b", "theta": "0.5"}, "theta is '0.5': give a number"),
        ("edit", {"image": IMAGE, "before": "a", "after": "b", "theta": [None]}, "theta is None: give a number"),
        ("vary", {"image": [IMAGE, IMAGE]}, "image is of type list: give a PIL.Image"),
        ("vary", {"image": IMAGE, "n": 1.5}, "n is 1.5: give a whole number"),
        ("vary", {"image": IMAGE, "eta": None}, "eta is None; it must be a number"),
        ("embed", {"prompts": ["a", 3]}, "the prompt is of type int: give a text"),
        ("embed", {"prompts": "a", "negative": 3}, "the negative prompt is of type int: give a text"),
        ("embed", {"prompts": "a", "noise": NOISE}, "noise is of type Tensor: give a function"),
        ("embed_images", {"images": 5}, "image is of type int: give a PIL.Image"),
        ("embed_images", {"images": [IMAGE, None]}, "image is of type NoneType: give a PIL.Image"),
        ("invert", {"images": IMAGE, "z": None}, "z is of type NoneType: give embeddings"),
        ("invert", {"images": IMAGE, "z": Z, "iterations": 1.5}, "iterations is 1.5: give a whole number"),
        ("reconstruct", {"z": Z, "noise": NOISE[:, :2]}, "noise is torch.float32 [1, 2, 8, 8]"),
        ("reconstruct", {"z": Z, "noise": NOISE.expand(2, -1, -1, -1)}, "give floating-point numbers [1, 3, 8, 8]"),
        ("reconstruct", {"z": Z.expand(2, -1), "noise": NOISE}, "give floating-point numbers [2, 3, 8, 8]"),
        ("reconstruct", {"z": Z, "noise": NOISE.long()}, "noise is torch.int64 [1, 3, 8, 8]"),
        ("reconstruct", {"z": Z, "noise": None}, "noise is of type NoneType: give a tensor [1, 3, 8, 8]"),
        ("decode", {"z": [[0.0] * 8]}, "z is of type list: give embeddings"),
        ("decode", {"z": Z.long()}, "z is torch.int64: give embeddings"),
        ("decode", {"z": Z, "prompts": [None]}, "the prompt is of type NoneType: give a text"),
        ("decode", {"z": Z, "prompts": 5}, "prompts is of type int: give a list of texts"),
        ("decode", {"z": Z, "seed": 1.5}, "seed is 1.5: give a whole number"),
        ("decode", {"z": Z, "noise": NOISE}, "noise is of type Tensor: give a function"),
    ],
)
def test_unclip_checks_its_own(method: str, given: dict[str, Any], message: str, unclip: UnCLIP) -> None:
    refused(lambda: getattr(unclip, method)(**given), message)


def test_noise_of_another_shape_is_refused(unclip: UnCLIP) -> None:
    """One row of noise would be stretched over all images in silence."""

    def one_row(_stage: str, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(1, *shape[1:])

    refused(
        lambda: unclip.decode(Z.expand(2, -1), noise=one_row),
        "the noise of the decoder is torch.float32 [1, 3, 8, 8]: give floating-point numbers [2, 3, 8, 8]",
    )
    refused(lambda: unclip.embed("a", noise=one_row), "the noise of the prior is torch.float32 [1, 8]")


def test_numbers_and_lists_of_other_libraries_are_taken(unclip: UnCLIP, tiny_pipe: TextToImage) -> None:
    np = pytest.importorskip("numpy")
    (result,) = tiny_pipe(("a",), n=np.int64(1), seed=np.int64(3), size=[16, 16])
    assert result.images[0].tobytes() == tiny_pipe("a", seed=3)[0].images[0].tobytes()
    (one,) = unclip.blend((IMAGE, "a"), np.array([1.0, 2.0]), steps=2)
    (same,) = unclip.blend([IMAGE, "a"], [1, 2], steps=2)
    assert one.tobytes() == same.tobytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": 5}, "the source of weights is of type int: give a path or a hub id"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16': give one of torch, such as torch.bfloat16"),
        ({"device": "toaster"}, "toaster"),
    ],
)
def test_loaders_check_what_they_are_given(given: dict[str, Any], message: str, tiny_model: Path) -> None:
    refused(lambda: dalle.TextToImage.from_pretrained(**{"source": tiny_model, "device": "cpu"} | given), message)
