"""The whole of an unCLIP with random weights: folders, sampling, changes of images, commands."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dalle
import sample
from dalle.__main__ import main
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.unclip import assemble
from dalle.generation.rerank import score
from dalle.images.transforms import inpaint_pixels, square_tensor
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.clip import CLIP
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.unet import UNetConfig
from dalle.models.upsampler import Upsampler, UpsamplerConfig
from dalle.pipelines.unclip import UnCLIP
from support.tiny_configs import clip_config, transformer_config
from support.tiny_unclip import STEPS, saved

ROOT = Path(__file__).parents[3]
TINY = transformer_config(depth=1)
UNET = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[1], head_channels=8)
SHAPE: dict[str, Any] = {"embed_dim": 8, "text_width": 16, "text_length": 12}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as train.py writes them."""
    root = tmp_path_factory.mktemp("unclip")
    clip = CLIP(clip_config(depth=1, text_vocab=4096))
    words = {"text_tokenizer": ROOT / "tokenizers/emoji-bpe"}
    found = {"clip": saved(root / "clip", "clip", clip, 0, words)}
    clips = {"clip": found["clip"]}
    prior = DiffusionPrior(DiffusionPriorConfig(transformer=TINY, **SHAPE))
    found["prior"] = saved(root / "prior", "prior", prior, 1, clips, sampling={"samples": 2} | STEPS)
    tokens = AutoregressivePrior(AutoregressivePriorConfig(transformer=TINY, components=4, buckets=8, **SHAPE))
    found["prior-ar"] = saved(root / "prior-ar", "prior", tokens, 2, clips, sampling={})
    decoder = DiffusionDecoder(DecoderConfig(image_size=8, unet=UNET, context_width=8, **SHAPE))
    options = {"guidance": 2.0} | STEPS
    found["decoder"] = saved(root / "decoder", "diffusion", decoder, 3, clips, sampling=options)
    shape = UNetConfig(channels=8, channel_multipliers=[1, 2], attention_levels=[])
    upsampler = Upsampler(UpsamplerConfig(image_size=16, low_size=8, unet=shape))
    found["upsampler"] = saved(root / "upsampler", "diffusion", upsampler, 4, {}, sampling=STEPS)
    return found


