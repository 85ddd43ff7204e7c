"""Plans of sampling: bytes of real modules, and language models at full size by their config.json alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import dalle
from dalle.__main__ import main
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.published.declared import declared
from dalle.checkpoints.published.models import read_model
from dalle.generation.batching import row_bytes
from dalle.training.planning.plan import Cluster
from dalle.training.planning.sampling import DTYPES, _bytes, describe, plan_sampling

A100 = Cluster(1, 80e9, 0.1, 312e12, 0.4)
LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-5}
JANUS = {
    "model_type": "multi_modality",
    "gen_head_config": {"params": {"image_token_size": 16_384}},
    "gen_aligner_config": {"params": {"input_dim": 8}},
}
SMALL = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}
QWEN = {"model_type": "qwen2", "vocab_size": 215_672, "hidden_size": 896, "intermediate_size": 4864}
FULL: dict[str, tuple[dict[str, Any], int]] = {  # as published; parameters, those of a Janus without its text head
    "Janus-Pro-1B": (JANUS | {"language_config": SMALL | {"vocab_size": 102_400}}, 1_485_053_952),
    "Janus-Pro-7B": (JANUS | {"language_config": {"num_hidden_layers": 30, "vocab_size": 102_400}}, 6_591_791_104),
    "Emu3-Gen": (
        {"model_type": "Emu3", "num_key_value_heads": 8, "intermediate_size": 14_336, "vocab_size": 184_622} | LLAMA,
        8_492_011_520,
    ),
    "Emu3.5": (
        LLAMA
        | {"model_type": "Emu3", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64}
        | {"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 25_600, "vocab_size": 282_926},
        34_103_460_864,
    ),
    "Liquid": ({"model_type": "gemma", "hidden_act": "gelu", "vocab_size": 264_192}, 8_562_846_720),
    "SimpleAR-0.5B": (
        QWEN | {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
        551_140_224,
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_declared_tensors_are_those_of_the_published_sizes(name: str) -> None:
    config, count = FULL[name]
    found = declared(config)
    assert sum(tensor.numel() for tensor in found.values()) == count
    assert all(tensor.untyped_storage().nbytes() == 4 for tensor in found.values())


def test_other_configs_declare_nothing() -> None:
    for config in ({"model_type": "llama"}, {"model_type": "multi_modality", "language_config": {}}, {}):
        with pytest.raises(ValueError, match="model_type .*, which is no language model that draws"):
            declared(config)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_those_of_the_loaded_model(dtype: str) -> None:
    pipe = dalle.TextToImage.from_pretrained(SHIPPED, device="cpu", dtype=DTYPES[dtype])
    module = pipe.model
    kept = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    found = describe(SHIPPED, {})
    with torch.device("meta"):
        bare = type(module)(found.config).to(torch.float32 if dtype == "int8" else DTYPES[dtype])
    assert _bytes(bare, dtype) == pytest.approx(kept, rel=0.01) and row_bytes(bare, 0) == row_bytes(module, 0)
    assert found.sampling == pipe.sampling
    assert found.images == sum(parameter.numel() for parameter in pipe.image_tokenizer.parameters())


def test_the_command_plans_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(SHIPPED), "--memory", "8GB", "--bandwidth", "50GB"]) == 0
    told = capsys.readouterr().out
    assert told == plan_sampling(SHIPPED, {}, Cluster(1, 8e9, 0.1, 312e12, 0.4), 50e9) + "\n"
    assert "two rows a candidate" in told and all(f"\n  {dtype} " in told for dtype in DTYPES)
    assert main(["plan", str(SHIPPED), "--memory", "1MB"]) == 0
    assert "Nothing fits: it would with a device of" in capsys.readouterr().out
    for arguments, message in (
        ([str(SHIPPED), "heads=4"], "heads is not to be given: the config.yaml of"),
        ([str(SHIPPED / "clip")], "holds a CLIP, expected a DALL-E"),
        (["emoji/dale"], "did you mean emoji/dalle?"),
        (["nowhere"], "no such file, and no recipe of that name"),
        (["/nowhere/x"], "/nowhere/x: no such file or folder (there is no folder /nowhere)"),
        (["./nowhere"], "./nowhere: no such file or folder"),
        ([str(SHIPPED.with_name("emojy"))], f"emojy: no such file or folder (did you mean {SHIPPED}?)"),
    ):
        assert main(["plan", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_language_model_is_planned_before_its_weights_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
    from support.published import simplear

    whole = simplear.write(simplear.model_of(tied=False), tmp_path / "whole")
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors", "DV8x16x16"))
    settings = json.loads((bare / "config.json").read_text())
    more = {"intermediate_size": 96, "num_hidden_layers": 2, "hidden_size": simplear.WIDTH, "head_dim": 32}
    (bare / "config.json").write_text(json.dumps(settings | more))
    given = {"grid": 4}
    wanted, found = read_model(whole, None, given).model, read_model(bare, None, given, weights=False).model
    assert found.config == wanted.config and found.tensors.keys() == wanted.tensors.keys()
    assert all(found.tensors[name].shape == tensor.shape for name, tensor in wanted.tensors.items())
    assert main(["plan", str(bare), "grid=4"]) == 0
    told = capsys.readouterr().out
    assert "image tokenizer: read from nvidia/Cosmos-1.0-Tokenizer-DV8x16x16, not counted" in told
    shutil.move(whole / "DV8x16x16", tmp_path / "apart")
    assert main(["plan", str(whole), "grid=4"]) == 0
    assert capsys.readouterr().out == told.replace("bare", "whole")
    # Its training too, by the recipe that ships
    assert main(["plan", "folder/finetune", f"init_from={bare}", "data.path=my_images"]) == 0
    trained = capsys.readouterr().out
    assert "of LoRA, which alone are trained" in trained and "4,352 tokens an image" not in trained
    with pytest.raises(ValueError, match="has a config.json and no weights"):
        dalle.load_model(bare)
