"""A candidate is the same alone or in a batch; what is kept of an image is kept; wrong options are one line."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from dalle.checkpoints import components
from dalle.checkpoints.model_folder import write_config
from dalle.config import read_yaml
from dalle.device import pick_device
from dalle.generation.rerank import score
from dalle.images.transforms import inpaint_pixels, square_tensor
from dalle.pipelines.init_image import whole_rows
from dalle.pipelines.prompts import encode_prompts
from dalle.pipelines.result import Result
from dalle.pipelines.text_to_image import TextToImage
from support.tiny_model import CODES, GRID, IMAGE_SIZE, make_tiny_model


@pytest.fixture
def no_clip(tiny_pipe: TextToImage) -> TextToImage:
    return TextToImage(tiny_pipe.model, tiny_pipe.text_tokenizer, tiny_pipe.image_tokenizer)


def pixels(image: Image.Image) -> Tensor:
    """PIL -> int [H, W, 3]."""
    return torch.tensor([image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]).view(
        image.height, image.width, -1
    )


def noise(size: int = IMAGE_SIZE, seed: int = 0) -> Image.Image:
    values = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def by_seed(result: Result) -> dict[int, Image.Image]:
    return dict(zip(result.seeds, result.images, strict=True))


def test_default_options_come_from_the_model_folder(tiny_pipe: TextToImage, tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    content = read_yaml(copy / "config.yaml")
    own = {"guidance": 3.0, "temperature": 0.7, "top_k": 5}
    write_config(copy, content | {"sampling": own})
    tuned = TextToImage.from_pretrained(copy, device="cpu")
    assert tuned.model_hash == tiny_pipe.model_hash
    drawn, explicit = tuned("a red heart", n=4)[0], tiny_pipe("a red heart", n=4, **own)[0]
    assert torch.equal(drawn.codes, explicit.codes)
    assert not torch.equal(drawn.codes, tiny_pipe("a red heart", n=4)[0].codes)
    undone = tuned("a red heart", n=4, guidance=1.0, temperature=1.0, top_k=CODES)[0]
    assert torch.equal(undone.codes, tiny_pipe("a red heart", n=4)[0].codes)
    write_config(copy, content | {"sampling": own | {"top_k": 0}})
    with pytest.raises(ValueError, match="top_k is 0"):
        TextToImage.from_pretrained(copy, device="cpu")


def test_results_have_seeds_codes_images_and_scores(tiny_pipe: TextToImage) -> None:
    results = tiny_pipe(["a red heart", "", "लाल दिल"], n=3, keep=2, seed=5)
    assert [r.prompt for r in results] == ["a red heart", "", "लाल दिल"]
    for result in results:
        assert len(result.images) == len(result.seeds) == 2
        assert result.codes.shape == (2, *GRID) and result.codes.dtype == torch.int64
        assert result.codes.min() >= 0 and result.codes.max() < CODES
        assert all(image.size == (IMAGE_SIZE, IMAGE_SIZE) and image.mode == "RGB" for image in result.images)
        assert set(result.seeds) <= {5, 6, 7}
        assert result.scores is not None and result.scores == sorted(result.scores, reverse=True)


def test_candidates_do_not_depend_on_the_batch(tiny_pipe: TextToImage) -> None:
    together = tiny_pipe(["a red heart", "two green stars"], n=4, seed=7, guidance=2.0, top_k=12)
    split = tiny_pipe(["a red heart", "two green stars"], n=4, seed=7, guidance=2.0, top_k=12, batch_size=3)
    for one, other in zip(together, split, strict=True):
        assert one.seeds == other.seeds and torch.equal(one.codes, other.codes)
    (alone,) = tiny_pipe("two green stars", seed=9, guidance=2.0, top_k=12)
    assert alone.seeds == [9]
    assert torch.equal(pixels(alone.images[0]), pixels(by_seed(together[1])[9]))
    assert len({tuple(c.flatten().tolist()) for c in together[1].codes}) > 1  # seeds do differ


def test_pixels_do_not_depend_on_the_batch_where_decoding_rounds_by_it(
    tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions of a processor round otherwise in a batch: here by much more than they do."""
    decode = tiny_pipe.image_tokenizer.decode
    monkeypatch.setattr(tiny_pipe.image_tokenizer, "decode", lambda codes: decode(codes) * (1 - 0.1 * (len(codes) - 1)))
    (together,) = tiny_pipe("two green stars", n=4, seed=7)
    for seed, image in by_seed(together).items():
        (alone,) = tiny_pipe("two green stars", seed=seed)
        assert torch.equal(pixels(alone.images[0]), pixels(image))