@pytest.fixture(scope="module")
def folder(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "whole"
    assemble(out, parts["prior"], parts["decoder"], parts["upsampler"])
    return out


@pytest.fixture(scope="module")
def pipe(folder: Path) -> UnCLIP:
    return dalle.UnCLIP.from_pretrained(folder, device="cpu")


def picture(seed: int = 0, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_assembled_folder_has_its_clip_once(folder: Path, parts: dict[str, Path]) -> None:
    assert len(list(folder.rglob("model.safetensors"))) == 4
    own = ModelFolder(parts["clip"]).sha256
    for name in ("prior", "decoder"):
        component = ModelFolder(folder).component(name)
        assert component.component("clip").sha256 == own
    assert isinstance(dalle.load_prior(folder / "prior"), DiffusionPrior)  # as when it stood alone
    with pytest.raises(ValueError, match=r"holds an unCLIP with all its parts.*dalle\.UnCLIP"):
        dalle.load_prior(folder)


def test_images_do_not_depend_on_the_batches(pipe: UnCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pipe("a red heart", n=3)[0]
    monkeypatch.setattr(UnCLIP, "_rows_that_fit", lambda self, guided: 2)
    parts = pipe("a red heart", n=3)[0]
    assert parts.seeds == whole.seeds
    for one, other in zip(whole.images, parts.images, strict=True):
        assert abs(values(one) - values(other)).max() <= 1


def test_images_have_scores_and_seeds(pipe: UnCLIP) -> None:
    told: list[tuple[int, int]] = []
    results = pipe(["a red heart", ""], n=3, keep=2, seed=5, progress=lambda *now: told.append(now))
    assert [result.prompt for result in results] == ["a red heart", ""]
    for result in results:
        assert result.scores == sorted(result.scores or [], reverse=True) and result.codes is None
        assert len(set(result.seeds)) == 2 and set(result.seeds) <= {5, 6, 7}
        assert {image.size for image in result.images} == {(16, 16)}
    assert told[-1] == (36, 36) and told == sorted(told)  # 6 candidates, 3 steps twice


def test_scores_of_a_siglip_are_probabilities(folder: Path, tmp_path: Path) -> None:
    judge = CLIP(clip_config(depth=1, text_vocab=4096, sigmoid=True))
    source = saved(tmp_path / "judge", "clip", judge, 5, {"text_tokenizer": ROOT / "tokenizers/emoji-bpe"})
    pipe = UnCLIP.from_pretrained(folder, device="cpu", clip=source)
    (found,) = pipe("a red heart", n=3)
    assert pipe.judge is not None and found.scores is not None
    images = torch.stack([square_tensor(image, 16) for image in found.images])
    cosines = score(pipe.judge, images, ["a red heart"] * 3)
    assert found.scores == pytest.approx(pipe.judge.probabilities(cosines).tolist(), abs=1e-3)
    assert abs(torch.tensor(found.scores) - cosines).min() > 0.05


@pytest.mark.parametrize("prior", ["prior", "prior-ar"])
def test_candidates_do_not_depend_on_the_batch(folder: Path, parts: dict[str, Path], prior: str) -> None:
    pipe = UnCLIP.from_pretrained(folder, prior=parts[prior], device="cpu")
    several: tuple[dict[str, Any], ...] = ({}, {"sampler": "ddpm"}, {"eta": 0.7})  # of the decoder, whatever the prior
    for options in several if prior == "prior" else several[:1]:
        together = pipe("a red heart", n=3, seed=5, **options)[0]
        for image, seed in zip(together.images, together.seeds):
            alone = pipe("a red heart", seed=seed, **options)[0].images[0]
            assert abs(values(alone) - values(image)).max() <= 1


def test_embed_and_decode_equal_a_call(pipe: UnCLIP) -> None:
    z = pipe.embed("a red heart", seed=4)
    assert z.shape == (1, 8)
    images = pipe.decode(z, "a red heart", seed=4)
    assert images.shape == (1, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    called = pipe("a red heart", seed=4)[0].images[0]
    assert abs((images[0].permute(1, 2, 0).numpy() * 255).round() - values(called)).max() <= 1


def test_guidance_drops_embedding_and_caption(pipe: UnCLIP) -> None:
    """Guidance 0 knows neither embedding nor caption; guidance 1 asks for no unconditional prediction."""
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)) * 3
    nothing = [pipe.decode(z[i : i + 1], name, guidance=0.0) for i, name in enumerate(("a red heart", "a hat"))]
    torch.testing.assert_close(*nothing)
    something = [pipe.decode(z[i : i + 1], "", guidance=1.0) for i in range(2)]
    assert not torch.allclose(*something, atol=1e-3)
    assert not torch.allclose(pipe.decode(z, "a hat", guidance=1.0), pipe.decode(z, "", guidance=1.0), atol=1e-4)


def test_noise_is_requested_in_the_order_of_its_use(pipe: UnCLIP) -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []

    def noise(stage: str, shape: tuple[int, ...]) -> Tensor:
        asked.append((stage, shape))
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(asked)))

    z = pipe.embed("a red heart", noise=noise)
    first = pipe.decode(z, "a red heart", noise=noise)
    assert asked == [("prior", (2, 8)), ("decoder", (1, 3, 8, 8)), ("upsampler", (1, 3, 16, 16))]
    asked.clear()
    assert torch.equal(pipe.decode(pipe.embed("a red heart", noise=noise), "a red heart", noise=noise), first)


def test_without_an_upsampler_images_have_the_decoders_size(parts: dict[str, Path], tmp_path: Path) -> None:
    assemble(tmp_path / "base", parts["prior"], parts["decoder"])
    pipe = UnCLIP.from_pretrained(tmp_path / "base", device="cpu")
    assert pipe("a red heart")[0].images[0].size == (8, 8)


@pytest.fixture
def base(parts: dict[str, Path], tmp_path: Path) -> UnCLIP:
    """Without an upsampler, which knows an image in small alone, what is given comes back."""
    assemble(tmp_path / "base", parts["prior"], parts["decoder"])
    return UnCLIP.from_pretrained(tmp_path / "base", device="cpu")


def test_inversion_reproduces_the_image(base: UnCLIP) -> None:
    image = picture(1, 8).resize((16, 16))
    z = base.embed_images(image)
    assert base.invert(image, z, steps=20).shape == (1, 3, 8, 8)
    known = (square_tensor(image, 16)[None]).clone()
    wanted = torch.nn.functional.interpolate(known, (8, 8), mode="bicubic", antialias=True).clamp(0, 1)[0]
    same, other = (base.vary(image, n=1, eta=eta, steps=40)[0] for eta in (0.0, 1.0))
    errors = [
        (torch.from_numpy(values(found)).permute(2, 0, 1) / 255 - wanted).square().mean().item()
        for found in (same, other)
    ]
    assert -10 * math.log10(errors[0]) > 30 > -10 * math.log10(errors[1])
    assert len({one.tobytes() for one in base.vary(image, n=3, eta=1.0, steps=5)}) == 3


