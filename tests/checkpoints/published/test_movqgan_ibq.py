"""MoVQGANs and Emu3.5's IBQ have the codes and images of slow modules under the published names, on random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published import ibq, movqgan
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer, without_weights
from dalle.image_tokenizers import VQGAN, MoVQGAN, MoVQGANConfig
from support.published.autoencoders import State, decode, encode, random_state

CODES = 48
IBQ = {"n_embed": CODES, "embed_dim": 16, "ddconfig": {"ch": 32, "ch_mult": [1, 2], "resolution": 256}}


def movq_state() -> State:
    return random_state([32, 64], 2, (1,), 4, CODES, 4, modulated=True)


def write_movq(folder: Path, state: State) -> Path:
    folder.mkdir()
    torch.save(state, folder / "movqgan_270M.ckpt")
    return folder / "movqgan_270M.ckpt"


def ibq_state(codes: int = CODES, channels: int = 16) -> State:
    return random_state([32, 64], 2, (), 16, codes, channels)


def write_ibq(folder: Path, state: State, settings: dict | None = IBQ) -> Path:
    folder.mkdir()
    torch.save({"state_dict": state}, folder / "model.ckpt")
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def images(seed: int = 1) -> Tensor:
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def test_a_movqgan_has_the_codes_and_images_of_slow_modules(tmp_path: Path) -> None:
    state = movq_state()
    file = write_movq(tmp_path / "movq", state | {"ema_encoder.conv_in.weight": torch.ones(1), "loss.x": torch.ones(1)})
    ours = dalle.load_image_tokenizer(file)
    assert isinstance(ours, MoVQGAN) and ours.factor == 2 and ours.image_size == 256
    latents = encode(state, images())
    wanted = torch.cdist(latents.permute(0, 2, 3, 1).flatten(0, 2), state["quantize.embedding.weight"]).argmin(1)
    codes = ours.encode(images())
    assert torch.equal(codes.flatten(), wanted) and len(wanted.unique()) > 8
    made, reference = ours.decode_latents(ours.embed_codes(codes)), decode(state, codes)
    assert (made - reference).abs().max() < 2e-5 * (reference.max() - reference.min()) and reference.std() > 0.05
    assert read_image_tokenizer(file).dropped == ["ema_encoder.conv_in.weight", "loss.x"]


def test_an_ibq_takes_the_code_of_the_largest_dot_product(tmp_path: Path) -> None:
    state = ibq_state()
    folder = write_ibq(tmp_path / "ibq", state)
    for source in (folder, folder / "model.ckpt"):
        ours = dalle.load_image_tokenizer(source)
        assert isinstance(ours, VQGAN) and ours.config.quantizer.distance == "dot"
        latents = encode(state, images()).permute(0, 2, 3, 1).flatten(0, 2)
        wanted = (latents @ state["quantize.embedding.weight"].T).argmax(1)
        codes = ours.encode(images())
        assert torch.equal(codes.flatten(), wanted) and len(wanted.unique()) > 8
        nearest = torch.cdist(latents, state["quantize.embedding.weight"]).argmin(1)
        assert (nearest != wanted).float().mean() > 0.3  # what a VQGAN of taming would have found
        made, reference = ours.decode_latents(ours.embed_codes(codes)), decode(state, codes)
        assert (made - reference).abs().max() < 2e-5 * (reference.max() - reference.min()) and reference.std() > 0.05


def test_ibq_without_its_config_is_recognized_by_its_codes_and_never_taken_for_a_vqgan(tmp_path: Path) -> None:
    state = ibq_state(131_072, 4)
    folder = write_ibq(tmp_path / "a", state, None)
    found = read_image_tokenizer(folder)
    assert found.family == ibq.FAMILY and found.config.quantizer.distance == "dot"
    four = random_state([32, 64], 4, (), 16, CODES, 16)
    with pytest.raises(ValueError, match=r"has 4 blocks per level and 48 codes, like an IBQ") as caught:
        read_image_tokenizer(write_ibq(tmp_path / "b", four, None))
    assert "\n" not in str(caught.value)


def test_converted_they_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    movq, other = write_movq(tmp_path / "movq", movq_state()), write_ibq(tmp_path / "ibq", ibq_state())
    for source, family in ((movq, "a MoVQGAN"), (other, "the image tokenizer of Emu3.5 (IBQ)")):
        assert main(["inspect", str(source)]) == 0
        told = capsys.readouterr().out
        assert family in told and "Apache-2.0" in told and "48" in told
        out = tmp_path / f"ours-{source.name}"
        assert main(["convert", str(source), str(out), "image_size=16"]) == 0
        one, two = dalle.load_image_tokenizer(source), dalle.load_image_tokenizer(out)
        assert two.image_size == 16 and torch.equal(one.encode(images()), two.encode(images()))


def test_at_full_size_they_have_the_published_parameters() -> None:
    widths = [256, 256, 512, 512, 1024]
    for found, wanted in (
        (movqgan.read(random_state([256, 512, 512, 1024], 2, (3,), 4, 16384, 4, True, "meta")), 270_669_103),
        (ibq.read(random_state(widths, 4, (4,), 256, 131_072, 256, device="meta")), 455_000_000),
    ):
        module = without_weights(found)
        found.check(module, "full size")
        count = sum(value.numel() for value in module.parameters())
        assert count == wanted if wanted % 1000 else abs(count / wanted - 1) < 0.002, count


def test_a_movqgan_trains() -> None:
    ours = MoVQGAN(MoVQGANConfig(image_size=8, channels=32, channel_multipliers=[1, 1], blocks=1, codebook_size=16))
    made = ours(torch.rand(2, 3, 8, 8))
    (made.images.square().mean() + made.losses["codebook"]).backward()
    assert all(value.grad is not None for value in ours.parameters())


def test_damaged_files_are_one_line_errors(tmp_path: Path) -> None:
    def refused(message: str, source: Path) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_image_tokenizer(source)
        assert "\n" not in str(caught.value)

    state = movq_state()
    lacking = {name: value for name, value in state.items() if name != "decoder.mid.block_1.norm1.conv_b.weight"}
    refused("missing: .*decoder.mid.block_1.norm1.conv_b.weight", write_movq(tmp_path / "a", lacking))
    refused("unknown tensor names: encoder.more", write_movq(tmp_path / "b", state | {"encoder.more": torch.ones(1)}))
    attends = {name: value for name, value in state.items() if ".attn." not in name}
    refused(r"its levels \[\] attend", write_movq(tmp_path / "c", attends))
    refused(r"config.yaml says codes and channels \(8, 16\), its tensors \(48, 16\)",
            write_ibq(tmp_path / "d", ibq_state(), IBQ | {"n_embed": 8}))  # fmt: skip
    refused("asks for normalized codes", write_ibq(tmp_path / "e", ibq_state(), IBQ | {"l2_normalize": True}))
    folder = write_ibq(tmp_path / "f", ibq_state())
    (folder / "model.ckpt").unlink()
    refused("no model.ckpt", folder)
