"""Folders of weights: written whole or not at all, read strictly, parts bound by their hashes."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dalle
from dalle.checkpoints import model_folder
from dalle.checkpoints.folder_config import read_config
from dalle.checkpoints.model_folder import ModelFolder, atomic_folder, export, folder_hash, save
from dalle.checkpoints.modules import load_into
from dalle.checkpoints.published.summary import inspect
from dalle.checkpoints.quantization import STORAGE, pack, unpack
from dalle.checkpoints.source import open_source
from dalle.checkpoints.tensors import read_tensors
from dalle.files import local
from support.tiny_model import make_tiny_model

CONFIG = {"stage": "clip", "model": {"width": 4, "names": ["एक", "1e-3"]}, "sampling": {"temperature": 1e-3}}


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(6, 3, 3, 3, generator=generator),
        "linear.weight": torch.randn(5, 7, generator=generator) * torch.logspace(-6, 3, 5)[:, None],
        "bias": torch.randn(5, generator=generator),
        "steps": torch.tensor(12345),
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether these are the same tensors, also in their types."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) and value.dtype == other[name].dtype for name, value in one.items()
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def one_line(call: Callable[[], Any]) -> str:
    """The message of the ValueError that a call gives."""
    with pytest.raises(ValueError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- written whole or not at all


def test_saved_folder_reads_back_equal(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "a", CONFIG, state())
    assert read_config(tmp_path / "deep" / "a") == CONFIG | {"sha256": folder_hash(tmp_path / "deep" / "a")}
    assert same(read_tensors(tmp_path / "deep" / "a" / "model.safetensors"), state())
    assert sorted(os.listdir(tmp_path / "deep")) == ["a"]


def test_file_modes_follow_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "a", CONFIG, state())
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "a").iterdir()}
    assert modes == {(tmp_path / "a").stat().st_mode & 0o666}


def test_saving_replaces_the_old_folder(tmp_path: Path) -> None:
    save(tmp_path / "a", CONFIG, state())
    (tmp_path / "a" / "stale.txt").write_text("of before")
    save(tmp_path / "a", CONFIG, state(1))
    assert sorted(os.listdir(tmp_path / "a")) == ["config.yaml", "model.safetensors"]
    assert torch.equal(read_tensors(tmp_path / "a" / "model.safetensors")["bias"], state(1)["bias"])


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("broken", ["write_tensors", "write_config", "folder_hash", "_flush"])
def test_full_disk_leaves_the_old_folder_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    save(tmp_path / "part", CONFIG, state(2))
    save(tmp_path / "a", CONFIG, state())
    before = content(tmp_path)
    monkeypatch.setattr(local if broken == "_flush" else model_folder, broken, _full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "a", CONFIG | {"model": {"width": 5}}, state(1), parts={"clip": tmp_path / "part"})
    assert content(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["a", "part"]


@pytest.mark.parametrize("target", ["a", "new"])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_between_the_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, failing: int
) -> None:
    save(tmp_path / "a", CONFIG, state())
    before, replace, calls = content(tmp_path), os.replace, []

    def flaky(source: Path, place: Path) -> None:
        calls.append(place)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, place)

    monkeypatch.setattr(local.os, "replace", flaky)
    if target == "a" or failing == 1:
        with pytest.raises(OSError, match="Input/output"):
            save(tmp_path / target, CONFIG, state(1))
        assert content(tmp_path) == before
    else:  # nothing to move away: one rename does it
        save(tmp_path / target, CONFIG, state(1))
        assert sorted(os.listdir(tmp_path)) == ["a", "new"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_full_device_leaves_no_half_written_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "a") as new:
        (new / "some").write_text("x")
        Path("/dev/full").write_text("x")
    assert os.listdir(tmp_path) == []


def test_interrupt_leaves_no_scratch_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a") as new:
        (new / "half").write_text("")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


# ---- how tensors are stored


def test_packing_without_a_dtype_changes_nothing() -> None:
    assert same(pack(state(), None), state())


@pytest.mark.parametrize(("storage", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision_error_is_half_a_unit_of_its_mantissa(storage: Any, bits: int) -> None:
    values = {"a": torch.logspace(-3, 3, 1000), "n": torch.arange(3)}
    packed = pack(values, storage)
    assert packed["a"].dtype == getattr(torch, storage) and packed["n"].dtype == torch.int64
    assert torch.all((unpack(packed)["a"].float() - values["a"]).abs() <= values["a"] * 2.0**-bits)


def test_int8_scales_each_output_channel() -> None:
    packed = pack(state(), "int8")
    assert {name for name, value in packed.items() if value.dtype == torch.int8} == {"conv.weight", "linear.weight"}
    assert packed["bias"].dtype == torch.float32 and packed["steps"].dtype == torch.int64
    unpacked = unpack(packed)
    assert unpacked.keys() == state().keys()
    for name in ("conv.weight", "linear.weight"):
        for was, now in zip(state()[name], unpacked[name]):  # a bound for each channel by its own largest value
            assert float((was - now).abs().max()) <= float(was.abs().max()) / 254 * (1 + 1e-5)
    assert torch.equal(unpacked["bias"], state()["bias"]) and torch.equal(unpacked["steps"], state()["steps"])


def test_int8_keeps_zeros_and_the_largest_value() -> None:
    value = torch.tensor([[0.0, 0.0], [0.0, -3.0], [5.0, 2.5]])
    now = unpack(pack({"a": value}, "int8"))["a"]
    assert torch.equal(now[0], torch.zeros(2))
    assert torch.allclose(now[1], value[1]) and torch.allclose(now[2], value[2], atol=5 / 254)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 1000), st.floats(1e-4, 1e4))
def test_int8_packing_is_idempotent(rows: int, columns: int, seed: int, scale: float) -> None:
    value = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    once = unpack(pack({"a": value}, "int8"))["a"]
    twice = unpack(pack({"a": once}, "int8"))["a"]
    assert torch.allclose(once, twice, rtol=1e-6, atol=0)


def test_any_layout_in_memory_is_stored(tmp_path: Path) -> None:
    kernel = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    save(tmp_path / "a", CONFIG, {"a": kernel, "b": torch.randn(6, 4).T}, storage=None)
    assert torch.equal(read_tensors(tmp_path / "a" / "model.safetensors")["a"], kernel)
    assert torch.equal(unpack(pack({"a": kernel}, "int8"))["a"], unpack(pack({"a": kernel.contiguous()}, "int8"))["a"])


def test_smaller_storage_makes_smaller_files(tmp_path: Path) -> None:
    sizes = {}
    for storage in STORAGE:
        save(tmp_path / storage, CONFIG, {"a": torch.randn(256, 256)}, storage=storage)  # type: ignore[arg-type]
        sizes[storage] = (tmp_path / storage / "model.safetensors").stat().st_size
    assert sizes["int8"] < 0.6 * sizes["bfloat16"] < 0.4 * sizes["float32"] and sizes["bfloat16"] == sizes["float16"]


# ---- files that are no weights


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:20],
        lambda whole: whole[:5],
        lambda whole: b"",
        lambda whole: whole + b"more",
        lambda whole: b"a text file, and not a short one" * 9,
        lambda whole: b"\xff" * 100,
        lambda whole: b"PK\x03\x04" + bytes(200),
    ],
    ids=["half", "last byte", "header cut", "five bytes", "empty", "longer", "text", "high bytes", "zip"],
)
def test_damaged_and_foreign_weight_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "model.safetensors"
    save_file(state(), file)
    file.write_bytes(damage(file.read_bytes()))
    message = one_line(lambda: read_tensors(file))
    assert message.startswith(f"{file} is not a safetensors file, or is truncated")


def test_missing_files_give_a_one_line_error(tmp_path: Path) -> None:
    assert one_line(lambda: read_tensors(tmp_path / "x")) == f"{tmp_path / 'x'}: no such file"
    assert one_line(lambda: read_tensors(tmp_path)) == f"{tmp_path}: no such file"
    assert "has no config.yaml: it is not a model folder" in one_line(lambda: read_config(tmp_path))
    (tmp_path / "config.yaml").write_text("a: [")
    assert "not valid YAML" in one_line(lambda: read_config(tmp_path))


# ---- strict loading


def _module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_loaded_weights_are_cast_to_the_modules_dtype() -> None:
    source, target = _module(), _module()
    load_into(target, {name: value.to(torch.bfloat16) for name, value in source.state_dict().items()}, "here")
    for name, value in source.state_dict().items():
        assert target.state_dict()[name].dtype == value.dtype
        assert torch.equal(target.state_dict()[name], value.to(torch.bfloat16).to(value.dtype))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"0.weight": None}, "missing: 0.weight [2, 3]"),
        ({"extra": torch.ones(1)}, "unexpected: extra"),
        ({"0.weight": torch.ones(2, 4)}, "of another shape: 0.weight is [2, 4], expected [2, 3]"),
        ({f"{n}.x": torch.ones(1) for n in range(5)}, "unexpected: 0.x, 1.x, 2.x and 2 more"),
        (
            {"0.weight": None, "0.bias": torch.ones(3), "new": torch.ones(1)},
            "missing: 0.weight [2, 3]; unexpected: new; of another shape: 0.bias is [3], expected [2]",
        ),
    ],
)
def test_mismatched_tensor_names_are_listed(change: dict[str, Tensor | None], words: str) -> None:
    module = _module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    changed = {name: value for name, value in (before | change).items() if value is not None}
    message = one_line(lambda: load_into(module, changed, "here"))
    assert message == f"here does not fit this architecture; {words}"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# ---- hashes and parts


def test_hash_covers_model_config_and_weights_only(tmp_path: Path) -> None:
    def hashed(config: dict[str, Any], seed: int = 0, storage: Any = None, folder: str = "a") -> str:
        save(tmp_path / folder, config, state(seed), storage=storage)
        (tmp_path / folder / "README.md").write_text(str(config))  # cards count as little as recipes
        return folder_hash(tmp_path / folder)

    first = hashed(CONFIG)
    assert len(first) == 64
    assert hashed(CONFIG | {"optim": {"lr": 5}, "data": {"kind": "emoji"}}) == first
    assert hashed(CONFIG | {"sampling": {"top_k": 5}}) == first
    assert hashed(dict(reversed(CONFIG.items()))) == first
    others = [
        hashed(CONFIG, seed=1),
        hashed(CONFIG, storage="bfloat16"),
        hashed(CONFIG | {"model": {"width": 5}}),
        hashed(CONFIG | {"parts": {"clip": {"path": "clip", "sha256": "0"}}}),
    ]
    others.append(hashed(CONFIG | {"stage": "dalle"}, folder="b"))
    assert len({first, *others}) == 6


def test_hash_covers_the_text_tokenizers_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("stage: text_tokenizer\nmodel: {}\n")
    (tmp_path / "bpe.model").write_bytes(b"one")
    first = folder_hash(tmp_path)
    (tmp_path / "bpe.model").write_bytes(b"two")
    assert folder_hash(tmp_path) != first


def test_components_are_copied_and_their_hash_checked(tmp_path: Path) -> None:
    save(tmp_path / "clip", CONFIG, state(1))
    (tmp_path / "clip" / "README.md").write_text("a card")
    (tmp_path / "clip" / "samples.png").write_text("an image")
    (tmp_path / "clip" / "model.safetensors").chmod(0o444)
    save(tmp_path / "a", {"stage": "dalle", "model": {}}, state(), parts={"clip": tmp_path / "clip"})
    copied = ModelFolder(tmp_path / "a").component("clip").path
    assert copied == tmp_path / "a" / "clip"
    assert sorted(os.listdir(copied)) == ["config.yaml", "model.safetensors"]
    recorded = read_config(tmp_path / "a")["parts"]
    assert recorded == {"clip": {"path": "clip", "sha256": folder_hash(tmp_path / "clip")}}


def test_changed_component_is_refused_with_both_hashes(tmp_path: Path) -> None:
    save(tmp_path / "clip", CONFIG, state(1))
    expected = folder_hash(tmp_path / "clip")
    save(tmp_path / "a", {"stage": "dalle", "model": {}}, state(), parts={"clip": tmp_path / "clip"})
    save(tmp_path / "a" / "clip", CONFIG, state(2))
    message = one_line(lambda: ModelFolder(tmp_path / "a").component("clip").path)
    assert expected in message and folder_hash(tmp_path / "a" / "clip") in message
    assert f"is not the clip that {tmp_path / 'a'} was trained with" in message


def test_missing_components_give_a_one_line_error(tmp_path: Path) -> None:
    save(tmp_path / "a", CONFIG, state())
    assert one_line(lambda: ModelFolder(tmp_path / "a").component("clip").path).endswith(
        "has no component clip: its config.yaml lists none"
    )
    save(tmp_path / "b", CONFIG, state(), parts={"one": tmp_path / "a"})
    assert one_line(lambda: ModelFolder(tmp_path / "b").component("clip").path).endswith(
        "has no component clip: its config.yaml lists one"
    )
    model_folder.write_config(tmp_path / "b", CONFIG | {"parts": {"one": "a"}})
    assert "parts.one needs a path and a sha256" in one_line(lambda: ModelFolder(tmp_path / "b").component("one").path)


@pytest.mark.parametrize(
    "gone, message",
    [
        ("clip", "clip is missing, or its config.yaml: copy .* whole, with its clip"),
        ("clip/config.yaml", "clip is missing, or its config.yaml"),
        ("clip/model.safetensors", "clip has lost its weights: copy .* whole, with its clip"),
        ("config.yaml", "has parts of a model folder but no config.yaml: copy the folder whole"),
    ],
)
def test_folder_that_was_copied_in_part_is_named(tmp_path: Path, gone: str, message: str) -> None:
    save(tmp_path / "clip", CONFIG, state(1))
    save(tmp_path / "a", CONFIG, state(), parts={"clip": tmp_path / "clip"})
    place = tmp_path / "a" / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()

    def opened() -> None:
        folder = open_source(str(tmp_path / "a"))
        assert isinstance(folder, ModelFolder)
        folder.component("clip")

    assert re.search(message, one_line(opened))


def test_inspect_says_that_weights_are_damaged(tiny_parts: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_parts / "clip", tmp_path / "clip")
    assert "damage" not in inspect(tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "\n- damage: " in inspect(tmp_path / "clip") and "or is truncated" in inspect(tmp_path / "clip")
    file.unlink()
    assert f"\n- damage: {file}: no such file" in inspect(tmp_path / "clip")


def test_component_inside_the_replaced_folder_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "clip", CONFIG, state(1))
    save(tmp_path / "a", {"stage": "dalle", "model": {}}, state(), parts={"clip": tmp_path / "clip"})
    save(tmp_path / "a", {"stage": "dalle", "model": {}}, state(3), parts={"clip": tmp_path / "a" / "clip"})
    assert folder_hash(ModelFolder(tmp_path / "a").component("clip").path) == folder_hash(tmp_path / "clip")


# ---- where a folder is


# ---- export


def test_export_converts_weights_and_keeps_other_files(tmp_path: Path) -> None:
    save(tmp_path / "clip", CONFIG, state(1))
    save(tmp_path / "run", {"stage": "dalle", "model": {"width": 4}}, state(), parts={"clip": tmp_path / "clip"})
    (tmp_path / "out" / "clip").mkdir(parents=True)
    (tmp_path / "out" / "README.md").write_text("the card")
    (tmp_path / "out" / "clip" / "README.md").write_text("the card of a part")
    export(tmp_path / "run", tmp_path / "out", "int8")
    assert (tmp_path / "out" / "README.md").read_text() == "the card"
    written = {"sha256": folder_hash(tmp_path / "out")}
    assert read_config(tmp_path / "out") == read_config(tmp_path / "run") | written
    assert load_file(tmp_path / "out" / "model.safetensors")["conv.weight"].dtype == torch.int8
    assert (tmp_path / "out" / "clip" / "README.md").read_text() == "the card of a part"
    (tmp_path / "out" / "clip" / "README.md").unlink()
    assert content(ModelFolder(tmp_path / "out").component("clip").path) == content(tmp_path / "clip")
    for name, value in state().items():
        found = read_tensors(tmp_path / "out" / "model.safetensors")[name]
        assert torch.equal(found, unpack(pack({name: value}, "int8"))[name])


RECIPE = "# python train.py ...\nstage: clip\nmodel: {width: 4} # the rest as by default\ndata: {kind: drawings}\n"


def test_export_keeps_a_recipe_with_its_comments(tmp_path: Path) -> None:
    save(tmp_path / "run", CONFIG, state())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(RECIPE)
    export(tmp_path / "run", tmp_path / "out", "bfloat16")
    assert (tmp_path / "out" / "config.yaml").read_text() == RECIPE
    export(tmp_path / "run", tmp_path / "out", "bfloat16")  # once more
    assert (tmp_path / "out" / "config.yaml").read_text() == RECIPE


def test_export_refuses_the_recipe_of_another_architecture(tmp_path: Path) -> None:
    save(tmp_path / "run", CONFIG, state())
    for key, value in (("model", {"width": 5}), ("model", {"new": 1}), ("stage", "dalle")):
        other = tmp_path / f"{key}-{value}".replace("'", "")
        other.mkdir()
        (other / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(RECIPE) | {key: value}))
        before = content(other)
        assert "has another architecture than" in one_line(lambda other=other: export(tmp_path / "run", other, "int8"))
        assert content(other) == before


@pytest.mark.parametrize("place", ["run", "run/model", "run/model/inside", "run/checkpoints", ".", "images", "file"])
def test_nothing_but_a_model_folder_is_replaced(tmp_path: Path, place: str) -> None:
    """Neither the run that is exported nor a folder of something else, whose contents would be lost."""
    source, target = tmp_path / "run" / "model", tmp_path / place
    save(source, CONFIG, state())
    for name in ("run/config.yaml", "run/checkpoints/step-1/state.pt", "images/dog.png", "images/dog.txt", "file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("stage: dalle\n")
    before = content(tmp_path)
    message = one_line(lambda: export(source, target, "int8"))
    assert re.search(r"holds .+ and is no model folder|is, holds or lies in|is a file", message)
    assert message.endswith((": give a new folder", ": give another folder"))
    if place in ("images", "run", "file"):
        one_line(lambda: save(target, CONFIG, state(1)))
    assert content(tmp_path) == before


def test_a_card_may_be_there_before_the_weights(tmp_path: Path) -> None:
    save(tmp_path / "run", CONFIG, state())
    (tmp_path / "out").mkdir()
    for name in ("README.md", "samples.png", ".gitattributes"):
        (tmp_path / "out" / name).write_text(name)
    assert re.search(
        r"holds \w+\.\w+ and is no model folder", one_line(lambda: save(tmp_path / "out", CONFIG, state()))
    )
    export(tmp_path / "run", tmp_path / "out", "int8")
    assert (tmp_path / "out" / "README.md").read_text() == "README.md"
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_export_of_a_damaged_folder_leaves_the_target(tmp_path: Path) -> None:
    save(tmp_path / "run", CONFIG, state())
    save(tmp_path / "out", CONFIG, state(1))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"short")
    before = content(tmp_path / "out")
    assert "is not a safetensors file" in one_line(lambda: export(tmp_path / "run", tmp_path / "out", "int8"))
    assert content(tmp_path / "out") == before


# ---- what has been changed since


def test_flipped_bit_is_detected(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)
    dalle.load_model(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 64
    weights.write_bytes(content)
    message = one_line(lambda: dalle.load_model(folder))
    assert message.startswith(f"{folder} is damaged or was changed: its sha256 is {folder_hash(folder)}, ")
    assert one_line(lambda: export(folder, tmp_path / "copy", "int8")) == message, "the copy would have a valid hash"
    assert not (tmp_path / "copy").exists()
    export(folder, tmp_path / "copy", "int8", read_tensors(weights))  # in place of what is damaged
    assert ModelFolder(tmp_path / "copy").config["sha256"] == folder_hash(tmp_path / "copy"), "the hash is the copy's"
    dalle.load_model(tmp_path / "copy")


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)
    file = folder / "config.yaml"
    file.write_text(file.read_text() + "samplign: {top_k: 5}\n")
    assert one_line(lambda: dalle.load_model(folder)).startswith(f"{file}: unknown key samplign; known here: stage, ")
    file.write_text(file.read_text() + "data: {kind: shapes}\n")  # a recipe, which has more keys
    dalle.load_model(folder)


@pytest.mark.parametrize(
    ("part", "load", "keys"),
    [
        ("model", dalle.load_model, ("transformer", "depth")),
        ("image_tokenizer", dalle.load_image_tokenizer, ("blocks",)),
        ("clip", dalle.load_clip, ("text", "depth")),
    ],
)
def test_absurd_number_of_layers_is_refused_before_any_is_built(
    part: str, load: Callable[[Path], object], keys: tuple[str, ...], tmp_path: Path
) -> None:
    """Building 100,000 takes minutes, and the weights have not as many tensors."""
    folder = make_tiny_model(tmp_path).parent / part
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["sha256"]  # it would say no more than that something has changed, and later
    inner = config["model"]
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = 99_999
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        ValueError, match=rf"config.yaml: {'.'.join(keys)} is 99,999, but the weights have only \d+ ten"
    ):
        load(folder)


def test_progress_counts_the_bytes_that_are_written(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.int64)}
    save(
        tmp_path / "m",
        {"stage": "clip", "model": {}},
        tensors,
        storage="float16",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(16, 46), (46, 46)]  # the largest type first; floats are stored in 2 bytes
