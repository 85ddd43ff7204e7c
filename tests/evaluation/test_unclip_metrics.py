"""Evaluating the parts of an unCLIP: metrics against slow loops and known answers, the command, and wrong inputs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints import model_folder
from dalle.config import to_dict
from dalle.data import ShapesConfig, open_data
from dalle.data.loader import evaluation_batches
from dalle.evaluation.priors import sampled_embeddings
from dalle.evaluation.unclip import DecoderEvaluation, full_prior_metrics, metrics_function
from dalle.generation.diffusion_decoder import DiffusionSamplingConfig
from dalle.generation.prior import PriorSamplingConfig
from dalle.images.transforms import resize_batch
from dalle.models.clip import CLIP
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from dalle.models.transformer_config import TransformerConfig
from support.tiny_configs import clip_config
from support.unclip_parts import make_unclip_parts

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("unclip")
    config = clip_config(depth=1, text_vocab=4096)
    torch.manual_seed(0)
    words = {"text_tokenizer": ROOT / "tokenizers/emoji-bpe"}
    model_folder.save(
        root / "clip", {"stage": "clip", "model": to_dict(config)}, CLIP(config).state_dict(), parts=words
    )
    return make_unclip_parts(root, root / "clip") | {"clip": root / "clip"}


def pairs(size: int, batch_size: int = 4, count: int = 12) -> list:
    return list(evaluation_batches(open_data(ShapesConfig(size=200), "validation", size), batch_size, limit=count))


def test_ranks_and_baselines_equal_a_slow_loop() -> None:
    shape = DiffusionPriorConfig(transformer=TransformerConfig(width=16, depth=1, heads=2), embed_dim=5, text_width=4)
    prior, random = DiffusionPrior(shape), torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 40, 5, generator=random) + 1
    samples = images[:, None] + torch.randn(40, 3, 5, generator=random)
    prior.fit(images + 0.1, texts - 0.1)

    def cos(a: Tensor, b: Tensor) -> float:
        return sum(x * y for x, y in zip(a.tolist(), b.tolist())) / math.hypot(*a.tolist()) / math.hypot(*b.tolist())

    found = full_prior_metrics(prior, images, texts, samples)
    mean, text_mean = (images + 0.1).mean(0), (texts - 0.1).mean(0)
    for top in (1, 10):
        hits, told = 0, 0
        for row in range(40):
            by_image = [cos(samples[row, 0] - mean, images[n] - mean) for n in range(40)]
            by_text = [cos(samples[row, 0], texts[n]) for n in range(40)]
            hits += row in sorted(range(40), key=lambda n: -by_image[n])[:top]
            told += row in sorted(range(40), key=lambda n: -by_text[n])[:top]
        assert found[f"own_image_top{top}"] == pytest.approx(hits / 40)
        assert found[f"own_caption_top{top}"] == pytest.approx(told / 40)
    expected = sum(cos(texts[n] - text_mean, images[n] - mean) for n in range(40)) / 40
    assert found["caption_centered_cos"] == pytest.approx(expected, abs=1e-5)
    assert found["constant_cos"] == pytest.approx(sum(cos(mean, image) for image in images) / 40, abs=1e-5)
    perfect = full_prior_metrics(prior, images, texts, images[:, None])
    assert perfect["own_image_top1"] == 1 and perfect["mean_cos"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["prior", "prior-ar"])
def test_samples_of_a_caption_differ(kind: str, folders: dict[str, Path]) -> None:
    """Each is that of a seed of its own, and the first that of the pair's number."""
    prior, clip = dalle.load_prior(folders[kind]), dalle.load_clip(folders["clip"])
    _, _, samples = sampled_embeddings(prior, clip, pairs(16, count=4), PriorSamplingConfig(samples=1), draws=5)
    assert all(len({tuple(one.tolist()) for one in own}) == 5 for own in samples)
    again = sampled_embeddings(prior, clip, pairs(16, count=4), PriorSamplingConfig(samples=1), draws=1)[2]
    torch.testing.assert_close(again[:, 0], samples[:, 0])