def test_ends_of_a_blend_are_its_images(base: UnCLIP) -> None:
    a, b = picture(1, 16), picture(2, 16)
    frames = base.blend([a, b], frames=3, steps=8)
    for end, image in ((frames[0], a), (frames[-1], b)):
        assert abs(values(end) - values(base.vary(image, n=1, eta=0.0, steps=8)[0])).max() <= 1
    assert abs(values(frames[1]) - values(frames[0])).max() > 5
    (weighted,) = base.blend([a, b], weights=[0.0, 2.0], steps=8)
    assert abs(values(weighted) - values(frames[-1])).max() <= 1
    assert len(base.blend([a, "a hat", b], weights=[1, 0.3, 0.7], steps=3)) == 1


def test_edit_starts_at_the_image_and_moves_away(base: UnCLIP) -> None:
    image = picture(3)
    frames = base.edit(image, "a cat", "a dog", theta=0.5, frames=3, steps=10)
    still = base.vary(image, n=1, eta=0.0, steps=10)[0]
    moved = [abs(values(frame) - values(still)).mean() for frame in frames]
    assert moved[0] <= 0.1 < moved[1] < moved[2]
    several = base.edit(image, "a cat", "a dog", theta=[0.5, 0, 0.25], steps=10)
    for one, frame in zip(several, (2, 0, 1), strict=True):
        assert abs(values(one) - values(frames[frame])).max() <= 1
    with pytest.raises(ValueError, match="both texts have the same embedding"):
        base.edit(image, "a cat", "a cat", steps=2)


def test_seed_of_an_edit_is_that_of_the_upsampler(pipe: UnCLIP, base: UnCLIP) -> None:
    image, words = picture(3), ("a cat", "a dog")
    first = pipe.edit(image, *words, frames=2, steps=2)
    assert [one.tobytes() for one in pipe.edit(image, *words, frames=2, seed=0, steps=2)] == [
        one.tobytes() for one in first
    ]
    again = [pipe.edit(image, *words, frames=2, seed=7, steps=2) for _ in range(2)]
    assert [one.tobytes() for one in again[0]] == [one.tobytes() for one in again[1]]
    for one, other in zip(again[0], first, strict=True):
        assert one.tobytes() != other.tobytes()
    # All images of an edit have the same noise, as frames of a video
    one, other = pipe.edit(image, *words, theta=[0.2, 0.2], seed=7, steps=2)
    assert abs(values(one) - values(other)).max() <= 1
    alone = [base.edit(image, *words, seed=seed, steps=2)[0].tobytes() for seed in (0, 7)]
    assert alone[0] == alone[1]  # without an upsampler nothing is random


def test_pixels_outside_the_mask_are_unchanged(pipe: UnCLIP) -> None:
    image, mask = picture(4), Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 16, 7))
    found = pipe("a hat", n=2, image=image, mask=mask, resample=2)[0]
    for one in found.images:
        assert (values(one)[7:] == values(image)[7:]).all()
        assert (values(one)[:7] != values(image)[:7]).any()
    assert found.images[0].tobytes() != found.images[1].tobytes()


