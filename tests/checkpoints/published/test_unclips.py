"""Whole published unCLIPs beside diffusers' pipelines: Karlo, its image variations, Kandinsky 2.2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.build import build_published
from dalle.checkpoints.published.clip import read_clip
from dalle.checkpoints.published.prior_transformer import read_prior
from dalle.checkpoints.published.unclip import read_unclip
from dalle.generation.diffusion.prediction import Limit
from dalle.generation.diffusion_decoder import latent_denoiser
from dalle.models.clip import CLIP, TextStates
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.pipelines.unclip import UnCLIP, stages
from support.published import unclips
from support.published.unclips import DIM, LENGTH, Words, write

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

Noise = Callable[[str, tuple[int, ...]], Tensor]


def one_generator(seed: int) -> Noise:
    """Numbers as diffusers draws them: of all stages from one generator."""
    random = torch.Generator().manual_seed(seed)
    return lambda stage, shape: torch.randn(shape, generator=random)


@pytest.fixture(scope="module")
def karlo() -> dict[str, Any]:
    return unclips.karlo_parts()


@pytest.fixture(scope="module")
def karlo_folder(karlo: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("published") / "karlo", "Karlo", karlo)


@pytest.fixture(scope="module")
def kandinsky() -> tuple[dict[str, Any], dict[str, Any]]:
    return unclips.kandinsky_parts()


@pytest.fixture(scope="module")
def kandinsky_folders(kandinsky: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("published")
    return write(root / "prior", "prior", kandinsky[0]), write(root / "decoder", "decoder", kandinsky[1])


@torch.no_grad()
def test_prior_output_equals_diffusers(karlo: dict[str, Any], karlo_folder: Path) -> None:
    random = torch.Generator().manual_seed(0)
    x, embeds = torch.randn(2, 3, DIM, generator=random)
    states = torch.randn(3, LENGTH, DIM, generator=random)
    mask, steps = torch.arange(LENGTH) < torch.tensor([2, 6, LENGTH])[:, None], torch.tensor([999, 500, 0])
    wanted = karlo["prior"](x, steps, embeds, states, mask).predicted_image_embedding
    found = read_prior(karlo_folder / "prior", "Karlo", "")
    ours = build_published(DiffusionPrior, found, "", "cpu")
    assert ours.config.null_caption == "empty" and ours.null_states is None
    torch.testing.assert_close(ours(x, steps, TextStates(states, mask, embeds)), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.unstandardize(x), karlo["prior"].post_process_latents(x))


@torch.no_grad()
def test_towers_are_read_one_by_one(kandinsky: Any, kandinsky_folders: tuple[Path, Path]) -> None:
    folder, _ = kandinsky_folders
    text, image = (
        build_published(CLIP, read_clip(folder / name), "", "cpu") for name in ("text_encoder", "image_encoder")
    )
    ids = Words()(["red hats", ""]).input_ids
    wanted = kandinsky[0]["text_encoder"](ids)
    states = text.text_states(ids)
    torch.testing.assert_close(states.embeds, wanted.text_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states.states, wanted.last_hidden_state, rtol=1e-4, atol=1e-4)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (image.config.mean, image.config.std))
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    embeds = kandinsky[0]["image_encoder"]((pixels - mean) / std).image_embeds
    torch.testing.assert_close(image.encode_image(pixels, normalize=False), embeds, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="this CLIP has no image tower, so it embeds captions only"):
        text.encode_image(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="this CLIP has no text tower, so it embeds images only"):
        image.encode_text(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="this CLIP has no text tower, so it embeds images only"):
        image.encode_text(["a hat"])


def test_text_tower_of_a_pipeline_reads_captions_by_the_tokenizer_beside_it(karlo_folder: Path) -> None:
    clip, pipe = dalle.load_clip(karlo_folder / "text_encoder"), UnCLIP.from_pretrained(karlo_folder, device="cpu")
    prompts = ["red hats", ""]
    for found, wanted in zip(clip.text_states(prompts), pipe.clip.text_states(prompts), strict=True):
        torch.testing.assert_close(found, wanted)


def test_karlo_images_equal_diffusers(karlo: dict[str, Any], karlo_folder: Path) -> None:
    from diffusers.pipelines.deprecated.unclip.pipeline_unclip import UnCLIPPipeline  # type: ignore[import-not-found]

    theirs = UnCLIPPipeline(tokenizer=Words(), **karlo)
    theirs.set_progress_bar_config(disable=True)
    for name in ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
        # In float32, 1 - alpha-bar of step 0 is rounded by a thousandth, which the last step multiplies all pixels by
        karlo[name].alphas = 1 - karlo[name].betas.double()
        karlo[name].alphas_cumprod = karlo[name].alphas.cumprod(0)
    prompts = ["red hats", "hat"]
    options = {"prior_num_inference_steps": 5, "decoder_num_inference_steps": 4, "super_res_num_inference_steps": 3}
    scales = {"prior_guidance_scale": 3.0, "decoder_guidance_scale": 2.0}
    random = torch.Generator().manual_seed(3)
    wanted = torch.from_numpy(theirs(prompts, generator=random, output_type="np", **options, **scales).images)
    pipe = UnCLIP.from_pretrained(karlo_folder, device="cpu")
    noise = one_generator(3)
    z = pipe.embed(prompts, steps=5, guidance=3.0, noise=noise)
    found = pipe.decode(z, prompts, steps=4, guidance=2.0, upsampler_steps=3, noise=noise).permute(0, 2, 3, 1)
    assert wanted.std() > 0.05
    assert (found - wanted).abs().mean() < 2e-5
    pipe.upsampler_last = None  # its own network is the first one's in the last step: not the same
    noise = one_generator(3)
    z = pipe.embed(prompts, steps=5, guidance=3.0, noise=noise)
    without = pipe.decode(z, prompts, steps=4, guidance=2.0, upsampler_steps=3, noise=noise).permute(0, 2, 3, 1)
    assert (without - wanted).abs().mean() > 1e-4


def test_karlo_has_its_defaults_and_converts(
    karlo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its defaults; scores are none, as it has no image tower; converted it gives the same images."""
    pipe = UnCLIP.from_pretrained(karlo_folder, device="cpu")
    told = pipe.sampling
    assert (told.prior.guidance, told.prior.bound, told.prior.samples, told.prior.sampler.steps) == (4.0, 1.5, 1, 25)
    assert (told.decoder.guidance, told.decoder.sampler.variance, told.decoder.sampler.steps) == (8.0, "learned", 25)
    assert (told.upsampler.sampler.steps, told.upsampler.sampler.spacing) == (7, "linspace")
    few = {"steps": 2, "prior_steps": 2, "upsampler_steps": 2, "guidance": 1.5}
    (result,) = pipe("a hat", n=2, seed=4, **few)
    assert result.scores is None and [image.size for image in result.images] == [(16, 16)] * 2
    with pytest.raises(ValueError, match="keep"):
        pipe("a hat", n=2, keep=1)
    with pytest.raises(ValueError, match="has no image tower"):
        pipe.vary(Image.new("RGB", (16, 16)))
    assert main(["convert", str(karlo_folder), str(tmp_path / "ours")]) == 0
    again = dalle.UnCLIP.from_pretrained(tmp_path / "ours", device="cpu")
    (same,) = again("a hat", n=2, seed=4, **few)
    assert [image.tobytes() for image in same.images] == [image.tobytes() for image in result.images]
    capsys.readouterr()
    for folder in (karlo_folder, tmp_path / "ours"):
        assert main(["inspect", str(folder)]) == 0
        shown = capsys.readouterr().out
        assert all(part in shown for part in ("prior", "decoder", "upsampler_last", "parameters"))


