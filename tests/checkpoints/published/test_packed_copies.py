"""Copies of published weights that other libraries have packed are told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dalle
from dalle.__main__ import main


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("language_model.model.layers.0.mlp.up_proj.SCB", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.qweight", "AWQ or GPTQ"),
    ],
)
def test_a_packed_copy_is_named(name: str, kind: str, tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.ones(4, 4), name: torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"in 4 or 8 bits by {kind} .*give the original weights") as caught:
        dalle.load_model(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("command", [["inspect"], ["convert"]])
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_gguf_file_is_named(
    command: list[str], in_folder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "janus-pro-q4_k_m.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    source = str(tmp_path if in_folder else file)
    out = [str(tmp_path / "out")] if command == ["convert"] else []
    assert main([*command, source, *out]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "is a GGUF file (llama.cpp), which is not supported: give the original" in told
    with pytest.raises(ValueError, match="is a GGUF file"):
        dalle.load_model(source)
