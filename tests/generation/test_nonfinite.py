"""Numbers that are none: nothing is drawn from them, and weights that hold them are neither written nor loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dalle
from dalle.__main__ import main
from dalle.checkpoints import model_folder
from dalle.checkpoints.folder_config import WEIGHTS
from dalle.checkpoints.lazy_tensor import NotFiniteError
from dalle.checkpoints.tensors import read_tensors, write_tensors
from dalle.kernels import switches
from dalle.models.dalle import DALLE
from support.generation import generate, sample
from support.tiny_transformers import SEEDS, TEXT, tiny

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 3, "top_p": 0.5}, {"temperature": 0.01}])
@pytest.mark.parametrize("plain", [False, True])
def test_sample_reports_rows_of_nonfinite_logits(options: dict[str, Any], plain: bool) -> None:
    whole = torch.randn(3, 40)
    whole[:, ::3] = -torch.inf  # a code that is out of the question is no failure
    cases = [(whole, False)]
    for value in (float("nan"), float("inf")):
        bad = whole.clone()
        bad[2, 39] = value
        cases.append((bad, True))
    cases.append((torch.cat((whole[:2], torch.full((1, 40), -torch.inf))), True))
    for logits, expected in cases:
        failed = torch.zeros((), dtype=torch.bool)
        if plain:
            with switches.force_backend(native="off"):
                drawn = sample(logits, torch.rand(3), failed=failed, **options)
        else:
            with torch.no_grad():
                drawn = sample(logits, torch.rand(3), failed=failed, **options)
        assert bool(failed) is expected
        assert ((drawn >= 0) & (drawn < 40)).all()


def spoiled(kind: dict[str, Any], value: float) -> DALLE:
    model = tiny(kind)
    with torch.no_grad():
        model.transformer.norm.weight[3] = value
    return model


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"window": 3}, {"guidance": 2.0, "guidance_until": 4}])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("plain", [False, True])
def test_generate_refuses_nonfinite_logits(options: dict[str, Any], value: float, plain: bool) -> None:
    model = spoiled({}, value).train()
    with (
        switches.force_backend(native="off") if plain else torch.no_grad(),
        pytest.raises(ValueError, match="logits are nan or infinite"),
    ):
        generate(model, TEXT, SEEDS, **options)
    assert model.training


def test_cuda_graph_steps_report_nonfinite_logits(recorded: list[int]) -> None:
    with pytest.raises(ValueError, match="logits are nan or infinite"):
        generate(spoiled({}, float("nan")), TEXT, SEEDS)
    assert recorded


def test_one_nonfinite_logit_of_one_candidate_is_enough() -> None:
    model, calls = tiny({}), []

    def spoil(module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        calls.append(len(logits))
        if len(calls) == 5:
            logits[1, ..., 0] = float("nan")
        return logits

    generate(model, TEXT, SEEDS)
    model.image_head.register_forward_hook(spoil)
    with pytest.raises(ValueError, match="logits are nan or infinite"):
        generate(model, TEXT, SEEDS)
    assert len(calls) > 6, "a batch is drawn to its end: no step waits"


# ---- weights


def weights(value: float) -> dict[str, Tensor]:
    tensors = {
        "a.weight": torch.randn(4, 6),
        "a.bias": torch.randn(4),
        "steps": torch.tensor(3),
        "none": torch.empty(0),
    }
    tensors["a.weight"][2, 5] = value
    return tensors


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("storage", [None, "float32", "bfloat16", "float16", "int8"])
def test_nonfinite_weights_are_not_written(value: float, storage: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    model_folder.save(folder, {"stage": "clip"}, weights(1.0), storage=storage)
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(NotFiniteError, match=r"a is not written: a\.weight is nan or infinite"):
        model_folder.save(folder, {"stage": "clip"}, weights(value), storage=storage)
    assert (folder / WEIGHTS).read_bytes() == before
    write_tensors(weights(value), folder / WEIGHTS)
    (folder / "config.yaml").write_text("stage: clip\n", encoding="utf-8")  # without the hash of other weights
    with pytest.raises(NotFiniteError, match=r"b is not written: a\.weight is nan"):
        model_folder.export(folder, tmp_path / "b", storage or "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_weights_that_overflow_their_dtype_are_not_written(tmp_path: Path) -> None:
    model_folder.save(tmp_path / "a", {"stage": "clip"}, weights(70_000.0), storage="bfloat16")
    with pytest.raises(NotFiniteError, match="or it is too large for float16"):
        model_folder.save(tmp_path / "a", {"stage": "clip"}, weights(70_000.0), storage="float16")


@pytest.mark.parametrize("part", ["model", "model/image_tokenizer", "model/clip"])
def test_nonfinite_weights_are_not_loaded(
    part: str, tiny_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_copy / part / WEIGHTS
    tensors = read_tensors(file)
    name = next(name for name, value in tensors.items() if value.is_floating_point() and value.ndim > 1)
    tensors[name].view(-1)[1] = float("nan")
    write_tensors(tensors, file)
    load = {"model": dalle.load_model, "image_tokenizer": dalle.load_image_tokenizer, "clip": dalle.load_clip}
    with pytest.raises(NotFiniteError, match=f"{name} is nan or infinite"):
        load[Path(part).name](tiny_copy / part)
    if part == "model":
        with pytest.raises(NotFiniteError, match=f"{name} is nan or infinite"):
            dalle.TextToImage.from_pretrained(tiny_copy / "model")
    assert main(["export", str((tiny_copy / part).parent), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