def test_images_and_scores_belong_to_the_codes(tiny_pipe: TextToImage) -> None:
    (result,) = tiny_pipe("a red heart", n=3, seed=1)
    decoded = tiny_pipe.image_tokenizer.decode(result.codes)
    for tensor, image in zip(decoded, result.images, strict=True):
        assert torch.equal(pixels(image), (tensor * 255).round().to(torch.int64).permute(1, 2, 0))
    assert tiny_pipe.clip is not None and result.scores is not None
    assert result.scores == pytest.approx(score(tiny_pipe.clip, decoded, ["a red heart"] * 3).tolist(), abs=1e-5)


def test_keep_takes_the_best_scores(tiny_pipe: TextToImage) -> None:
    (everything,), (best,) = tiny_pipe("a red heart", n=6), tiny_pipe("a red heart", n=6, keep=2)
    assert best.seeds == everything.seeds[:2] and best.scores == everything.scores[:2]  # type: ignore[index]


def test_without_clip_candidates_stay_in_seed_order(no_clip: TextToImage) -> None:
    (result,) = no_clip("a red heart", n=3, keep=3, seed=4)
    assert result.scores is None and result.seeds == [4, 5, 6]
    with pytest.raises(ValueError, match="no CLIP to choose 2 of 3"):
        no_clip("a red heart", n=3, keep=2)


def test_keep_rows_keeps_the_images_codes(tiny_pipe: TextToImage) -> None:
    image = noise()
    codes = tiny_pipe.image_tokenizer.encode(square_tensor(image, IMAGE_SIZE)[None])[0]
    for keep_rows, rows in ((0.5, 2), (1, 1), (3, 3)):
        (result,) = tiny_pipe("a red heart", n=4, image=image, keep_rows=keep_rows)
        assert (result.codes[:, :rows] == codes[:rows]).all()
        assert len({tuple(c[rows:].flatten().tolist()) for c in result.codes}) > 1


def test_inpainting_changes_masked_pixels_only(tiny_pipe: TextToImage) -> None:
    original, mask = noise(), Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    mask.putpixel((5, 2), 255)  # one pixel: its whole cell is drawn anew, but only it is seen
    mask.paste(255, (8, 8, 16, 16))
    codes = tiny_pipe.image_tokenizer.encode(square_tensor(original, IMAGE_SIZE)[None])[0]
    (result,) = tiny_pipe("a red heart", n=4, image=original, mask=mask)
    kept = torch.ones(GRID, dtype=torch.bool)
    kept[0, 1], kept[2:, 2:] = False, False
    assert (result.codes[:, kept] == codes[kept]).all()
    assert len({tuple(c[~kept].tolist()) for c in result.codes}) > 1
    white = pixels(mask)[..., 0] > 0
    decoded = (tiny_pipe.image_tokenizer.decode(result.codes) * 255).round().to(torch.int64).permute(0, 2, 3, 1)
    for image, own in zip(result.images, decoded, strict=True):
        assert torch.equal(pixels(image)[~white], pixels(original)[~white])
        assert torch.equal(pixels(image)[white], own[white])


def test_downscaled_mask_is_white_where_any_pixel_is() -> None:
    mask = Image.new("1", (50, 32))  # the middle square begins at column 9
    mask.putpixel((9 + 13, 31), 1)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[15, 6] = True
    assert torch.equal(inpaint_pixels(mask, 16), expected)
    assert inpaint_pixels(Image.new("L", (8, 8), 255), 16).all()


def test_images_are_cropped_and_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (2, 0, 4, 4))
    tensor = square_tensor(image, 4)
    assert torch.equal(tensor[:, :, :2], torch.tensor([0.0, 0, 1]).view(3, 1, 1).expand(3, 4, 2))
    assert torch.equal(tensor[:, :, 2:], torch.ones(3, 4, 2))


@pytest.mark.parametrize(
    ("keep_rows", "rows", "whole"), [(0.5, 8, 4), (0.3, 4, 1), (1, 8, 1), (1.0, 8, 1), (7, 8, 7), (0.99, 64, 63)]
)
def test_keep_rows_takes_a_fraction_or_a_count(keep_rows: float, rows: int, whole: int) -> None:
    assert whole_rows(keep_rows, rows) == whole


@pytest.mark.parametrize("keep_rows", [0, -1, 0.05, 0.99, 8, 1.5, float("nan")])
def test_keep_rows_out_of_range_is_refused(keep_rows: float) -> None:
    with pytest.raises(ValueError, match=r"a fraction from 0\.125 to 0\.875, or a whole number of rows from 1 to 7"):
        whole_rows(keep_rows, 8)


