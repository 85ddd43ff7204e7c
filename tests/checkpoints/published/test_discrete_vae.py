"""Files of DALLE-pytorch's train_vae.py, and the Gumbel VQGAN of ruDALL-E: codes and images of their own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published import discrete_vae
from dalle.checkpoints.published.image_tokenizers import tokenizer_of_dalle_pytorch
from dalle.checkpoints.published.vqgan import config_of
from dalle.image_tokenizers import VQGAN, DiscreteVAE, GumbelConfig, VQGANConfig, build
from support.published import REFERENCES
from support.published.references import rudalle_vq
from support.published.references.transformers import CASES, CODES, ROWS, inputs, pixels
from support.published.references.weights import weight
from support.published.transformers import reference

VERSIONS = [case for case in CASES if case.startswith("dalle-pytorch")]
OPTIONS = {"image_size": 2 * ROWS, "num_tokens": CODES, "codebook_dim": 8, "num_layers": 1, "hidden_dim": 8}


def state_of(case: str) -> dict[str, Tensor]:
    """What the tokenizer of a case's model holds."""
    state, _ = reference(case)
    return {name.removeprefix("vae."): value for name, value in state.items() if name.startswith("vae.")}


def write(file: Path, case: str, **options: Any) -> Path:
    """A file as train_vae.py writes it."""
    torch.save({"hparams": OPTIONS | options, "weights": state_of(case)}, file)
    return file


@pytest.mark.parametrize("case", VERSIONS)
def test_codes_and_images_equal_dalle_pytorchs(case: str, tmp_path: Path) -> None:
    _, expected = reference(case)
    tokenizer = dalle.load_image_tokenizer(write(tmp_path / "vae.pt", case))
    assert isinstance(tokenizer, DiscreteVAE)
    assert (tokenizer.codebook_size, tokenizer.factor, tokenizer.image_size) == (CODES, 2, 2 * ROWS)
    codes = tokenizer.encode(pixels())
    assert torch.equal(codes.flatten(1), expected["codes"]) and len(codes.unique()) > 2
    images = tokenizer.decode(inputs()[1].view(2, ROWS, ROWS))
    wanted = ((expected["pictures"] + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(images, wanted, rtol=0, atol=2e-5)
    assert wanted.std() > 0.05


def test_vae_file_can_be_inspected_and_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "vae.pt", VERSIONS[0])
    assert main(["inspect", str(file)]) == 0
    assert "- images: 8x8 to 4x4 codes of 13\n" in capsys.readouterr().out
    assert main(["convert", str(file), str(tmp_path / "ours")]) == 0
    codes = dalle.load_image_tokenizer(file).encode(pixels())
    assert torch.equal(dalle.load_image_tokenizer(tmp_path / "ours").encode(pixels()), codes)


def test_normalization_of_every_version_is_read(tmp_path: Path) -> None:
    """Three numbers, in newer versions a fourth for transparency; None for pixels as they are."""
    case, images = VERSIONS[0], pixels()
    usual = dalle.load_image_tokenizer(write(tmp_path / "vae.pt", case)).encode(images)
    for told in (((0.5,) * 3, (0.5,) * 3), ((*(0.5,) * 3, 0), (*(0.5,) * 3, 1))):
        file = write(tmp_path / "vae.pt", case, normalization=told)
        assert torch.equal(dalle.load_image_tokenizer(file).encode(images), usual)
    plain = dalle.load_image_tokenizer(write(tmp_path / "vae.pt", case, normalization=None))
    assert torch.equal(plain.encode(2 * images - 1), usual) and not torch.equal(plain.encode(images), usual)
    for told in (((0.5,) * 3, (0.2,) * 3), "half", 3, [[0.5]]):
        with pytest.raises(ValueError, match="image normalization is .*: only mean and standard deviation 0.5"):
            dalle.load_image_tokenizer(write(tmp_path / "vae.pt", case, normalization=told))


def test_vae_inside_a_dalle_file_is_read() -> None:
    state, _ = reference(VERSIONS[0])
    found = tokenizer_of_dalle_pytorch(state, OPTIONS)
    assert found is not None and found.family == discrete_vae.FAMILY and found.config.image_size == 2 * ROWS
    assert tokenizer_of_dalle_pytorch({"logits_bias": torch.zeros(3)}, OPTIONS) is None


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({"image_size": "8"}, {}, "its image_size is '8', expected an integer"),
        ({"image_size": 9}, {}, "image_size is 9; 1 layers need a multiple of 2"),
        ({}, {"codebook.weight": torch.zeros(3)}, r"its codebook.weight is \[3\], expected 2 dimensions"),
        ({}, {"encoder.0.0.weight": torch.zeros(())}, r"its encoder.0.0.weight is \[\], expected 4 dimensions"),
        ({}, {"encoder.0.0.weight": None}, "it has no tensor encoder.0.0.weight"),
        ({}, {"encoder.99999999999.weight": torch.zeros(1)}, "but not the layers before it"),
        ({}, {"encoder.0.0.bias": None}, "missing: encoder.0.0.bias"),
        ({}, {"head.weight": torch.zeros(1)}, "unexpected: head.weight"),
        ({}, {"decoder.3.weight": torch.zeros(4, 8, 1, 1)}, r"decoder.3.weight is \[4, 8, 1, 1\], expected \[3, 8"),
    ],
)
def test_options_that_do_not_fit_the_weights_are_named(
    options: dict[str, Any], change: dict[str, Tensor | None], words: str, tmp_path: Path
) -> None:
    state = {name: value for name, value in (state_of(VERSIONS[0]) | change).items() if value is not None}
    torch.save({"hparams": OPTIONS | options, "weights": state}, tmp_path / "vae.pt")
    with pytest.raises(ValueError, match=words) as error:
        dalle.load_image_tokenizer(tmp_path / "vae.pt")
    assert str(tmp_path / "vae.pt") in str(error.value) and "\n" not in str(error.value)


