"""Published image tokenizers give the codes and images that their own code gives.

Needs the projects' packages: pip install --no-deps dall-e attrs requests taming-transformers-rom1504
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors import safe_open
from torch import Tensor, nn

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.image_tokenizers import tokenizer_of_dalle_pytorch
from dalle.checkpoints.published.pickles import read_pickled
from dalle.checkpoints.published.stored_state import named_tensors
from dalle.checkpoints.published.vqgan import config_of
from dalle.image_tokenizers import DVAE, VQGAN, VQGANConfig, build
from dalle.image_tokenizers.vq import VQConfig
from support.published import REFERENCES
from support.published.references.llamagen_vq import images
from support.published.references.weights import weight

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, nn.Module]:
    """encoder.pkl and decoder.pkl of small modules of OpenAI's own code, and these modules."""
    dall_e = pytest.importorskip("dall_e", reason="pip install --no-deps dall-e attrs requests")
    folder = tmp_path_factory.mktemp("openai")
    torch.manual_seed(0)
    encoder = dall_e.Encoder(n_hid=64, vocab_size=512)
    decoder = dall_e.Decoder(n_init=16, n_hid=64, vocab_size=512)
    for module in (encoder, decoder):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    with torch.no_grad():  # no code is likelier than another: random weights alone would use three of them
        encoder.blocks.output.conv.b.sub_(encoder(0.8 * IMAGES + 0.1).mean((0, 2, 3)))
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        torch.save(module, folder / f"{name}.pkl")
    return folder, encoder, decoder


