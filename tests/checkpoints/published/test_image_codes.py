"""Image tokenizers of published models: found in their folders, named where missing, refused if another's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published import emu3, lumina2
from dalle.image_tokenizers import (
    Emu3VQConfig,
    FSQConfig,
    GumbelConfig,
    ImageCodes,
    MoVQGANConfig,
    VQConfig,
    VQGANConfig,
    check_codes,
    codes_of,
)
from support.published.autoencoders import random_state
from support.published.chameleon import write_images
from support.published.families import WRITERS

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
EMU3_CODES = 37
DEVICE = ["--device", "cpu", "--n", "1", "--no-grid"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Emu3 of its project's layout, with its image tokenizer in a folder of it."""
    return WRITERS["emu3"](tmp_path_factory.mktemp("emu3")).model


@pytest.fixture(scope="module")
def movqgan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another image tokenizer, with as many codes, of as many channels, for as many pixels."""
    file = tmp_path_factory.mktemp("movqgan") / "movqgan.ckpt"
    torch.save(random_state([32, 64], 1, (1,), 4, EMU3_CODES, 4, modulated=True), file)
    return file


def line(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """The one line that a command ends with, and exit code 2."""
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_another_image_tokenizer_with_as_many_codes_is_refused(
    model: Path, movqgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dalle.load_image_tokenizer(movqgan).codebook_size == EMU3_CODES
    wanted = f"{movqgan} is a MoVQGAN with {EMU3_CODES} codes of 4 channels for 2x2 pixels each, and this model draws"
    given = ["--image-tokenizer", str(movqgan)]
    said = line(capsys, ["convert", str(model), str(tmp_path / "a"), "grid=4", *given])
    assert wanted in said and said.endswith("give that, such as BAAI/Emu3-VisionTokenizer\n")
    sample = ["sample", "a fox", "--out", str(tmp_path / "out"), *DEVICE]
    assert wanted in line(capsys, [*sample, "--model", str(model), "--given", "grid=4", *given])
    # Of ours, with its own image tokenizer and without one, and one of ours in place of a published file
    alone = tmp_path / "alone"
    shutil.copytree(model, alone, ignore=shutil.ignore_patterns("vision"))
    for source in (model, alone):
        assert main(["convert", str(source), str(tmp_path / f"ours-{source.name}"), "grid=4"]) == 0
        assert wanted in line(capsys, [*sample, "--model", str(tmp_path / f"ours-{source.name}"), *given])
    ours = tmp_path / "movqgan"
    assert main(["convert", str(movqgan), str(ours)]) == 0
    said = line(capsys, ["convert", str(model), str(tmp_path / "a"), "grid=4", "--image-tokenizer", str(ours)])
    assert f"{ours} is a MoVQGAN with" in said


def test_other_image_tokenizers_in_the_folder_of_a_model_are_refused(tmp_path: Path) -> None:
    made = WRITERS["chameleon"](tmp_path)
    file = made.model / "tokenizer/vqgan.ckpt"
    file.unlink()
    torch.save(random_state([32, 64], 1, (1,), 4, 24, 4, modulated=True), file)
    (file.with_name("vqgan.yaml")).unlink()
    with pytest.raises(ValueError, match="the image tokenizer in the files of .* is a MoVQGAN with 24 codes"):
        dalle.TextToImage.from_pretrained(made.model, device="cpu", grid=4)
    write_images(file)
    assert dalle.TextToImage.from_pretrained(made.model, device="cpu", grid=4).grid == (4, 4)


def test_a_missing_image_tokenizer_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    alone, ours = tmp_path / "alone", tmp_path / "ours"
    shutil.copytree(model, alone, ignore=shutil.ignore_patterns("vision"))
    assert main(["convert", str(alone), str(ours), "grid=4"]) == 0
    _, said = capsys.readouterr().out.splitlines()
    assert said == (
        f"{ours} has no image tokenizer, which the files did not contain: BAAI/Emu3-VisionTokenizer is fetched when "
        "the model is used, or it is given by --image-tokenizer, to this command or to those that use the model"
    )
    for command in ("inspect", "plan"):
        assert main([command, str(ours)]) == 0
        assert "image tokenizer: read from BAAI/Emu3-VisionTokenizer" in capsys.readouterr().out
    sample = ["sample", "a fox", "--model", str(ours), *DEVICE, "--out", str(tmp_path / "out")]
    said = line(capsys, sample)
    assert f"give the image tokenizer of {ours} (--image-tokenizer, image_tokenizer)" in said
    assert main([*sample, "--image-tokenizer", str(model / "vision")]) == 0
    # One that is complete says nothing more
    capsys.readouterr()
    assert main(["convert", str(model), str(tmp_path / "whole"), "grid=4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("family", ["simplear", "emu3", pytest.param("liquid", marks=pytest.mark.slow)])
def test_an_image_tokenizer_in_a_folder_of_the_model_is_found(family: str, tmp_path: Path) -> None:
    made = WRITERS[family](tmp_path)
    if family == "liquid":  # as in the demonstration of its project
        (made.model / "chameleon").mkdir()
        shutil.move(made.model / "vqgan.ckpt", made.model / "chameleon/vqgan.ckpt")
    pipe = dalle.TextToImage.from_pretrained(made.model, device="cpu", grid=4)
    assert pipe.image_tokenizer.grid == (4, 4)
    if made.images is not None:
        other = dalle.load_image_tokenizer(made.images, rows=4)
        state = pipe.image_tokenizer.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_channels_and_cells_are_compared_where_as_many_codes_are_wanted() -> None:
    near = VQConfig(codebook_size=8192, code_channels=256, distance="euclidean")
    chameleon = VQGANConfig(image_size=512, channel_multipliers=[1, 1, 2, 2, 4], quantizer=near)
    wanted = codes_of(chameleon)
    assert wanted == ImageCodes(network="vqgan", quantizer="euclidean", codes=8192, channels=256, factor=16)
    check_codes(wanted, chameleon, "a")
    check_codes(None, chameleon, "a")
    check_codes(ImageCodes(network="vqgan"), chameleon, "a")
    smaller = VQGANConfig(quantizer=VQConfig(codebook_size=24, code_channels=8, distance="euclidean"))
    check_codes(wanted, smaller, "a")  # of a small model, which says itself how many codes it draws
    finer = VQGANConfig(image_size=512, patch=2, channel_multipliers=[1, 1, 2, 2, 4], quantizer=near)
    check_codes(wanted, finer, "a")  # the same codes, drawn twice as large
    others = {
        "for 4x4 pixels each, and": VQGANConfig(image_size=512, channel_multipliers=[1, 2, 4], quantizer=near),
        "8,192 codes of 3 channels": VQGANConfig(
            image_size=512, channel_multipliers=[1, 1, 2, 2, 4],
            quantizer=VQConfig(codebook_size=8192, code_channels=3, distance="euclidean"),
        ),
        "Gumbel-softmax": VQGANConfig(quantizer=GumbelConfig(codebook_size=8192)),
        "normalized codes": VQGANConfig(quantizer=VQConfig(codebook_size=8192)),
        "with FSQ": VQGANConfig(quantizer=FSQConfig(levels=[8, 8, 8, 16])),
    }  # fmt: skip
    for message, config in others.items():
        with pytest.raises(ValueError, match=f"^a is a VQGAN.*{message}.*, a VQGAN .taming"):
            check_codes(wanted, config, "a")
    assert replace(emu3.CODES, source="") == codes_of(Emu3VQConfig())
    assert replace(lumina2.CODES, source="") == codes_of(MoVQGANConfig())