WRONG = {
    "no prompt": ({"prompts": []}, "no prompt given"),
    "no candidates": ({"n": 0}, "n is 0"),
    "keep more": ({"n": 2, "keep": 3}, "keep is 3 of n=2"),
    "keep none": ({"keep": 0}, "keep is 0"),
    "seed": ({"seed": -1}, "seed is -1"),
    "huge n": ({"n": 10**9}, "at most 100,000 at a time"),
    "huge seed": ({"seed": 2**63}, "seed is 9223372036854775808"),
    "top_k": ({"top_k": 0}, "top_k is 0"),
    "top_p": ({"top_p": 1.5}, "top_p is 1.5"),
    "temperature": ({"temperature": -1}, "temperature is -1"),
    "guidance": ({"guidance": -2}, "guidance is -2"),
    "batch": ({"batch_size": 0}, "batch_size is 0"),
    "mask alone": ({"mask": Image.new("L", (16, 16), 255)}, "mask needs an image"),
    "rows alone": ({"keep_rows": 2}, "keep_rows needs an image"),
    "image alone": ({"image": noise()}, "either keep_rows or mask"),
    "both": ({"image": noise(), "keep_rows": 1, "mask": Image.new("L", (16, 16), 255)}, "either keep_rows or mask"),
    "mask size": ({"image": noise(), "mask": Image.new("L", (8, 16), 255)}, "mask is 8x16 and image 16x16"),
    "black mask": ({"image": noise(), "mask": Image.new("L", (16, 16))}, "no white pixel"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_give_a_one_line_error(tiny_pipe: TextToImage, name: str) -> None:
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as error:
        tiny_pipe(**({"prompts": "a red heart"} | options))
    assert "\n" not in str(error.value)


def test_long_prompts_are_truncated_with_a_warning(tiny_pipe: TextToImage, caplog: pytest.LogCaptureFixture) -> None:
    long = "a heart in red, " * 20  # of its own, as each cut prompt of a process is told once
    with caplog.at_level(logging.WARNING):
        cut, short = tiny_pipe([long, "a red heart"], seed=3)
    assert len([r for r in caplog.records if "tokens cut to the model's 12" in r.message]) == 1
    read = encode_prompts(tiny_pipe.model, tiny_pipe.text_tokenizer, [long, "a"])  # type: ignore[arg-type]
    assert torch.equal(read[0], tiny_pipe.text_tokenizer.encode([long], tiny_pipe.model.config.text_length)[0])
    assert torch.equal(short.codes, tiny_pipe("a red heart", seed=3)[0].codes)
    assert cut.prompt == long


@pytest.mark.parametrize("blank", ["", "  ", "\n", "\u200b", " \u202e\ufeff"])
def test_a_blank_prompt_is_the_null_caption(tiny_pipe: TextToImage, blank: str) -> None:
    plain, guided = (tiny_pipe([blank, "a red heart"], n=4, guidance=scale) for scale in (1.0, 5.0))
    assert torch.equal(plain[0].codes, guided[0].codes)  # nothing to be guided away from
    (null,) = tiny_pipe("a red heart", n=4, guidance=0.0)  # the null caption alone
    assert torch.equal(plain[0].codes[0], null.codes[null.seeds.index(plain[0].seeds[0])])
    assert not torch.equal(plain[1].codes, guided[1].codes)


def test_progress_reaches_the_end(tiny_pipe: TextToImage) -> None:
    seen: list[tuple[int, int]] = []
    tiny_pipe(["a red heart", "two green stars"], n=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4 * 16, 4 * 16)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_from_pretrained_defaults_to_the_shipped_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "SHIPPED", tmp_path / "absent")
    with pytest.raises(ValueError, match="give the folder of a model"):
        TextToImage.from_pretrained()
    monkeypatch.setattr(components, "SHIPPED", tiny_model)
    half = TextToImage.from_pretrained(device="cpu", dtype=torch.bfloat16)
    assert half.model.image_head.weight.dtype == torch.bfloat16
    assert half.image_tokenizer.last_layer.dtype == torch.float32
    assert len(half.model_hash) == 64 and half.clip is not None
    assert len(half("a red heart")[0].images) == 1


def test_clip_can_be_given(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "plain", clip=False)
    other = make_tiny_model(tmp_path / "ranked", seed=1).parent / "clip"
    assert TextToImage.from_pretrained(model, device="cpu").clip is None
    (result,) = TextToImage.from_pretrained(model, device="cpu", clip=other)("a red heart", n=2, keep=1)
    assert result.scores is not None


def test_parts_must_fit_the_model(tiny_pipe: TextToImage, tmp_path: Path) -> None:
    class Other:
        codebook_size, grid, image_size = 7, GRID, IMAGE_SIZE

    with pytest.raises(ValueError, match="use the one that it was trained with"):
        TextToImage(tiny_pipe.model, tiny_pipe.text_tokenizer, Other())  # type: ignore[arg-type]


def test_pick_device_names_what_is_missing() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ValueError, match="no device 'gpu'"):
        pick_device("gpu")
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="cuda is not available here"):
            pick_device("cuda")