@torch.no_grad()
def test_karlo_variations_need_no_prior(karlo: dict[str, Any], tmp_path: Path) -> None:
    own = {name: module for name, module in karlo.items() if not name.startswith("prior")}
    folder = write(tmp_path / "karlo", "variations", own | {"image_encoder": unclips.towers()[1]})
    pipe = UnCLIP.from_pretrained(folder, device="cpu")
    images = pipe.vary(Image.new("RGB", (16, 16), "red"), n=2, eta=1.0, steps=2)
    assert len({image.tobytes() for image in images}) == 2
    with pytest.raises(ValueError, match="this model has no prior, so it makes images of images alone"):
        pipe("a hat")


def test_kandinsky_images_equal_diffusers(kandinsky: Any, kandinsky_folders: tuple[Path, Path]) -> None:
    import diffusers  # type: ignore[import-not-found]

    first = diffusers.KandinskyV22PriorPipeline(tokenizer=Words(), image_processor=None, **kandinsky[0])
    second = diffusers.KandinskyV22Pipeline(**kandinsky[1])
    for pipeline in (first, second):
        pipeline.set_progress_bar_config(disable=True)
    pipe = UnCLIP.from_pretrained(kandinsky_folders[1], kandinsky_folders[0], device="cpu")
    assert (pipe.sampling.prior.bound, pipe.sampling.decoder.bound, pipe.image_size) == (10.0, 2.0, 16)
    prompts = ["red hats", "hat"]
    random, noise = torch.Generator().manual_seed(3), one_generator(3)
    told = first(prompts, num_inference_steps=4, guidance_scale=3.0, generator=random)
    z = pipe.embed(prompts, steps=4, guidance=3.0, noise=noise)
    torch.testing.assert_close(z, told.image_embeds, rtol=1e-3, atol=1e-3)
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "height": 16, "width": 16, "output_type": "np"}
    wanted = second(told.image_embeds, told.negative_image_embeds, generator=random, **options).images
    found = pipe.decode(z, steps=4, guidance=2.0, noise=noise).permute(0, 2, 3, 1)
    assert wanted.std() > 0.05
    assert (found - torch.from_numpy(wanted)).abs().mean() < 2e-4


