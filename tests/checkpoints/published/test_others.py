"""Files of projects that build on one another are told apart: what is computed otherwise is refused by its name."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.published.clip import read_clip
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer
from dalle.image_tokenizers import VQGAN, VQConfig
from support.published.clips import hub_folder, state
from support.published.folders import YTTM, vqgan

NEAREST = VQConfig(codebook_size=40, code_channels=8, distance="euclidean", update="gradient")
TAMING = {"model": {"target": "taming.models.vqgan.VQModel", "params": {"ddconfig": {"resolution": 16}}}}


def one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What every way to a file of weights says of one that it refuses."""
    told = set()
    for command in (["inspect", str(source)], ["convert", str(source), str(source.parent / "out")]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and not (source.parent / "out").exists()
        told.add(err.partition(": ")[2])
    assert len(told) == 1
    return told.pop()


@pytest.mark.parametrize(
    "codes, blocks", [(40, 4), (70_000, 1)], ids=["as many blocks as SEED-Voken's", "more codes than taming's"]
)
def test_possible_ibq_needs_a_config_to_load_as_vqgan(
    codes: int, blocks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.ckpt"
    quantizer = VQConfig(codebook_size=codes, code_channels=8, distance="euclidean", update="gradient")
    torch.save({"state_dict": vqgan(quantizer, blocks=blocks)}, file)
    told = one_line(file, capsys)
    assert "like an IBQ (SEED-Voken), which is not supported" in told and "model.yaml beside it" in told
    with pytest.raises(ValueError, match="like an IBQ"):
        dalle.load_image_tokenizer(file)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(TAMING))
    tokenizer = dalle.load_image_tokenizer(file)
    assert isinstance(tokenizer, VQGAN) and tokenizer.codebook_size == codes


def test_llamagen_distance_follows_its_training_options(tmp_path: Path) -> None:
    states = vqgan(NEAREST, llamagen=True)
    distances = []
    for options in ({}, {"codebook_l2_norm": True}, {"codebook_l2_norm": False}):
        torch.save({"model": states, "args": Namespace(**options)}, tmp_path / "vq.pt")
        found: Any = read_image_tokenizer(tmp_path / "vq.pt").config
        distances.append(found.quantizer.distance)
    assert distances == ["cosine", "cosine", "euclidean"]


OTHERS = {
    "language_model.model.norm.weight": "a DeepSeek-VL or another model that reads images and draws none",
    "decoder.up.0.block.0.norm1.norm_layer.weight": "a MoVQGAN",
    "model.embed_tokens.weight": "a language model",
    "layers.0.attention.wq.weight": "a language model in Meta's layout",
    "layers.3.encoder_attn.q_proj.weight": "an encoder and decoder",
    "l_text_pos_embeddings.weight": "a ruDOLPH",
    "blocks.group_1.group.block_1.res_path.path.conv_1.weight": "FLAVA's copy",
    "first_stage_model.encoder.conv_in.weight": "a latent diffusion model",
    "encoder.down_blocks.0.resnets.0.norm1.weight": "an autoencoder in the layout of diffusers",
    "visual.trunk.pos_embed": "a CLIP of open_clip whose image tower is of timm and no SigLIP's",
    "bert.embeddings.LayerNorm.weight": "a Chinese-CLIP",
    "text.transformer.layers.0.weight": "a CLIP of open_clip with a text tower of its own",
    "text_model.roberta.embeddings.LayerNorm.weight": "an AltCLIP",
}


@pytest.mark.parametrize("name", OTHERS)
def test_unsupported_families_are_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.pt"
    torch.save({"state_dict": vqgan(NEAREST) | {name: torch.zeros(2)}}, file)
    told = one_line(file, capsys)
    assert f"it is {OTHERS[name]}" in told and "which is not supported" in told
    torch.save(state("openai") | {name: torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=f"it is {OTHERS[name]}"):
        read_clip(file, {"feed_forward": "gelu"})


def test_autoencoder_without_codebook_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = {name: value for name, value in vqgan(NEAREST).items() if not name.startswith("quantize.")}
    torch.save({"state_dict": states}, tmp_path / "kl-f8.ckpt")
    assert "it is a continuous autoencoder (of latent diffusion)" in one_line(tmp_path / "kl-f8.ckpt", capsys)


def test_clip_with_another_text_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path, "hugging_face")
    (folder / "bpe.model").write_text(YTTM)
    with pytest.raises(ValueError, match="its text tokenizer is of the kind yttm, as ruCLIP's"):
        dalle.load_clip(folder)
    (folder / "bpe.model").unlink()
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\na b\n")
    with pytest.raises(ValueError, match=r"it has 60 text tokens, its text tokenizer 516"):
        dalle.load_clip(folder)


def test_other_clip_types_are_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path, "hugging_face")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "metaclip_2"}))
    with pytest.raises(ValueError, match="model_type: 'metaclip_2', expected 'clip'"):
        read_clip(folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    read_clip(folder)


@pytest.mark.parametrize(
    "part, option",
    [
        ("text_cfg", {"no_causal_mask": True}),
        ("text_cfg", {"pool_type": "last"}),
        ("text_cfg", {"hf_tokenizer_name": "bert-base-uncased"}),
        ("text_cfg", {"embed_cls": True}),
        ("vision_cfg", {"pool_type": "avg"}),
        ("vision_cfg", {"act_kwargs": {"approximate": "tanh"}}),
        ("vision_cfg", {"final_ln_after_pool": True}),
        ("vision_cfg", {"pos_embed_type": "sin_cos_2d"}),
    ],
)
def test_open_clip_towers_of_another_architecture_are_refused(
    part: str, option: dict[str, Any], tmp_path: Path
) -> None:
    states: dict[str, Tensor] = state("open_clip")
    save_file(states, tmp_path / "open_clip_model.safetensors")
    towers: dict[str, dict[str, Any]] = {
        "vision_cfg": {"width": 64, "head_width": 16, "layers": 2, "pool_type": "tok", "no_ln_pre": False},
        "text_cfg": {"heads": 2, "pool_type": "argmax", "embed_cls": False, "act_kwargs": {}},
    }
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": towers}))
    read_clip(tmp_path)
    towers[part] |= option
    config.write_text(json.dumps({"model_cfg": towers}))
    name = next(iter(option))
    with pytest.raises(ValueError, match=rf"open_clip_config.json says {part}.{name}: .*, which is not supported"):
        read_clip(tmp_path)


WRAPPED = [("module.",), ("_orig_mod.",), ("module.", "_orig_mod."), ("model.",), ("_fsdp_wrapped_module.", "module.")]


@pytest.mark.parametrize("wrappers", WRAPPED)
@pytest.mark.parametrize("kind", ["pickle", "safetensors"])
def test_wrapper_prefixes_of_tensor_names_are_removed(
    wrappers: tuple[str, ...], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = "".join(reversed(wrappers))
    states = {f"{front}{name}": value for name, value in state("openai").items()}
    file = tmp_path / ("a.pt" if kind == "pickle" else "a.safetensors")
    if kind == "pickle":
        torch.save({"epoch": 3, "state_dict": states, "optimizer": {}}, file)
    else:
        save_file(states, file)
    found = read_clip(file, {"feed_forward": "quick_gelu"})
    plain = tmp_path / "plain.pt"
    torch.save(state("openai"), plain)
    assert found.tensors.keys() == read_clip(plain, {"feed_forward": "quick_gelu"}).tensors.keys()
    assert main(["inspect", str(file), "feed_forward=quick_gelu"]) == 0
    told = capsys.readouterr().out
    assert "- removed from its names: " in told and all(wrapper in told for wrapper in wrappers)
    assert main(["inspect", str(plain), "feed_forward=quick_gelu"]) == 0
    assert "taken off" not in capsys.readouterr().out


def test_wrapped_image_tokenizers_load_and_language_models_are_refused(tmp_path: Path) -> None:
    states = {f"module.{name.replace('encoder.', 'encoder._orig_mod.')}": v for name, v in vqgan(NEAREST).items()}
    torch.save({"state_dict": states}, tmp_path / "a.ckpt")
    tokenizer = dalle.load_image_tokenizer(tmp_path / "a.ckpt")
    torch.save({"state_dict": vqgan(NEAREST)}, tmp_path / "b.ckpt")
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.encode(images), dalle.load_image_tokenizer(tmp_path / "b.ckpt").encode(images))
    torch.save({f"model.{name}": torch.zeros(2) for name in ("embed_tokens.weight", "norm.weight")}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="it is a language model"):
        dalle.load_image_tokenizer(tmp_path / "c.pt")