def test_openai_dvae_equals_its_own_code(openai: tuple[Path, nn.Module, nn.Module], tmp_path: Path) -> None:
    folder, encoder, decoder = openai
    tokenizer = dalle.load_image_tokenizer(folder)
    assert isinstance(tokenizer, DVAE) and (tokenizer.codebook_size, tokenizer.factor) == (512, 8)
    with torch.no_grad():
        codes = encoder(0.8 * IMAGES + 0.1).argmax(1)
        one_hot = F.one_hot(codes, 512).permute(0, 3, 1, 2).float()
        expected = ((decoder(one_hot)[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    assert torch.equal(tokenizer.encode(IMAGES), codes) and len(codes.unique()) > 20
    torch.testing.assert_close(tokenizer.decode(codes), expected, rtol=0, atol=2e-4)
    assert expected.std() > 0.02
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    assert torch.equal(dalle.load_image_tokenizer(tmp_path / "ours").encode(IMAGES), codes)


def test_options_that_an_image_tokenizer_does_not_use_are_refused(
    openai: tuple[Path, nn.Module, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, ours = str(openai[0]), str(tmp_path / "ours")
    assert main(["convert", source, ours]) == 0
    capsys.readouterr()
    out, size = str(tmp_path / "out"), "image_size=64"
    for command, message in (
        (["inspect", source, "foo=1"], f"foo is not to be given: {source} is described by its files alone"),
        (["convert", source, out, "--image-tokenizer", "x"], "image_tokenizer is not for an image tokenizer"),
        (["convert", source, out, "--text-tokenizer", "x"], "text_tokenizer is not for an image tokenizer"),
        (["convert", ours, out, size, "--text-tokenizer", "x"], "text_tokenizer is not for an image tokenizer"),
        (["convert", ours, out, size, "--prior", "x"], "prior is not for an image tokenizer"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    weights = tmp_path / "ours/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 64
    weights.write_bytes(content)
    assert main(["convert", ours, out, size]) == 2  # the copy would have a valid hash
    assert f"{ours} is damaged or was changed" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_openai_dvae_fits_at_full_width() -> None:
    config = dalle.image_tokenizers.DVAEConfig(image_size=256, codebook_size=8192, hidden=256, code_channels=128)
    with torch.device("meta"):
        model = DVAE(config)
    assert sum(p.numel() for p in model.encoder.parameters()) == 53_786_240
    assert sum(p.numel() for p in model.decoder.parameters()) == 43_829_766


class Taming(nn.Module):
    """VQModel and GumbelVQ of taming, without Lightning: their own encoder, decoder and quantizers."""

    def __init__(self, gumbel: bool):
        super().__init__()
        model = pytest.importorskip("taming.modules.diffusionmodules.model", reason="taming-transformers-rom1504")
        quantize = pytest.importorskip("taming.modules.vqvae.quantize")
        options = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 2, "attn_resolutions": [32], "resolution": 64}
        options |= {"in_channels": 3, "out_ch": 3, "z_channels": 16, "double_z": False}
        self.encoder, self.decoder = model.Encoder(**options), model.Decoder(**options)
        self.gumbel = gumbel
        if gumbel:
            self.quantize = quantize.GumbelQuantize(16, 16, 48, straight_through=True)
        else:
            self.quantize = quantize.VectorQuantizer2(48, 8, beta=0.25)
        width = 16 if gumbel else 8
        self.quant_conv, self.post_quant_conv = nn.Conv2d(16, width, 1), nn.Conv2d(width, 16, 1)
        nn.init.normal_(self.quant_conv.weight, std=3.0)  # so that many codes are met


@pytest.mark.parametrize("gumbel", [False, True])
def test_taming_vqgans_equal_their_own_code(gumbel: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    theirs = Taming(gumbel).eval()
    nn.init.normal_(theirs.quantize.embed.weight if gumbel else theirs.quantize.embedding.weight)
    state = theirs.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3, "callbacks": {}}, tmp_path / "last.ckpt")
    target = "taming.models.vqgan.GumbelVQ" if gumbel else "taming.models.vqgan.VQModel"
    options = {"model": {"target": target, "params": {"ddconfig": {"resolution": 64}}}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(options))
    tokenizer = dalle.load_image_tokenizer(tmp_path)
    assert isinstance(tokenizer, VQGAN) and (tokenizer.codebook_size, tokenizer.factor, tokenizer.image_size) == (
        48,
        2,
        64,
    )
    with torch.no_grad():
        latents = theirs.quant_conv(theirs.encoder(2 * IMAGES - 1))
        if gumbel:
            codes = theirs.quantize.proj(latents).argmax(1)
            vectors = theirs.quantize.embed(codes).permute(0, 3, 1, 2)
        else:
            vectors, _, (_, _, flat) = theirs.quantize(latents)
            codes = flat.view(2, 32, 32)
        expected = ((theirs.decoder(theirs.post_quant_conv(vectors)) + 1) / 2).clamp(0, 1)
    assert torch.equal(tokenizer.encode(IMAGES), codes) and len(codes.unique()) > 10
    torch.testing.assert_close(tokenizer.decode(codes), expected, rtol=0, atol=2e-4)
    assert torch.equal(dalle.load_image_tokenizer(tmp_path / "last.ckpt").encode(IMAGES), codes)
    capsys.readouterr()  # what the reference prints
    assert main(["inspect", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "- images: 64x64 to 32x32 codes of 48\n" in told and "- left out: 1 tensors of its training" in told
    parameters = sum(p.numel() for p in theirs.parameters())
    assert f"- parameters: {parameters:,}, 0.00 GB" in told
    assert main(["convert", str(tmp_path), str(tmp_path / "ours")]) == 0
    card = (tmp_path / "ours" / "README.md").read_text()
    assert card.startswith("# ours\n") and "taming-transformers" in card and "- license: MIT" in card
    assert torch.equal(dalle.load_image_tokenizer(tmp_path / "ours").encode(IMAGES), codes)


def published(config: VQGANConfig) -> dict[str, Tensor]:
    """Names and shapes of taming's, made of ours without its package, on the meta device."""
    with torch.device("meta"):
        state = build(config).state_dict()
    for counter in ("quantize.age", "quantize.updates"):
        state.pop(counter, None)
    return dict(state)


def test_llamagen_vqgan_equals_its_own_code(tmp_path: Path) -> None:
    file = REFERENCES / "llamagen_vq.safetensors"
    with safe_open(file, framework="pt") as reference:
        shapes = json.loads(reference.metadata()["shapes"])
        codes, decoded = reference.get_tensor("codes"), reference.get_tensor("pictures")
    state = {name: weight(name, shape) for name, shape in shapes.items()}
    torch.save({"model": state, "args": Namespace(lr=0.1)}, tmp_path / "vq_ds16_c2i.pt")
    tokenizer = dalle.load_image_tokenizer(tmp_path / "vq_ds16_c2i.pt")
    assert isinstance(tokenizer, VQGAN) and (tokenizer.codebook_size, tokenizer.factor) == (40, 2)
    assert torch.equal(tokenizer.encode(images()), codes) and len(codes.unique()) > 30
    expected = ((decoded + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(codes), expected, rtol=0, atol=2e-4)


FULL_WIDTH = {  # codes, channels of a code, l2-normalized; tensors and numbers in the file
    "taming f16-1024": (1024, 256, False, 343, 72_141_699),
    "taming f16-16384": (16_384, 256, False, 343, 76_073_859),
    "LlamaGen VQ-16": (16_384, 8, True, 344 - 1, 71_948_939 - 65_536),  # less quantize.codebook_used, which is dropped
}


@pytest.mark.parametrize("name", FULL_WIDTH)
def test_vqgans_fit_at_full_width(name: str) -> None:
    codes, width, normalized, tensors, total = FULL_WIDTH[name]
    distance: Any = "cosine" if normalized else "euclidean"
    config = VQGANConfig(
        image_size=256,
        channels=128,
        channel_multipliers=[1, 1, 2, 2, 4],
        blocks=2,
        attention_resolutions=[16],
        latent_channels=256,
        quantizer=VQConfig(codebook_size=codes, code_channels=width, distance=distance, update="gradient"),
    )
    state = published(config)
    assert len(state) == tensors and sum(value.numel() for value in state.values()) == total
    assert config_of(state, 256, normalized) == config


# What is something else: one line


def refused(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["convert", str(source), str(source.parent / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and not (source.parent / "out").exists()
    return err


def test_files_without_an_image_tokenizer_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a"
    assert f"{folder}: no such file or folder" in refused(folder, capsys)
    folder.mkdir()
    (folder / "config.yaml").write_text("stage: clip")
    assert "is already a model folder" in refused(folder, capsys)
    (folder / "config.yaml").unlink()
    assert "neither a model folder (no config.yaml) nor contains published weights" in refused(folder, capsys)
    torch.save({"state_dict": {"head.weight": torch.zeros(2)}}, folder / "last.ckpt")
    assert "cannot be loaded: it has unknown tensor names: head.weight" in refused(folder, capsys)
    torch.save({"epoch": 3}, folder / "last.ckpt")
    assert "it holds no named tensors" in refused(folder, capsys)
    (folder / "last.ckpt").write_bytes(b"")
    assert "last.ckpt is empty" in refused(folder, capsys)
    torch.save(OrderedDict({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}), folder / "last.ckpt")
    assert "it has no tensor quantize.embed.weight" in refused(folder, capsys)
    (folder / "model.yaml").write_text("model: {target: os.system}")
    assert "model.yaml says target: os.system, expected taming.models.vqgan.VQModel" in refused(folder, capsys)


def test_tensors_of_another_shape_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs: Any = Taming(gumbel=False)
    capsys.readouterr()  # what it prints
    state = theirs.state_dict()
    state["decoder.conv_out.weight"] = torch.zeros(3, 99, 3, 3)
    del state["post_quant_conv.bias"]
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    told = refused(tmp_path / "last.ckpt", capsys)
    assert "missing: post_quant_conv.bias" in told
    assert "decoder.conv_out.weight is [3, 99, 3, 3], expected [3, 32, 3, 3]" in told


def test_pickled_module_gives_its_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    torch.save(module, tmp_path / "a.pt")
    found = named_tensors(read_pickled(tmp_path / "a.pt"))
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())


def test_openai_dvae_inside_a_dalle_pytorch_file_is_read(openai: tuple[Path, nn.Module, nn.Module]) -> None:
    folder, encoder, decoder = openai
    modules = {"vae.enc.": encoder, "vae.dec.": decoder}
    state = {prefix + name: value for prefix, module in modules.items() for name, value in module.state_dict().items()}
    found = tokenizer_of_dalle_pytorch(state | {"text_emb.weight": torch.zeros(2, 2)}, None)
    assert found is not None
    tokenizer = build(found.config)
    tokenizer.load_state_dict(dict(found.tensors))
    assert torch.equal(tokenizer.encode(IMAGES), dalle.load_image_tokenizer(folder).encode(IMAGES))
    assert tokenizer_of_dalle_pytorch({"text_emb.weight": torch.zeros(2, 2)}, None) is None