def test_kandinsky_negative_prompt_equals_diffusers(kandinsky: Any, kandinsky_folders: tuple[Path, Path]) -> None:
    import diffusers

    first = diffusers.KandinskyV22PriorPipeline(tokenizer=Words(), image_processor=None, **kandinsky[0])
    first.set_progress_bar_config(disable=True)
    pipe = UnCLIP.from_pretrained(kandinsky_folders[1], kandinsky_folders[0], device="cpu")
    random = torch.Generator().manual_seed(3)
    told = first("a hat", "red", num_inference_steps=3, guidance_scale=3.0, generator=random)
    noise = one_generator(3)
    z = pipe.embed(["a hat", "red"], steps=3, guidance=3.0, negative="red", noise=noise)
    wanted = torch.cat([told.image_embeds, told.negative_image_embeds])
    torch.testing.assert_close(z, wanted, rtol=1e-3, atol=1e-3)
    plain, negative = (pipe.decode(z[:1], steps=2, guidance=20.0, negative=other) for other in (None, z[1:]))
    assert not torch.allclose(plain, negative, atol=1e-3)


@torch.no_grad()
def test_movq_equals_diffusers(kandinsky: Any, kandinsky_folders: tuple[Path, Path]) -> None:
    pipe = UnCLIP.from_pretrained(kandinsky_folders[1], kandinsky_folders[0], device="cpu")
    movq, ours = kandinsky[1]["movq"], pipe.autoencoder
    assert ours is not None
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = movq.encode(images).latents
    torch.testing.assert_close(ours.encode(images), latents, rtol=1e-4, atol=1e-4)
    wanted = movq.decode(latents, force_not_quantize=True).sample
    torch.testing.assert_close(ours.decode(latents), wanted, rtol=1e-4, atol=1e-4)