# The Gumbel VQGAN of ruDALL-E


def test_rudalle_gumbel_vqgan_equals_its_own_code(tmp_path: Path) -> None:
    file = REFERENCES / "rudalle_vq.safetensors"
    with safe_open(file, framework="pt") as held:
        shapes = json.loads(held.metadata()["shapes"])
        codes, images = held.get_tensor("codes"), held.get_tensor("pictures")
    state = {name: weight(name, shape, rudalle_vq.GAIN) for name, shape in shapes.items()}
    loss = {"loss.discriminator.main.0.weight": torch.zeros(2), "loss.perceptual_loss.lin0.model.1.weight": codes}
    source = tmp_path / "vqgan.gumbelf8-sber.model.ckpt"
    torch.save({"state_dict": state | loss}, source)
    tokenizer = dalle.load_image_tokenizer(source)
    assert isinstance(tokenizer, VQGAN) and isinstance(tokenizer.config.quantizer, GumbelConfig)
    assert (tokenizer.codebook_size, tokenizer.factor, tokenizer.image_size) == (rudalle_vq.CODES, 4, 256)
    assert torch.equal(tokenizer.encode(rudalle_vq.images()), codes) and len(codes.unique()) > 20
    torch.testing.assert_close(tokenizer.decode(codes), images, rtol=0, atol=2e-4)
    inside = {
        f"vae.model.{name}": value for name, value in state.items()
    }  # as VQGanVAE stands in DALLE-pytorch's files
    found = tokenizer_of_dalle_pytorch(inside, None)
    assert (
        found is not None and found.config == tokenizer.config and found.tensors.keys() == tokenizer.state_dict().keys()
    )


def test_rudalle_wavelet_decoder_is_refused(tmp_path: Path) -> None:
    state = {
        "model.encoder.conv_in.weight": torch.zeros(8, 3, 3, 3),
        "model.decoder.idwt.g0_col": torch.zeros(1, 1, 2, 1),
    }
    torch.save({"state_dict": state}, tmp_path / "vqgan.gumbelf8-sber-dwt.model.ckpt")
    with pytest.raises(ValueError, match=r"wavelets.*not supported: give vqgan\.gumbelf8-sber\.model\.ckpt"):
        dalle.load_image_tokenizer(tmp_path / "vqgan.gumbelf8-sber-dwt.model.ckpt")


def test_rudalle_gumbel_vqgan_fits_at_full_width() -> None:
    config = VQGANConfig(
        image_size=256,
        channels=128,
        channel_multipliers=[1, 1, 2, 4],
        blocks=2,
        attention_resolutions=[32],
        latent_channels=256,
        quantizer=GumbelConfig(codebook_size=8192, code_channels=256),
    )
    with torch.device("meta"):
        state = dict(build(config).state_dict())
    assert len(state) == 301 and sum(value.numel() for value in state.values()) == 68_995_971
    assert config_of(state, 256) == config
