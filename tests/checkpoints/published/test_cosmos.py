"""Cosmos' tokenizer of videos has the codes and images of a network in three dimensions, on random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.hub import loadable_files
from dalle.checkpoints.published import cosmos as published
from dalle.checkpoints.published.image_tokenizers import without_weights
from dalle.image_tokenizers import Cosmos, CosmosConfig
from dalle.image_tokenizers.cosmos import CosmosFSQ
from dalle.image_tokenizers.quantize import FSQConfig
from support.published import cosmos

ROWS = 4


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a tokenizer of 60 codes, to be read only: tracing takes a second."""
    return cosmos.write(cosmos.parts((5, 4, 3)), tmp_path_factory.mktemp("archives") / "cosmos")


def images(seed: int, rows: int = ROWS, columns: int = ROWS + 1) -> Tensor:
    """Cells of different colors, with noise."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.rand(2, 3, rows, columns, generator=generator)
    large = torch.nn.functional.interpolate(colors, scale_factor=16.0)
    return (0.8 * large + 0.2 * torch.rand(large.shape, generator=generator)).contiguous()


@pytest.mark.parametrize(
    "levels",
    [pytest.param((8, 8, 8, 5, 5, 5), id="64,000"), pytest.param((5, 4, 3), id="60", marks=pytest.mark.slow)],
)
def test_codes_and_images_are_those_of_the_video_model(levels: tuple[int, ...], tmp_path: Path) -> None:
    encoder, decoder = cosmos.parts(levels)
    folder = cosmos.write((encoder, decoder), tmp_path / "DV8x16x16")
    ours = dalle.load_image_tokenizer(folder, rows=ROWS)
    assert isinstance(ours, Cosmos) and ours.grid == (ROWS, ROWS) and ours.factor == 16
    for size in ((ROWS, ROWS), (ROWS, ROWS + 1)):
        pixels = images(1, *size)
        with torch.no_grad():
            wanted = encoder(2 * pixels[:, :, None] - 1)[:, 0]
        assert torch.equal(ours.encode(pixels), wanted) and len(wanted.unique()) > 8
        assert (wanted[0] != wanted[1]).float().mean() > 0.5
    codes = torch.randint(ours.codebook_size, (2, ROWS, ROWS + 1), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        decoded = (decoder(codes[:, None])[:, :, 0] + 1) / 2
    span = decoded.max() - decoded.min()
    assert (ours.decode_latents(ours.embed_codes(codes)) - decoded).abs().max() < 2e-5 * span and decoded.std() > 0.1
    torch.testing.assert_close(ours.decode(codes), decoded.clamp(0, 1), rtol=0, atol=2e-4)


def test_every_code_has_a_vector_of_its_own_that_is_quantized_to_it() -> None:
    quantize = CosmosFSQ(FSQConfig(levels=[8, 8, 8, 5, 5, 5]))
    codes = torch.arange(64_000)[None, None]
    vectors = quantize.lookup(codes)
    assert len(vectors[0, :, 0].T.unique(dim=0)) == 64_000
    # The latents of which tanh makes these levels
    levels = torch.tensor([8, 8, 8, 5, 5, 5])[:, None, None]
    half, offset = (levels - 1) * 1.001 / 2, 0.5 * (levels % 2 == 0)
    latents = torch.atanh((vectors * (levels // 2) + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(quantize.encode(latents), codes)


def test_at_full_size_it_has_the_published_parameters() -> None:
    with torch.device("meta"):
        both = cosmos.parts(sizes=cosmos.FULL)
    assert sum(value.numel() for network in both for value in network.parameters()) == 112_472_182
    found = published.of_tensors({**both[0].state_dict(), **both[1].state_dict()})
    assert found.config == CosmosConfig()
    ours = without_weights(found)
    found.check(ours, "cosmos")
    # Kernels over time, wavelets high in time and steps that one frame does not take are left out or folded
    assert sum(value.numel() for value in ours.parameters()) == 82_298_774 and ours.codebook_size == 64_000


def test_archives_are_read_and_not_run(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("an archive was loaded as a program")

    monkeypatch.setattr(torch.jit, "load", never)
    monkeypatch.setattr(torch, "load", never)
    pixels = images(3)
    codes = dalle.load_image_tokenizer(archives, rows=ROWS).encode(pixels)
    one = dalle.load_image_tokenizer(archives / "decoder.jit", rows=ROWS)
    assert torch.equal(one.encode(pixels), codes)
    kept = loadable_files(["autoencoder.jit", "encoder.jit", "decoder.jit", "model.pt", "config.json", "README.md"])
    assert kept == ["encoder.jit", "decoder.jit", "config.json", "README.md"]


def test_converted_it_is_the_same(archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(archives)]) == 0
    told = capsys.readouterr().out
    assert "the image tokenizer of Cosmos" in told and "NVIDIA Open Model License" in told
    assert "1024x1024 to 64x64 codes of 60" in told
    assert main(["convert", str(archives), str(tmp_path / "ours"), "image_size=64"]) == 0
    one, two = dalle.load_image_tokenizer(archives, rows=ROWS), dalle.load_image_tokenizer(tmp_path / "ours")
    pixels = images(4)
    assert two.image_size == 64 and torch.equal(one.encode(pixels), two.encode(pixels))
    codes = one.encode(pixels)
    assert torch.equal(one.decode(codes), two.decode(codes))


def test_it_trains() -> None:
    ours = Cosmos(CosmosConfig(image_size=32, channels=16, channel_multipliers=[1, 1, 2], blocks=1, levels=[5, 4, 3]))
    made = ours(images(5, 2, 2))
    made.images.square().mean().backward()
    assert all(value.grad is not None for value in ours.parameters())
    with pytest.raises(ValueError, match="give one for each of 3 levels"):
        CosmosConfig(channel_multipliers=[1, 2])


@pytest.mark.parametrize(
    "steps, wrong",
    [
        pytest.param((1, 1), "encoder", id="DV8x8x8"),
        pytest.param((1, 0), "encoder", id="DV4x8x8", marks=pytest.mark.slow),
        pytest.param((1, 1), "decoder", id="another decoder"),
    ],
)
def test_tokenizers_of_other_steps_are_recognized_by_their_programs(
    steps: tuple[int, int], wrong: str, archives: Path, tmp_path: Path
) -> None:
    own, other = cosmos.parts((5, 4, 3)), cosmos.parts((5, 4, 3), steps=steps)
    for one, two in zip(own, other, strict=True):
        assert {name: value.shape for name, value in one.state_dict().items()} == {
            name: value.shape for name, value in two.state_dict().items()
        }
    folder = shutil.copytree(archives, tmp_path / "unnamed")
    cosmos.write(other, folder, cells=1, names=(wrong,))
    message = f"{wrong}.jit makes codes of 8x8 pixels: it is another Cosmos tokenizer, such as DV8x8x8 or DV4x8x8"
    with pytest.raises(ValueError, match=message) as caught:
        dalle.load_image_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_damaged_and_other_archives_are_one_line_errors(archives: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(archives, tmp_path / "a")

    def refused(message: str, source: Path) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_image_tokenizer(source)
        assert "\n" not in str(caught.value) and str(source) in str(caught.value)

    encoder, decoder = ({**network.state_dict()} for network in cosmos.parts((5, 4, 3)))
    whole = encoder | decoder | {"quantizer._levels": torch.tensor([5, 4, 3])}

    def wrong(message: str, **changes: Tensor | None) -> None:
        new = {name: value for name, value in (whole | changes).items() if value is not None}
        with pytest.raises(ValueError, match=message) as caught:
            found = published.of_tensors(new)
            found.check(without_weights(found), "cosmos")
        assert "\n" not in str(caught.value)

    norm, kernel = "decoder.mid.attn_1.1.norm.norm.weight", "encoder.down.0.downsample.conv2.conv3d.weight"
    wrong(f"missing: .*{norm}", **{norm: None})
    wrong(f"missing: .*{kernel}", **{kernel: None})
    wrong("unknown tensor names: encoder.extra", **{"encoder.extra": torch.ones(1)})
    wrong("not have the expected shapes: .*conv2.conv3d.weight", **{kernel: torch.ones(3, 3, 3, 1, 1)})
    wrong("continuous latents", **{"quant_conv.conv3d.weight": torch.ones(16, 8, 1, 1, 1)})
    wrong("24 channels of patches", **{"encoder.conv_in.0.conv3d.weight": torch.ones(16, 24, 1, 3, 3)})
    with pytest.raises(ValueError, match="it is no tokenizer of videos"):
        published.of_tensors({"encoder.conv_in.weight": torch.ones(1)})
    refused("Cosmos tokenizer DV4x8x8, which is not supported", folder.rename(tmp_path / "Cosmos-Tokenizer-DV4x8x8"))
    folder = (tmp_path / "Cosmos-Tokenizer-DV4x8x8").rename(tmp_path / "b")
    (folder / "encoder.jit").write_bytes((folder / "encoder.jit").read_bytes()[:3000])
    refused("is damaged", folder)
    (folder / "encoder.jit").unlink()
    refused("has no encoder.jit: put encoder.jit and decoder.jit", folder)
    for source in (folder, folder / "decoder.jit"):
        with pytest.raises(ValueError, match="it is an image tokenizer of Cosmos: give it as the image tokenizer"):
            dalle.load_model(source)