def test_assemble_vary_blend_and_edit_commands_run(
    folder: Path, parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--{name}={parts[name]}" for name in ("prior", "decoder", "upsampler")]
    assert main(["assemble", str(tmp_path / "again"), *given]) == 0
    assert ModelFolder(tmp_path / "again").sha256 == ModelFolder(folder).sha256
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    picture(1, 24).save(a)
    picture(2, 24).save(b)
    model = ["--model", str(folder), "--steps", "3", "--device", "cpu"]
    assert main(["vary", str(a), "--n", "3", *model, "--out", str(tmp_path / "v.png")]) == 0
    assert main(["blend", str(a), str(b), "--frames", "4", *model, "--out", str(tmp_path / "b.gif")]) == 0
    assert main(["blend", str(a), "a hat:0.3", str(b) + ":0.7", *model, "--out", str(tmp_path / "w.png")]) == 0
    edit = ["edit", str(a), "--from", "a cat", "--to", "a dog", "--frames", "2", *model]
    assert main([*edit, "--out", str(tmp_path / "e.webp")]) == 0
    if importlib.util.find_spec("av") is not None:
        assert main(["blend", str(a), str(b), "--frames", "4", *model, "--out", str(tmp_path / "b.mp4")]) == 0
        with importlib.import_module("av").open(str(tmp_path / "b.mp4")) as file:
            assert [(frame.width, frame.height) for frame in file.decode(video=0)] == [(16, 16)] * 4
    sizes = {}
    for name in ("v.png", "b.gif", "w.png", "e.webp"):
        with Image.open(tmp_path / name) as image:
            sizes[name] = (*image.size, getattr(image, "n_frames", 1))
    assert sizes == {"v.png": (48, 16, 1), "b.gif": (16, 16, 4), "w.png": (16, 16, 1), "e.webp": (16, 16, 2)}
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 0
    assert "prior" in capsys.readouterr().out


def test_sample_py_takes_unclip_options(folder: Path, tmp_path: Path) -> None:
    options = ["--model", str(folder), "--n", "3", "--keep", "2", "--steps", "2", "--prior-samples", "1"]
    more = ["--upsampler-steps", "2", "--guidance", "1.5", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert sample.main(["a red heart", *options, *more]) == 0
    (scores,) = (tmp_path / "out").rglob("scores.json")
    told = json.loads(scores.read_text())
    assert len(told["images"]) == 2 and told["options"]["steps"] == 2 and told["options"]["guidance"] == 1.5
    assert told["model"] == ModelFolder(folder).sha256
    with Image.open(scores.parent / told["images"][0]["file"]) as image:
        assert image.size == (16, 16) and image.text["prompt"] == "a red heart"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps is 0"),
        (["--eta", "2"], "eta is 2"),
        (["--prior-steps", "0"], "prior_steps is 0"),
        (["--prior-samples", "0"], "prior_samples is 0"),
        (["--prior-guidance", "nan"], "prior_guidance is nan"),
        (["--upsampler-steps", "1001"], "upsampler_steps is 1001; this model was trained with 1000 steps"),
        (["--guidance", "nan"], "guidance is nan"),
        (["--top-p", "0.5"], "top_p is an option of models that sample tokens"),
        (["--n", "0"], "n is 0"),
        (["--keep", "9"], "keep is 9"),
        (["--resample", "3"], "resample is for a mask"),
        (["--temperature", "0.5"], "temperature is for an autoregressive prior, and this model has none"),
        (["--top-k", "5"], "top_k is for an autoregressive prior"),
        (["--keep-rows", "0.5"], "--keep-rows is for models that sample tokens"),
        (["--prior", "{decoder}"], "it cannot be the prior"),
    ],
)
def test_wrong_options_give_a_one_line_error(
    words: list[str],
    message: str,
    folder: Path,
    parts: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.format(**parts) for word in words]
    given = ["--model", str(folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert sample.main(["a hat", *given, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_components_that_do_not_fit_are_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    other = CLIP(clip_config(depth=1, text_vocab=4096))
    words = {"text_tokenizer": ROOT / "tokenizers/emoji-bpe"}
    clips = {"clip": saved(tmp_path / "clip", "clip", other, 9, words)}
    prior = DiffusionPrior(DiffusionPriorConfig(transformer=TINY, **SHAPE))
    foreign = saved(tmp_path / "prior", "prior", prior, 1, clips)
    with pytest.raises(ValueError, match="prior and decoder are of different CLIPs"):
        assemble(tmp_path / "out", foreign, parts["decoder"])
    with pytest.raises(ValueError, match="it cannot be the decoder"):
        assemble(tmp_path / "out", parts["prior"], parts["upsampler"])
    small = UNetConfig(channels=8, channel_multipliers=[1], attention_levels=[])
    wrong: nn.Module = Upsampler(UpsamplerConfig(image_size=16, low_size=4, unet=small))
    upsampler = saved(tmp_path / "upsampler", "diffusion", wrong, 1, {})
    with pytest.raises(ValueError, match="the decoder makes images of 8 pixels a side, the upsampler takes 4"):
        assemble(tmp_path / "out", parts["prior"], parts["decoder"], upsampler)
    assert not (tmp_path / "out").exists()


def test_options_of_parts_that_a_model_does_not_have(parts: dict[str, Path], tmp_path: Path) -> None:
    assemble(tmp_path / "m", parts["prior-ar"], parts["decoder"])
    pipe = UnCLIP.from_pretrained(tmp_path / "m", device="cpu")
    for options, part in (
        ({"prior_steps": 2}, "a diffusion prior"),
        ({"prior_samples": 1}, "a diffusion prior"),
        ({"upsampler_steps": 2}, "an upsampler"),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is for {part}, and this model has none"):
            pipe("a hat", **options)
    assert pipe("a hat", steps=2, temperature=0.5, top_k=2)[0].images
    with pytest.raises(ValueError, match="noise is for a diffusion prior"):
        pipe.embed("a hat", noise=lambda stage, shape: torch.zeros(shape))


def test_assemble_replaces_an_unclip_only(folder: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    prior, decoder = shutil.copytree(parts["prior"], tmp_path / "prior"), parts["decoder"]
    before = ModelFolder(prior).sha256
    (tmp_path / "album").mkdir()
    (tmp_path / "album/photo.jpg").write_bytes(b"photo")
    for out, message in (
        (prior, "a part that is copied"),
        (tmp_path, "a part that is copied"),
        (prior / "deeper", "a part that is copied"),
        (tmp_path / "album", "is no unCLIP, so it is not replaced"),
        (tmp_path / "album/photo.jpg", "is no unCLIP, so it is not replaced"),
    ):
        with pytest.raises(ValueError, match=message):
            assemble(out, prior, decoder)
    assert ModelFolder(prior).sha256 == before and (tmp_path / "album/photo.jpg").read_bytes() == b"photo"
    shutil.copytree(folder, tmp_path / "old")
    assemble(tmp_path / "old", prior, decoder)
    assert not (tmp_path / "old/upsampler").exists()


@pytest.mark.parametrize("part", ["prior", "decoder", "upsampler"])
def test_a_part_alone_is_no_model(
    part: str, parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample.main(["a hat", "--model", str(parts[part]), "--steps", "2", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "a part of an unCLIP: `python -m dalle assemble`" in error and error.count("\n") == 1


def test_a_misspelled_image_is_not_a_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("missing.png", "missing.JPG:0.3"):
        assert main(["blend", "a hat", name, "--model", str(folder), "--out", str(tmp_path / "b.png")]) == 2
        error = capsys.readouterr().err
        assert name.partition(":")[0] + ": no such image" in error and error.count("\n") == 1


def test_wrong_calls_are_refused(pipe: UnCLIP) -> None:
    image, mask = picture(), Image.new("L", (16, 16))
    for call, message in (
        (lambda: pipe.blend([image]), "a blend is of 2 or more"),
        (lambda: pipe.blend([image, image], weights=[0, 0]), "the weights sum to 0"),
        (lambda: pipe.blend([image, image], frames=1), "frames is 1"),
        (lambda: pipe.blend([image] * 3), "need weights"),
        (lambda: pipe.vary(image, n=0), "n is 0"),
        (lambda: pipe.vary(image, eta=2.0), "eta is 2"),
        (lambda: pipe.edit(image, "a cat", "a dog", theta=-1, frames=3), "theta is -1;"),
        (lambda: pipe.edit(image, "a cat", "a dog", theta=[0.5, float("nan")]), "theta is nan;"),
        (lambda: pipe.edit(image, "a cat", "a dog", theta=[]), "the number of thetas is 0"),
        (lambda: pipe.edit(image, "a cat", "a dog", theta=[0.1, 0.2], frames=3), "frames is 3 with 2 thetas"),
        (lambda: pipe.edit(image, "a cat", "a dog", seed=-1), "seed is -1"),
        (lambda: pipe("a hat", mask=mask), "image and mask go together"),
        (lambda: pipe("a hat", image=image, mask=mask), "mask has no white pixel"),
        (lambda: pipe("a hat", image=image, mask=mask.resize((4, 4))), "mask is 4x4 and image 16x16"),
        (lambda: pipe("a hat", sharpness=3), "sharpness is no option of an unCLIP"),
        (lambda: pipe.decode(torch.zeros(2, 8), ["a", "b", "c"]), "2 embeddings with 3 prompts"),
        (lambda: pipe.decode(torch.zeros(2, 9)), r"z has the shape \[2, 9\]; .* are \[B, 8\]"),
        (lambda: pipe.decode(torch.zeros(0, 8)), "B at least 1"),
        (lambda: pipe.decode(torch.zeros(1, 8), seed=-1), "seed is -1"),
        (lambda: pipe.invert([image, image], torch.zeros(1, 8)), "1 embeddings of 2 images"),
        (lambda: pipe.embed([]), "no prompt given"),
        (lambda: pipe.embed("a hat", seed=-1), "seed is -1"),
        (lambda: pipe.embed_images([]), "no image given"),
        (lambda: pipe.vary("photo.png"), "image is of type str: give a PIL.Image"),  # type: ignore[arg-type]
        (lambda: pipe.embed_images([Path("photo.png")]), "image is of type PosixPath"),  # type: ignore[list-item]
        (lambda: pipe("a hat", image="photo.png", mask=mask), "image is of type str"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert inpaint_pixels(Image.new("L", (4, 4), 255), 2).all()
