"""Models that people have and that do not draw here are told in one line by every command that takes a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dalle.__main__ import main

ROOT = Path(__file__).parents[3]
LAYER = "layers.0.self_attn.q_proj.weight"
MODELS: dict[str, tuple[dict[str, Any], list[str], str]] = {  # config.json, names of tensors, what is said
    "Qwen3": (
        {"model_type": "qwen3"},
        ["model.embed_tokens.weight", f"model.{LAYER}", "lm_head.weight"],
        "it is a language model that draws no images",
    ),
    "Qwen2.5-VL": (
        {"model_type": "qwen2_5_vl"},
        ["visual.blocks.0.attn.qkv.weight", "model.embed_tokens.weight", f"model.{LAYER}"],
        "it is a language model that draws no images",
    ),
    "DeepSeek-VL": (
        {"model_type": "multi_modality", "language_config": {}},
        ["vision_model.blocks.0.attn.qkv.weight", "aligner.layers.0.weight", "language_model.model.norm.weight"],
        "it is a DeepSeek-VL or another model that reads images and draws none",
    ),
    "DeepSeek-VL of transformers": (
        {"model_type": "deepseek_vl"},
        ["model.vision_model.x", "model.language_model.embed_tokens.weight", f"model.language_model.{LAYER}"],
        "it is a DeepSeek-VL or another model that reads images and draws none",
    ),
    "JanusFlow": (
        {"model_type": "multi_modality"},
        ["language_model.model.norm.weight", "vision_gen_enc_model.input_conv.weight"],
        "it is a JanusFlow, which draws by a rectified flow",
    ),
    "Show-o": ({}, ["showo.model.embed_tokens.weight"], "it is a Show-o"),
    "VAR": ({}, ["pos_start", "pos_1LC", "blocks.0.attn.mat_qkv.weight"], "it is a VAR"),
    "Stable Diffusion": (
        {},
        ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight", "cond_stage.x"],
        "it is a latent diffusion model",
    ),
    "FLUX": ({}, ["double_blocks.0.img_attn.qkv.weight", "img_in.weight"], "it is a diffusion transformer"),
    "LoRA": (
        {},
        ["base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight"],
        "it is a LoRA without its model (peft's merge_and_unload",
    ),
    "FP8": (
        {"model_type": "Emu3"},
        ["model.embed_tokens.weight", f"model.{LAYER}", f"model.{LAYER}_scale_inv"],
        "it is a copy in 4 or 8 bits by compressed-tensors or with scales of FP8",
    ),
    "GPTQ": (
        {"model_type": "Emu3"},
        ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.g_idx"],
        "it is a copy in 4 or 8 bits by AWQ or GPTQ",
    ),
    "MLX": (
        {"model_type": "multi_modality"},
        ["gen_embed.weight", f"language_model.model.{LAYER}", "language_model.model.layers.0.self_attn.q_proj.scales"],
        "it is a copy in 4 or 8 bits by MLX",
    ),
}
PARTS = ("unet", "vae", "text_encoder")


def told(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """What the commands that take a model say of it, each in one line, without what they are called."""
    out, run = tmp_path / "out", f"run.dir={tmp_path / 'run'}"
    recipe = str(ROOT / "configs/folder/finetune.yaml")
    found = set()
    for command in (
        ["inspect", str(source)],
        ["convert", str(source), str(out)],
        ["sample", "a fox", "--model", str(source), "--device", "cpu", "--out", str(out)],
        ["train", recipe, f"init_from={source}", f"data.path={tmp_path}", run],
        ["plan", recipe, f"init_from={source}", f"data.path={tmp_path}", run],
        ["plan", str(source)],
    ):
        assert main(command) == 2, command
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and not out.exists(), (command, said)
        found.add(said.err.partition(": ")[2])
    return found


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_other_kinds_are_named(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, names, message = MODELS[name]
    source = tmp_path / "model"
    source.mkdir()
    tensors = {one: torch.zeros(4, 4) for one in names}
    if kind == "pickle":
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(config))
    (said,) = told(source, tmp_path, capsys)
    assert message in said and str(source) in said


def test_a_pipeline_of_diffusers_and_its_parts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "stable-diffusion"
    for part in PARTS:
        (source / part).mkdir(parents=True)
        save_file({"down_blocks.0.x": torch.zeros(2)}, source / part / "diffusion_pytorch_model.safetensors")
    (source / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for place, messages in (
        (source, ("says StableDiffusionPipeline; expected one of", "it is a pipeline of diffusers, or a part of one")),
        (source / "unet", ("is a part of a pipeline of diffusers: give", "it is a pipeline of diffusers, or a part")),
    ):
        assert all(any(message in one for message in messages) for one in told(place, tmp_path, capsys))


def test_a_folder_without_weights_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    (source / "model.onnx").write_bytes(b"x")
    planned = "its config.json says model_type 'siglip', which is no language model that draws"
    missing = "has a config.json and no weights (.safetensors, .ckpt, .pt, .pth, .bin, .pkl): download these too"
    assert {planned in one or missing in one for one in told(source, tmp_path, capsys)} == {True}


def test_files_that_are_not_all_there_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model"
    source.mkdir()
    names = [f"pytorch_model-{number:05d}-of-00002.bin" for number in (1, 2)]
    for name in names:
        torch.save({"gen_embed.weight": torch.zeros(4, 4)}, source / name)
    (source / "config.json").write_text(json.dumps({"model_type": "multi_modality"}))
    (said,) = told(source, tmp_path, capsys)
    assert "it has shards without their index, pytorch_model.bin.index.json: download this too" in said
    (said,) = told(source / names[1], tmp_path, capsys)
    assert f"{names[1]} is shard 2 of 2: give the folder of them all" in said
    index = {"weight_map": {"gen_embed.weight": names[0], "gen_head.vision_head.weight": names[1]}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (source / names[1]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n")
    (said,) = told(source, tmp_path, capsys)
    assert f"{names[1]} is a pointer of Git LFS in place of the file itself" in said
    (source / names[1]).unlink()
    (said,) = told(source, tmp_path, capsys)
    assert f"lists the shard {names[1]}, which is not there: download it too" in said


@pytest.mark.parametrize("shards", [{}, {"a": 3}, {"a": ["x"]}, {"a": None}, {"a": "x" * 5000}, {"a": "../x.bin"}])
def test_an_index_that_lists_no_files_beside_it_is_named(
    shards: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "multi_modality"}))
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    lines = told(source, tmp_path, capsys)
    assert all(len(line) < 1000 for line in lines)
    # A plan of sampling reads the config.json alone, and says that of a model without any settings
    assert [
        line for line in lines if "model_type 'multi_modality', which is no language model that draws" not in line
    ] == [line for line in lines if "model.safetensors.index.json" in line and "download it again" in line]


@pytest.mark.parametrize("kind", ["qwen2", "gemma", "Emu3", "chameleon"])
def test_the_config_of_another_family_is_named(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model"
    source.mkdir()
    save_file({"gen_embed.weight": torch.zeros(4, 4)}, source / "model.safetensors")  # a Janus
    (source / "config.json").write_text(json.dumps({"model_type": kind}))
    (said,) = told(source, tmp_path, capsys)
    assert (
        f"its tensors are those of the family janus, and the config.json beside them says {kind}: put that of" in said
    )
