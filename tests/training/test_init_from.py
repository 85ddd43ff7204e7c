"""Training that goes on from weights that are there: ours and published ones, all of them or low-rank changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import dalle
import train
from dalle.__main__ import main
from dalle.checkpoints import model_folder
from dalle.checkpoints.quantization import pack, unpack
from dalle.checkpoints.tensors import read_tensors, write_tensors
from dalle.config import to_dict
from dalle.kernels.pattern import Pattern
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.training.checkpoint.optimizer_state import moments_by_name
from dalle.training.init_config import with_initial_config
from dalle.training.init_from import load_initial, resize_positions
from dalle.training.lora import LoRAConfig, add_lora, changes, merged
from dalle.training.optim import OptimConfig, build_optimizer
from support.published import folders
from support.tiny_configs import clip_config, dalle_config

SMALL = dalle_config(text_vocab=9, text_length=4, image_vocab=7, grid=(2, 2))


def images(folder: Path, size: int) -> Path:
    folder.mkdir()
    for name, caption in (("red", "a"), ("blue", "ab c"), ("green", "b"), ("black", "c c")):
        Image.new("RGB", (size, size), name).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    return folder


def recipe(folder: Path, source: Path, **changes: Any) -> str:
    content: dict[str, Any] = {
        "stage": "dalle",
        "init_from": str(source),
        "data": {"kind": "pairs", "path": str(images(folder / "images", 16)), "validation_share": 0.25},
        "optim": {"lr": 1e-2, "warmup": 1, "ema": None},
        "run": {"dir": str(folder / "run"), "steps": 2, "batch_size": 2, "workers": 0, "tracker": "none"},
    }
    file = folder / "finetune.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return str(file)


def moved(before: nn.Module, after: nn.Module) -> dict[str, bool]:
    old = before.state_dict()
    return {name: not torch.equal(value, old[name]) for name, value in after.state_dict().items()}


def test_learning_rate_0_leaves_the_weights_unchanged(tiny_model: Path, tmp_path: Path) -> None:
    assert train.main([recipe(tmp_path, tiny_model), "optim.lr=0", "optim.weight_decay=0"]) == 0
    assert not any(moved(dalle.load_model(tiny_model), dalle.load_model(tmp_path / "run" / "model")).values())
    assert dalle.TextToImage.from_pretrained(tmp_path / "run" / "model", device="cpu")("a")[0].images


def test_full_finetuning_starts_from_the_model_and_resumes(tiny_model: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, tiny_model)
    assert train.main([file, "run.steps=2", "run.save_every=1", "run.keep=2"]) == 0
    whole = dalle.load_model(tmp_path / "run" / "model")
    assert sum(moved(dalle.load_model(tiny_model), whole).values()) > 20
    assert train.main([file, "run.steps=1", f"run.dir={tmp_path / 'again'}"]) == 0
    assert train.main([file, "run.steps=2", f"run.dir={tmp_path / 'again'}", "resume=true"]) == 0
    # the cosine of the learning rate is of another length in the first part, so weights are near, not equal
    again = dalle.load_model(tmp_path / "again" / "model")
    assert all(moved(dalle.load_model(tiny_model), again)[name] for name in ("image_head.weight", "text_head.weight"))


def test_converted_weights_are_those_that_the_recipe_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = (folders.mindalle(tmp_path / name) for name in ("first", "second"))
    content = torch.load(second / "stage2_last.ckpt")
    torch.save({"state_dict": {n: v + v.is_floating_point() for n, v in content["state_dict"].items()}},
               second / "stage2_last.ckpt")  # fmt: skip
    file, still = recipe(tmp_path, first), ["optim.lr=0", "optim.weight_decay=0"]
    capfd.readouterr()
    assert "nowhere" in refused([file, "data={kind: pairs, path: nowhere}"], capfd)  # after the conversion
    assert not any(moved(dalle.load_model(first), dalle.load_model(tmp_path / "run/initial")).values())
    assert train.main([file, f"init_from={second}", *still]) == 0
    for place in ("initial", "model"):
        assert not any(moved(dalle.load_model(second), dalle.load_model(tmp_path / "run" / place)).values())
    moved_away = second.rename(tmp_path / "third")
    more = [*still, "resume=true", "run.steps=3"]
    assert train.main([file, f"init_from={moved_away}", *more]) == 0
    capfd.readouterr()
    told = refused([file, *more], capfd)
    assert f"init_from={first} is not what the run in {tmp_path / 'run'} has been trained from: resume with" in told
    (tmp_path / "run/initial.sha256").unlink()  # as in runs of earlier versions
    assert train.main([file, *more]) == 0


def test_an_image_tokenizer_is_converted_again_for_another_grid(tiny_model: Path, tmp_path: Path) -> None:
    published = folders.mindalle(tmp_path / "theirs")
    file = recipe(tmp_path, tiny_model, image_tokenizer=str(published / "stage1_last.ckpt"))
    run = tmp_path / "run"
    for side in (2, 4):
        assert train.main([file, f"model.grid=[{side}, {side}]", "data={kind: pairs, path: nowhere}"]) == 2
        assert dalle.load_image_tokenizer(run / "initial/image_tokenizer").grid == (side, side)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_published_models_are_finetuned(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    if lora is not None:
        pytest.importorskip("peft", reason='pip install "dalle[lora]"')
    source = folders.mindalle(tmp_path / "theirs")
    arguments = [recipe(tmp_path, source, lora=lora), "model.transformer.checkpoint_activations=true"]
    assert train.main(arguments) == 0
    before, after = dalle.load_model(source), dalle.load_model(tmp_path / "run" / "model")
    changed = moved(before, after)
    assert after.config.transformer.checkpoint_activations and after.config.padding == "word"
    expected = {name for name in changed if ".attention." in name or ".feed_forward." in name}
    if lora is None:
        assert len([name for name, is_new in changed.items() if is_new]) > 30
    else:
        assert {name for name, is_new in changed.items() if is_new} == {n for n in expected if n.endswith("weight")}
        (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
        kept = read_tensors(checkpoint / "weights.safetensors")
        assert kept and all("lora_" in name for name in kept)
        assert main(["export", str(checkpoint), str(tmp_path / "exported")]) == 0
        assert not any(moved(after, dalle.load_model(tmp_path / "exported")).values())
        assert train.main([*arguments, "resume=true", "run.steps=3"]) == 0
    pipe = dalle.TextToImage.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert pipe.sampling.top_k == 256 and pipe("ab c")[0].images
    assert (tmp_path / "run" / "initial" / "README.md").is_file()


def test_merged_lora_gives_the_same_logits() -> None:
    pytest.importorskip("peft", reason='pip install "dalle[lora]"')
    torch.manual_seed(0)
    model, plain = DALLE(SMALL), DALLE(SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = LoRAConfig(rank=3, alpha=6, targets=("qkv", "down"))
    add_lora(model, options)
    trained = changes(model)
    assert len(trained) == 2 * 2 * 2 and all(parameter.requires_grad for parameter in trained.values())
    assert {p.requires_grad for n, p in model.named_parameters() if "lora_" not in n} == {False}
    plain.load_state_dict(unpack(pack(merged(model.state_dict(), options), None)))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())  # it begins with nothing
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.3)
    state = unpack(pack(merged(model.state_dict(), options), None))
    beside = unpack(pack(merged({**before, **trained}, options), None))  # as a sharded run has them
    assert state.keys() == beside.keys() and all(torch.equal(state[name], beside[name]) for name in state)
    plain.load_state_dict(state)
    layer = "transformer.blocks.0.attention.qkv"
    low, high = (trained[f"{layer}.lora_{kind}.default.weight".replace(".", "/")] for kind in "AB")
    torch.testing.assert_close(state[f"{layer}.weight"], before[f"{layer}.weight"] + 2 * high @ low)
    text, image = torch.randint(1, 9, (2, 4)), torch.randint(0, 7, (2, 4))
    with torch.no_grad():
        torch.testing.assert_close(model(text, image), plain(text, image))


def test_moments_of_a_run_with_lora_have_the_names_of_their_parameters() -> None:
    """As a run with fsdp that goes on from one without reads them."""
    torch.manual_seed(0)
    model = CLIP(clip_config(sigmoid=True, initial_bias=-10.0)).requires_grad_(False)
    for name in ("logit_scale", "logit_bias", "text.transformer.blocks.0.attention.qkv.weight"):
        model.get_parameter(name).requires_grad_()
    state = nn.ModuleDict({"model": changes(model)})
    optimizer = build_optimizer(model, OptimConfig())
    for parameter in state.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    found = moments_by_name(optimizer.state_dict(), optimizer, state)  # type: ignore[arg-type]
    trained = dict(state.named_parameters())
    assert found.keys() == trained.keys() and len(found) == 3
    assert all(torch.equal(found[n]["exp_avg"], optimizer.state[p]["exp_avg"]) for n, p in trained.items())


def adapters_only(run: Path, matrix: str) -> dict[str, torch.Tensor]:
    """Turn a run into one with LoRA that has gone on since its checkpoint; returns the weights of the checkpoint."""
    config, model = run / "config.yaml", run / "model/model.safetensors"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"lora": {"rank": 2, "alpha": 4}}))
    (checkpoint,) = (run / "checkpoints").iterdir()
    (checkpoint / "SHA256SUMS").unlink()
    weights = read_tensors(model)
    (rows, columns), generator = weights[matrix].shape, torch.Generator().manual_seed(0)
    low, high = (torch.randn(shape, generator=generator) for shape in ((2, columns), (rows, 2)))
    place = f"model.{matrix.removesuffix('.weight').replace('.', '/')}/lora_{{}}/default/weight"
    write_tensors({place.format("A"): low, place.format("B"): high}, checkpoint / "weights.safetensors")
    write_tensors(weights | {matrix: torch.zeros(rows, columns)}, model)
    return weights | {matrix: weights[matrix] + 2 * high @ low}


@pytest.mark.parametrize("stage", ["dalle", "clip"])
def test_export_merges_the_adapters_of_a_checkpoint(
    stage: str, tiny_parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, still = tiny_parts / {"dalle": "model", "clip": "clip"}[stage], ["optim.lr=0", "optim.weight_decay=0"]
    options, matrix = ["loss=sigmoid"], "vision.transformer.blocks.0.attention.qkv.weight"
    if stage == "dalle":  # its positions are interpolated
        large, matrix = tmp_path / "large", "transformer.blocks.1.feed_forward.down.weight"
        assert main(["convert", str(tiny_parts / "image_tokenizer"), str(large), "image_size=32"]) == 0
        options = [f"image_tokenizer={large}", "model.grid=[8, 8]"]
    assert train.main([recipe(tmp_path, source, stage=stage), *still, *options]) == 0
    run = (tmp_path / "run").rename(tmp_path / "elsewhere")
    expected = adapters_only(run, matrix)
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 0
    found = read_tensors(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])

    content = yaml.safe_load((run / "config.yaml").read_text())
    wrong = {"lora": "has no lora"} | ({"init_from": f"adapters alone: export {run}"} if stage == "dalle" else {})
    for key, message in wrong.items():
        (run / "config.yaml").write_text(yaml.safe_dump(content | {key: None}))
        capfd.readouterr()
        assert main(["export", str(checkpoint), str(tmp_path / "none")]) == 2
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "none").exists()


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert train.main(arguments) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    return error


def test_wrong_inputs_give_a_one_line_error(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, tiny_model)
    capfd.readouterr()
    assert "expected a DALL-E" in refused([file, f"init_from={tiny_model.parent / 'clip'}"], capfd)
    assert "no such file or folder" in refused([file, "init_from=./nowhere"], capfd)
    assert "model: expected" in refused([file, "model=models/emoji"], capfd)
    assert "model: expected" in refused(
        [file, f"init_from={tiny_model.parent / 'clip'}", "stage=clip", "model=x"], capfd
    )
    assert "does not fit this architecture" in refused([file, "model.transformer.depth=1"], capfd)
    assert "set optim.ema=null" in refused([file, "lora.rank=2", "optim.ema=0.9"], capfd)
    if dalle_has_peft():
        assert "lora.targets has queries" in refused([file, "lora={targets: [queries]}"], capfd)


def dalle_has_peft() -> bool:
    try:
        import peft  # noqa: F401
    except ImportError:
        return False
    return True


def test_options_a_recipe_leaves_out_come_from_the_model(tiny_model: Path) -> None:
    data = {"stage": "dalle", "init_from": str(tiny_model), "model": {"transformer": {"dropout": 0.1}}, "clip": None}
    settled = with_initial_config(data)
    assert (
        settled["model"]["transformer"] | {"dropout": 0.0}
        == with_initial_config({**data, "model": {}})["model"]["transformer"]
    )
    assert settled["text_tokenizer"] == str(tiny_model / "text_tokenizer") and settled["clip"] is None
    assert with_initial_config({"stage": "clip"}) == {"stage": "clip"}


def test_stored_masks_are_detected_as_sparse_patterns(tmp_path: Path) -> None:
    stored = replace(SMALL, transformer=replace(SMALL.transformer, depth=1), stored_masks=(0,))
    model = DALLE(stored)
    length, text = stored.prefix_length + stored.image_length - 1, stored.prefix_length
    model.get_buffer("masks").copy_(Pattern("column", text, 2, 3).mask(length))
    model_folder.save(tmp_path / "theirs", {"stage": "dalle", "model": to_dict(stored)}, model.state_dict())
    tuned = DALLE(stored)
    load_initial(tuned, SimpleNamespace(init_from=str(tmp_path / "theirs"), model=stored))  # type: ignore[arg-type]
    assert tuned.patterns == {0: Pattern("column", text, 2, stored.conv_kernel)}


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 2), (2, 2)])
def test_row_and_column_positions_are_interpolated_linearly_to_another_grid(grid: tuple[int, int]) -> None:
    old = DALLE(SMALL).state_dict()
    new = resize_positions(old, replace(SMALL, grid=grid))
    for name, side, axis in (("row_position", grid[0], 0), ("column_position", grid[1], 1)):
        centers = (np.arange(side) + 0.5) / side * 2 - 0.5  # of the new cells, in cells of the old grid
        values = old[name].squeeze(1 - axis).numpy()
        expected = np.stack([np.interp(centers, np.arange(2), column) for column in values.T], axis=1)
        found = new[name]
        assert isinstance(found, torch.Tensor) and found.shape == (
            *old[name].shape[:axis],
            side,
            *old[name].shape[axis + 1 :],
        )
        np.testing.assert_allclose(found.squeeze(1 - axis).numpy(), expected, atol=1e-6)
    assert (new is old) == (grid == (2, 2))


def test_cell_positions_are_interpolated_bilinearly_to_another_grid() -> None:
    config = replace(SMALL, positions="learned_cells")
    old = {"cell_position": torch.tensor([[0.0], [1], [2], [3]])}  # 2 * row + column
    new = resize_positions(old, replace(config, grid=(4, 4)))["cell_position"]
    assert isinstance(new, torch.Tensor)
    between = torch.tensor([0, 0.25, 0.75, 1])
    torch.testing.assert_close(new, (2 * between[:, None] + between).reshape(16, 1))


def test_finetuning_continues_at_another_image_size(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large"
    small = dalle.load_image_tokenizer(tiny_model / "image_tokenizer")
    assert main(["convert", str(tiny_model / "image_tokenizer"), str(large), f"image_size={2 * small.image_size}"]) == 0
    tokenizer = dalle.load_image_tokenizer(large)
    assert tokenizer.image_size == 2 * small.image_size
    pixels = torch.rand(1, 3, small.image_size, small.image_size)
    assert torch.equal(tokenizer.encode(pixels), small.encode(pixels))
    options = [f"image_tokenizer={large}", "model.grid=[8, 8]", "optim.lr=0", "optim.weight_decay=0"]
    assert train.main([recipe(tmp_path, tiny_model), *options]) == 0
    before, after = dalle.load_model(tiny_model).state_dict(), dalle.load_model(tmp_path / "run" / "model").state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "row_position",
        "column_position",
    ]
    (image,) = dalle.TextToImage.from_pretrained(tmp_path / "run" / "model", device="cpu")("a")[0].images
    assert image.size == (tokenizer.image_size, tokenizer.image_size)
    for wrong, message in (("image_size=7", "a multiple of"), ("heads=2", "already a model folder")):
        assert main(["convert", str(tiny_model / "image_tokenizer"), str(tmp_path / "no"), wrong]) == 2
        assert message in capsys.readouterr().err