def test_decoder_that_gives_the_images_back_is_perfect(folders: dict[str, Path]) -> None:
    """Whatever it decodes from: cosine 1, distance 0, and captions ranked as those of the images are."""
    decoder, clip = dalle.load_diffusion(folders["decoder"]), dalle.load_clip(folders["clip"])
    assert isinstance(decoder, DiffusionDecoder)
    batches = pairs(16)
    images = torch.cat([batch.unit_images(CPU) for batch in batches])

    class Perfect(DecoderEvaluation):
        def _decode(self, z: Tensor, captions: list[str], seeds: list[int]) -> Tensor:
            return images[seeds]

    found = Perfect(decoder, clip, None, DiffusionSamplingConfig()).metrics(batches)
    with torch.no_grad():
        own = clip.encode_image(images) @ clip.encode_text([name for batch in batches for name in batch.captions]).T
    for source in ("image", "caption"):
        assert found[f"{source}_cos"] == pytest.approx(1, abs=1e-5)
        assert found[f"{source}_frechet"] == pytest.approx(0, abs=1e-4)
        first = sum(int((row > row[n]).sum()) < 1 for n, row in enumerate(own)) / len(own)
        assert found[f"{source}_caption_top1"] == pytest.approx(first)


def test_images_are_those_of_the_pipeline(folders: dict[str, Path]) -> None:
    """The decoder is evaluated on what `decode` samples, with the same noise."""
    from dalle.generation.diffusion.sample import candidate_noise

    pipe = dalle.UnCLIP.from_pretrained(folders["whole"], device="cpu")
    pipe.upsampler = None
    evaluation = DecoderEvaluation(pipe.decoder, pipe.clip, None, pipe.sampling.decoder)  # type: ignore[arg-type]
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    captions, source = ["a", "red heart", ""], candidate_noise([4, 5, 6], (3, 8, 8), CPU)
    with torch.no_grad():
        ours = evaluation._decode(z, captions, [4, 5, 6])
    torch.testing.assert_close(ours, pipe.decode(z, captions, noise=lambda stage, shape: source()))


@pytest.mark.parametrize("name", ["prior", "prior-ar", "decoder", "upsampler", "whole"])
def test_metrics_do_not_depend_on_the_batch_size(name: str, folders: dict[str, Path]) -> None:
    size, metrics = metrics_function(folders[name], None, CPU)
    whole, parts = (metrics(iter(pairs(size, batch_size))) for batch_size in (12, 5))
    assert whole == pytest.approx(parts, rel=1e-3, abs=1e-4)
    prefixes = {"whole": ("image", "prior", "caption"), "decoder": ("image", "caption")}.get(name, ())
    assert all({f"{prefix}_cos", f"{prefix}_caption_top10", f"{prefix}_frechet"} <= set(whole) for prefix in prefixes)


def test_bicubic_psnr_is_that_of_the_images(folders: dict[str, Path]) -> None:
    size, metrics = metrics_function(folders["upsampler"], None, CPU)
    images = torch.cat([batch.unit_images(CPU) for batch in pairs(size)])
    bicubic = torch.nn.functional.interpolate(
        resize_batch(images, 8) * 2 - 1, size=16, mode="bicubic", antialias=True
    ).clamp(-1, 1)
    errors = ((bicubic + 1) / 2 - images).square().flatten(1).mean(1)
    assert metrics(iter(pairs(size)))["bicubic_psnr"] == pytest.approx((-10 * errors.log10()).mean().item(), abs=0.3)


def test_eval_command_prints_the_metrics(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ["kind=shapes", "size=40", "--split", "validation", "--device", "cpu"]
    assert (
        main(["eval", str(folders["decoder"]), *shapes, "--limit", "4", "--clip", str(folders["clip"]), "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)["splits"]["validation"]
    assert found["images"] == 4 and found["image_frechet"] >= 0
    assert main(["eval", str(folders["prior"]), *shapes]) == 0
    told = capsys.readouterr().out
    assert "own_caption_top10" in told and "mean_centered_cos" in told
    assert main(["eval", str(folders["prior"]), *shapes, "--clip", str(folders["clip"])]) == 2
    assert "clip judges the images of an unCLIP" in capsys.readouterr().err