def test_kandinsky_generates_varies_inpaints_and_converts(kandinsky_folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Text, variations and masks; converted it is the same."""
    prior, decoder = map(str, kandinsky_folders)
    pipe = UnCLIP.from_pretrained(decoder, prior, device="cpu")
    few = {"steps": 3, "prior_steps": 2}
    (result,) = pipe("a hat", n=2, keep=1, seed=4, **few)
    assert result.scores is not None and result.images[0].size == (16, 16)
    image, mask = Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 16, 8))
    (painted,) = pipe("a hat", image=image, mask=mask, **few)
    assert painted.images[0].crop((0, 8, 16, 16)).tobytes() == image.crop((0, 8, 16, 16)).tobytes()
    assert len(pipe.vary(image, n=2, steps=2)) == 2
    assert main(["convert", decoder, str(tmp_path / "ours"), "--prior", prior]) == 0
    (same,) = UnCLIP.from_pretrained(tmp_path / "ours", device="cpu")("a hat", n=2, keep=1, seed=4, **few)
    assert same.images[0].tobytes() == result.images[0].tobytes()
    assert main(["inspect", decoder, "--prior", prior]) == 0


def changed(file: Path, change: dict[str, Any]) -> None:
    told = json.loads(file.read_text()) | change
    file.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"text_proj": None}, "it has no part text_proj, of UnCLIPTextProjModel"),
        (
            "model_index.json",
            {"prior": ["diffusers", "Other"]},
            "its part prior is of the class Other; PriorTransformer",
        ),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "says FluxPipeline; expected one of UnCLIPPipeline"),
        ("model_index.json", {"_class_name": "KandinskyPipeline"}, "Kandinsky 2.1 and the nets .* are not supported"),
        ("prior_scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "is of a PNDMScheduler; UnCLIP"),
        ("prior_scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "the prior predicts epsilon"),
        (
            "prior_scheduler/scheduler_config.json",
            {"num_train_timesteps": "1000"},
            "karlo/prior_scheduler cannot be loaded: steps is '1000'; it must be a whole number",
        ),
        ("prior/config.json", {"num_layers": "two"}, "karlo/prior cannot be loaded: depth is 'two'"),
        ("prior/config.json", {"norm_in_type": "layer"}, "says norm_in_type: 'layer', expected None"),
        ("text_encoder/config.json", {"hidden_act": "tanh"}, "its activation 'tanh' is not supported"),
    ],
)
def test_other_pipelines_and_parts_give_a_one_line_error(
    file: str, change: dict[str, Any], message: str, karlo: dict[str, Any], tmp_path: Path
) -> None:
    folder = write(tmp_path / "karlo", "Karlo", karlo)
    changed(folder / file, change)
    with pytest.raises(ValueError, match=message) as error:
        read_unclip(folder)
    assert "\n" not in str(error.value)


def test_damaged_parts_are_refused_by_their_published_names(karlo: dict[str, Any], tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        (
            ({"prd_embedding": None}, "prd_embedding"),
            ({"transformer_blocks.1.attn1.to_k.weight": None}, r"transformer_blocks\.1\.attn1\.to_k\.weight"),
            ({"more.weight": torch.zeros(2)}, r"a prior has not: more\.weight"),
            ({"prd_embedding": torch.full((1, 1, 16), float("nan"))}, "is nan or infinite"),
            (
                {"prd_embedding": torch.ones(1, 1, 16, dtype=torch.int32)},
                r"\(prior\) does not fit .* of another dtype: prd_embedding is torch\.int32, expected torch\.float32",
            ),
        )
    ):
        folder = write(tmp_path / str(number), "Karlo", karlo)
        weights = folder / "prior/diffusion_pytorch_model.safetensors"
        tensors = load_file(weights) | change
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, weights)
        with pytest.raises(ValueError, match=message):
            UnCLIP.from_pretrained(folder, device="cpu")


def test_parts_without_weights_are_named(karlo: dict[str, Any], tmp_path: Path) -> None:
    for part in ("prior", "decoder", "text_proj", "super_res_last", "text_encoder"):
        folder = write(tmp_path / part / "karlo", "Karlo", karlo)
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        with pytest.raises(ValueError, match=f"karlo/{part} has a config.json and no weights"):
            read_unclip(folder)


def test_parts_and_wholes_are_not_taken_for_each_other(
    karlo_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for part in ("prior", "decoder", "super_res_first"):
        assert main(["convert", str(karlo_folder / part), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert f"is a part of a pipeline of diffusers: give the whole folder, {karlo_folder}" in error
    with pytest.raises(ValueError, match="is a pipeline of diffusers, of several models, and no CLIP"):
        dalle.load_clip(karlo_folder)


def test_options_that_an_unclip_does_not_use_are_refused(
    karlo_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    convert = ["convert", str(karlo_folder), str(tmp_path / "out")]
    for command, message in (
        ([*convert, "image_size=64", "--text-tokenizer", "x"], "image_size is not for an unCLIP: leave it out"),
        ([*convert, "--text-tokenizer", "x"], "text_tokenizer is not for an unCLIP: leave it out"),
        ([*convert, "--image-tokenizer", "x"], "image_tokenizer is not for an unCLIP: leave it out"),
        (["inspect", str(karlo_folder), "heads=2"], f"heads is not to be given: {karlo_folder} is described by its"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_defects_of_kandinskys_prior_name_its_folder(kandinsky: Any, tmp_path: Path) -> None:
    prior, decoder = (
        write(tmp_path / name, name, parts) for name, parts in zip(("prior", "decoder"), kandinsky, strict=True)
    )
    changed(prior / "model_index.json", {"text_encoder": None})
    with pytest.raises(ValueError, match=f"^{prior} cannot be loaded: it has no part text_encoder"):
        read_unclip(decoder, prior)


@torch.no_grad()
def test_latents_are_clipped_only_if_the_scheduler_says_so(
    kandinsky: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, decoder = (
        write(tmp_path / name, name, parts) for name, parts in zip(("prior", "decoder"), kandinsky, strict=True)
    )
    file = decoder / "scheduler/scheduler_config.json"
    z = torch.randn(1, DIM, generator=torch.Generator().manual_seed(0))
    for change, bound in (({"clip_sample": False}, None), ({"clip_sample": True, "clip_sample_range": 1.0}, 1.0)):
        changed(file, {"thresholding": False, **change})
        pipe = UnCLIP.from_pretrained(decoder, prior, device="cpu")
        given: list[Limit | None] = []

        def recorded(*args: Any, given: list[Limit | None] = given) -> Any:
            given.append(args[-1])
            return latent_denoiser(*args)

        monkeypatch.setattr(stages, "latent_denoiser", recorded)
        pipe.decode(z, steps=2)
        assert given == [None if bound is None else Limit(bound)]


@pytest.mark.parametrize("command", [["vary", "a.png"], ["blend", "a.png", "b.png"], ["edit", "a.png", "--to", "hat"]])
def test_commands_take_kandinskys_prior(
    command: list[str], kandinsky_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (16, 16), color).save(name)
    prior, decoder = map(str, kandinsky_folders)
    options = ["--model", decoder, "--prior", prior, "--steps", "2", "--device", "cpu", "--out", "out.png"]
    assert main([*command, *options]) == 0 and Path("out.png").is_file()


def test_kandinsky_needs_both_folders(kandinsky_folders: tuple[Path, Path], karlo_folder: Path) -> None:
    prior, decoder = kandinsky_folders
    for source, other, message in (
        (decoder, None, "give kandinsky-2-2-prior as --prior"),
        (prior, None, "it is the prior of Kandinsky 2.2: give kandinsky-2-2-decoder"),
        (decoder, karlo_folder, "is no prior of Kandinsky 2.2"),
        (karlo_folder, prior, "it has its own prior"),
    ):
        with pytest.raises(ValueError, match=message):
            read_unclip(source, other)
