"""Painting on tiny random models: it comes nearer, the same seed paints the same, and what each option promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import dalle
from dalle.apps.vqgan_clip.api import load_painter
from dalle.apps.vqgan_clip.camera import move_camera
from dalle.apps.vqgan_clip.optimize import OPTIMIZERS
from dalle.apps.vqgan_clip.options import PaintOptions
from dalle.apps.vqgan_clip.state import override_options, read_state, restore, save_state
from support.tiny_model import IMAGE_SIZE, make_tiny_model

PROMPT = "a red heart:1 | a blue circle:-0.2"


def options(folder: Path, **given: Any) -> PaintOptions:
    usual = {
        "prompt": PROMPT,
        "steps": 6,
        "cutouts": 4,
        "augment": "affine,noise",
        "clip": (str(folder / "clip"),),
        "lr": 0.1,
    }
    if given.get("drawer", "vqgan") == "vqgan":
        usual["image_tokenizer"] = str(folder / "image_tokenizer")
    return PaintOptions(**(usual | given))


def painted(settings: PaintOptions) -> torch.Tensor:
    painter = load_painter(settings, "cpu")
    for _ in painter.run():
        pass
    return painter.image()


@pytest.mark.parametrize("drawer", ["vqgan", "pixels", "fft"])
def test_loss_falls(tiny_parts: Path, drawer: str) -> None:
    painter = load_painter(
        options(tiny_parts, drawer=drawer, steps=20, augment="none", cutout=("whole",), cutouts=1), "cpu"
    )
    totals = [losses["loss"] for losses in painter.run()]
    assert sum(totals[-5:]) / 5 < totals[0]


@pytest.mark.parametrize("drawer", ["vqgan", "pixels", "fft"])
def test_images_depend_on_the_seed_and_leave_global_randomness_untouched(tiny_parts: Path, drawer: str) -> None:
    settings = options(tiny_parts, drawer=drawer)
    first = painted(settings)
    painter = load_painter(settings, "cpu")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for _ in painter.run():
        pass
    assert torch.equal(painter.image(), first)
    assert torch.equal(torch.get_rng_state(), before)  # and it leaves others' random numbers alone
    assert not torch.equal(painted(replace(settings, seed=1)), first)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_accumulation_does_not_change_the_image(tiny_parts: Path, batch: int) -> None:
    settings = options(tiny_parts, drawer="pixels")
    assert torch.allclose(painted(replace(settings, cutout_batch=batch)), painted(settings), atol=2e-4)


def test_one_step_equals_autograd_of_the_written_out_loss(tiny_parts: Path) -> None:
    """One step against the losses written out, by plain autograd and plain Adam."""
    settings = options(
        tiny_parts, drawer="pixels", augment="none", cutout=("whole",), tv=0.3, saturation=0.2, init_weight=2.0, lr=0.01
    )
    painter = load_painter(settings, "cpu")
    clip = painter.objectives[0].clip
    values = painter.canvas.values.detach().clone().requires_grad_()
    adam = torch.optim.Adam([values], lr=0.01)
    start = values.detach().clone()
    for step in range(3):
        cut = F.interpolate(values, (8, 8), mode="bilinear", antialias=True)
        seen, wanted = clip.encode_image(cut), clip.encode_text(["a red heart", "a blue circle"])
        distance = ((seen[:, None] - wanted).norm(dim=2) / 2).arcsin().square() * 2 @ torch.tensor([1.0, -0.2])
        tv = values.diff(dim=2).square().mean() + values.diff(dim=3).square().mean()
        saturation = (values.amax(1) - values.amin(1)).mean()
        away = (values - start).square().mean() * 0.5 ** (step / 50)
        loss = distance.mean() + 0.3 * tv - 0.2 * saturation + 2 * away
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            values.clamp_(0, 1)
        assert painter.take_step()["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert torch.allclose(painter.canvas.values, values, atol=1e-4)


def test_several_clips_have_equal_weight(tiny_parts: Path) -> None:
    """Twice the same CLIP is that CLIP."""
    one = options(tiny_parts, drawer="pixels", augment="none", cutout=("whole",))
    assert torch.allclose(painted(replace(one, clip=one.clip * 2)), painted(one), atol=1e-5)


def test_images_may_differ_from_the_tokenizers_size(tiny_parts: Path) -> None:
    assert painted(options(tiny_parts, size="24x40", steps=1)).shape == (1, 3, 40, 24)
    assert painted(options(tiny_parts, size="48x20", tile=16, steps=1)).shape == (1, 3, 20, 48)
    assert painted(options(tiny_parts, drawer="fft", size="7x5", steps=1)).shape == (1, 3, 5, 7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_changes_the_canvas(tiny_parts: Path, name: str) -> None:
    painter = load_painter(options(tiny_parts, drawer="pixels", optimizer=name, steps=2), "cpu")
    start = painter.canvas.values.detach().clone()
    assert all(torch.isfinite(torch.tensor(losses["loss"])) for losses in painter.run())
    assert not torch.equal(painter.canvas.values, start)


def image_file(path: Path, color: str = "green", size: tuple[int, int] = (30, 20)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def test_only_white_mask_pixels_change(tiny_parts: Path, tmp_path: Path) -> None:
    init = image_file(tmp_path / "init.png", size=(16, 16))
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    mask.save(tmp_path / "mask.png")
    made = painted(options(tiny_parts, init=init, mask=tmp_path / "mask.png", steps=8, lr=1.0))
    green = torch.tensor([0, 128 / 255, 0])[:, None, None]
    assert torch.allclose(made[0, :, :, :8], green.expand(3, 16, 8), atol=1e-6)
    assert not torch.allclose(made[0, :, :, 8:], green.expand(3, 16, 8), atol=0.05)


def test_large_init_weight_stays_near_the_start_image(tiny_parts: Path, tmp_path: Path) -> None:
    init = image_file(tmp_path / "init.png")
    free = options(tiny_parts, drawer="pixels", init=init, steps=20)
    start = load_painter(free, "cpu").image()
    held = replace(free, init_weight=1000.0, init_decay=0)
    assert (painted(held) - start).abs().mean() < 0.5 * (painted(free) - start).abs().mean()


def test_image_and_noise_prompts_are_embeddings(tiny_parts: Path, tmp_path: Path) -> None:
    reference = image_file(tmp_path / "ref.png", "red", (9, 9))
    given = {"prompt": "a heart ^ a star", "image_prompt": (f"{reference}:0.4",), "noise_prompt": ("5:0.1",)}
    objective = load_painter(options(tiny_parts, **given), "cpu").objectives[0]
    assert [len(phase) for phase in objective.targets] == [3, 3]
    assert objective.weights[0].tolist() == pytest.approx([1, 0.4, 0.1])
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 8, 8)
    assert torch.allclose(objective.targets[1][1], objective.clip.encode_image(red)[0], atol=1e-5)
    assert float(objective.targets[0][2].norm()) == pytest.approx(1)
    only = load_painter(options(tiny_parts, prompt="", noise_prompt=("5",)), "cpu")
    assert [len(phase) for phase in only.objectives[0].targets] == [1]


def test_prompt_phases_change_the_image(tiny_parts: Path) -> None:
    both = painted(options(tiny_parts, prompt="a red heart ^ two green stars", drawer="pixels"))
    first = painted(options(tiny_parts, prompt="a red heart", drawer="pixels"))
    assert not torch.equal(both, first)
    assert torch.equal(painted(options(tiny_parts, prompt="a red heart ^ a red heart", drawer="pixels")), first)


# ---- going on


@pytest.mark.parametrize(
    "given",
    [{}, {"drawer": "fft", "optimizer": "rmsprop"}, {"zoom": 1.05, "frame_every": 2}, {"mask": True}],
    ids=["vqgan", "fft", "moving", "masked"],
)
def test_resuming_from_a_state_equals_an_uninterrupted_run(
    tiny_parts: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    if given.pop("mask", False):
        Image.linear_gradient("L").resize((16, 16)).save(tmp_path / "mask.png")
        given |= {"init": image_file(tmp_path / "init.png", size=(16, 16)), "mask": tmp_path / "mask.png"}
    settings = options(tiny_parts, **given)
    expected = painted(settings)
    first = load_painter(settings, "cpu")
    for _ in range(3):
        first.take_step()
    save_state(first, tmp_path / "state.safetensors")
    for file in ("init.png", "mask.png"):  # the state holds what it needs of them
        (tmp_path / file).unlink(missing_ok=True)
    state = read_state(tmp_path / "state.safetensors")
    again = load_painter(override_options(state, {}), "cpu", state)
    assert again.step == 3
    for _ in again.run():
        pass
    assert torch.equal(again.image(), expected)
    assert not list(tmp_path.glob(".*"))


def test_state_of_another_model_size_or_start_is_refused(tiny_parts: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    painter = load_painter(options(tiny_parts), "cpu")
    painter.take_step()
    save_state(painter, file)
    state = read_state(file)
    other = make_tiny_model(tmp_path / "other", seed=1).parent
    with pytest.raises(ValueError, match="painted with another image tokenizer"):
        load_painter(override_options(state, {"image_tokenizer": str(other / "image_tokenizer")}), "cpu", state)
    with pytest.raises(ValueError, match="painted with another CLIP 1"):
        load_painter(override_options(state, {"clip": [str(other / "clip")]}), "cpu", state)
    with pytest.raises(ValueError, match="go on with the size"):
        load_painter(override_options(state, {"size": "24x24"}), "cpu", state)
    with pytest.raises(ValueError, match="init is of the beginning"):
        override_options(state, {"init": "x.png"})
    with pytest.raises(ValueError, match="no such state"):
        read_state(tmp_path / "nothing")
    for content in (
        b"",
        b"cut short",
        file.read_bytes()[:300],
        (tiny_parts / "clip" / "model.safetensors").read_bytes(),
    ):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(ValueError, match="is no state of a painting"):
            read_state(tmp_path / "broken")
    restore(painter, state)


# ---- motion


def test_motion_by_whole_pixels_and_quarter_turns_is_exact() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert torch.allclose(move_camera(image, 1, 0, 0, 0), image, atol=1e-5)
    right = move_camera(image, 1, 0, 2, 1)
    assert torch.allclose(right[..., 1:, 2:], image[..., :-1, :-2], atol=1e-5)
    assert torch.allclose(move_camera(image, 1, 90, 0, 0), image.rot90(1, (2, 3)), atol=1e-5)
    flat = move_camera(torch.full((1, 3, 6, 10), 0.25), 1.3, 25, 3, -2)
    assert torch.allclose(flat, torch.full_like(flat, 0.25), atol=1e-6)


def test_zoom_enlarges_the_center_of_rectangular_images() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 81), indexing="ij")
    ball = ((x * 2).square() + y.square() < 0.25).float()[None, None].expand(1, 3, 41, 81)
    grown, turned = move_camera(ball, 1.5, 0, 0, 0), move_camera(ball, 1, 40, 0, 0)
    assert float(grown.sum() / ball.sum()) == pytest.approx(1.5**2, rel=0.05)
    assert float((turned - ball).abs().mean()) < 0.01  # a disc is round still


# ---- in one call


def test_paint_function_returns_image_and_progress(tiny_parts: Path) -> None:
    seen: list[int] = []
    result = dalle.paint(
        PROMPT,
        steps=3,
        cutouts=2,
        augment="none",
        clip=[str(tiny_parts / "clip")],
        image_tokenizer=str(tiny_parts / "image_tokenizer"),
        device="cpu",
        progress=lambda painter, losses: seen.append(painter.step),
    )
    assert result.image.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert seen == [1, 2, 3] and [set(losses) for losses in result.losses] == [{"loss", "clip"}] * 3
    with pytest.raises(ValueError, match=r"cutout_s: unknown key; did you mean cutouts\?"):
        dalle.paint(PROMPT, cutout_s=3)
