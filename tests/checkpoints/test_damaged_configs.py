"""A config.yaml in which a value is something else: a line that names the file, whatever the value and its place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import dalle
from dalle.__main__ import main
from dalle.apps.judging.classifier import Classifier, load_classifier, save_classifier
from dalle.checkpoints.folder_config import check_config
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.summary import inspect
from dalle.config import to_yaml
from support.tiny_model import make_tiny_model
from support.tiny_unclip import make_tiny_unclip

HASH = "0" * 64
SECTIONS = ("stage", "model", "parts", "sampling", "origin", "sha256")
VALUES: tuple[Any, ...] = (3, "x", [1], {}, None, True, math.nan)
LOADERS: dict[str, Callable[[Path], object]] = {
    "unclip": lambda folder: dalle.UnCLIP.from_pretrained(folder, device="cpu"),
    "model": lambda folder: dalle.TextToImage.from_pretrained(folder, device="cpu"),
    "clip": dalle.load_clip,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in which all recorded hashes are `HASH`, which `right_hashes` makes right: a mismatch hides the rest."""
    root = tmp_path_factory.mktemp("folders")
    make_tiny_model(root / "tiny")
    found = {"unclip": make_tiny_unclip(root), "model": root / "tiny/model", "clip": root / "tiny/clip"}
    for folder in found.values():
        for file in folder.rglob("config.yaml"):
            file.write_text(to_yaml(with_hashes(yaml.safe_load(file.read_text()))))
    return found


@pytest.fixture
def right_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelFolder, "sha256", HASH)


def with_hashes(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    return {key: HASH if key == "sha256" else with_hashes(value) for key, value in data.items()}


def places(data: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of all values, of sections and of what is in them."""
    for key, value in data.items():
        if above or key in SECTIONS:
            yield (*above, key)
            if isinstance(value, dict):
                yield from places(value, (*above, key))


def damaged(data: dict[str, Any], place: tuple[str, ...], value: Any) -> str:
    """The text of a config in which one value is another."""
    data = copy.deepcopy(data)
    node = data
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return to_yaml(data)


def mistakes(folder: Path, load: Callable[[Path], object], every: int) -> list[str]:
    """What goes wrong with the values at each place, or with one in `every` of them."""
    found, number = [], 0
    for file in sorted(folder.rglob("config.yaml")):
        text = file.read_text()
        data = yaml.safe_load(text)
        for place in places(data):
            for value in VALUES:
                number += 1
                if number % every:
                    continue
                file.write_text(damaged(data, place, value))
                for call in (load, inspect):
                    try:
                        call(folder)
                    except ValueError as error:
                        if all(str(folder) in line for line in str(error).splitlines()):
                            continue
                        problem = f"does not name the file: {error}"
                    except Exception as error:
                        problem = f"{type(error).__name__}: {error}"
                    else:
                        continue
                    found.append(f"{file.relative_to(folder)}, {'.'.join(place)} = {value!r}: {problem}")
        file.write_text(text)
    return found


@pytest.mark.usefixtures("right_hashes")
@pytest.mark.parametrize("name", ["unclip", "model", "clip"])
@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_value_is_a_line_that_names_the_file(name: str, every: int, folders: dict[str, Path]) -> None:
    found = mistakes(folders[name], LOADERS[name], every)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        ("config.yaml", ("parts",), 3, "parts: expected a mapping, got 3"),
        ("config.yaml", ("parts",), ["a"], "parts: expected a mapping, got a list"),
        ("config.yaml", ("parts",), {}, "parts has no decoder"),
        ("config.yaml", ("parts",), {1: {}, "clip": {}}, "parts: expected names, got 1|parts: expected text, numbers"),
        ("config.yaml", ("parts", "decoder"), "decoder", "parts.decoder needs a path and a sha256"),
        ("decoder/config.yaml", ("model",), [1], "model: expected a mapping, got a list"),
        ("decoder/config.yaml", ("model", "image_size"), "8", "image_size: expected an integer, got '8'"),
        ("upsampler/config.yaml", ("model", "low_size"), "8", "low_size: expected an integer, got '8'"),
        ("prior/config.yaml", ("stage",), ["prior"], "stage: expected text, got a list"),
    ],
)
@pytest.mark.usefixtures("right_hashes")
def test_what_is_wrong_is_said(
    file: str, place: tuple[str, ...], value: Any, message: str, folders: dict[str, Path]
) -> None:
    damage = folders["unclip"] / file
    text = damage.read_text()
    damage.write_text(damaged(yaml.safe_load(text), place, value))
    try:
        with pytest.raises(ValueError, match=message) as caught:
            dalle.UnCLIP.from_pretrained(folders["unclip"], device="cpu")
    finally:
        damage.write_text(text)
    assert "\n" not in str(caught.value) and str(damage) in str(caught.value)


@pytest.mark.parametrize("text", ["{1: 2, a: 3}", "{a: 2020-01-01}", "&a {b: *a}", r'{a: "\ud800"}'])
def test_what_cannot_be_hashed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^config.yaml: model: expected text, numbers, lists and mappings alone"):
        check_config(yaml.safe_load(f"model: {text}"), "config.yaml")


def test_a_part_that_is_the_whole_ends(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        to_yaml({"stage": "unclip", "parts": {"decoder": {"path": ".", "sha256": HASH}}})
    )
    with pytest.raises(ValueError, match="says stage: 'unclip'"):
        inspect(tmp_path)


@pytest.mark.parametrize("value", [3, [1], {}, {"concepts": 3, "styles": ["a"]}])
def test_a_judge_without_names_is_refused(value: Any, tmp_path: Path) -> None:
    save_classifier(Classifier(["a"], ["b"]), tmp_path / "judge")
    file = tmp_path / "judge/config.yaml"
    file.write_text(damaged(yaml.safe_load(file.read_text()), ("model",), value))
    with pytest.raises(ValueError) as caught:
        load_classifier(tmp_path / "judge")
    assert all(str(file) in line for line in str(caught.value).splitlines())


def test_a_conversion_says_that_the_architecture_is_missing(
    tiny_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_copy / "image_tokenizer"
    (folder / "config.yaml").write_text("stage: image_tokenizer\n")
    assert main(["convert", str(folder), str(tmp_path / "out"), "image_size=32"]) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'config.yaml'}: kind: expected one of" in error and error.count("\n") == 1
