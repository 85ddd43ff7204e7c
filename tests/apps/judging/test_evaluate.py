"""Candidates are cached; scenes and their prompts; `eval --draw` and `judge` from end to end."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dalle.__main__ import main
from dalle.apps.judging.candidates import decode_images, sample_candidates
from dalle.apps.judging.classifier import Classifier, load_classifier, save_classifier
from dalle.apps.judging.drawings import Drawings, choose_images, load_images, open_plain
from dalle.apps.judging.scenes import (
    RelationPrompt,
    background_prompts,
    compose_scenes,
    icon_prompts,
    object_halves,
    relation_prompts,
)
from dalle.data.drawings import DrawingsConfig
from dalle.data.drawings.composition import paint, scene_boxes
from dalle.pipelines.text_to_image import TextToImage

DATA = DrawingsConfig(sets=("emoji",), styles=("fluent-mono",))


@pytest.fixture(scope="module")
def known() -> Drawings:
    return open_plain(DATA, "train", 64)


def test_candidates_are_cached_and_equal_the_pipelines(tiny_model: Path, tmp_path: Path) -> None:
    pipe = TextToImage.from_pretrained(tiny_model, device="cpu")
    prompts = ["a red heart", "two green stars", "a blue circle"]
    made = sample_candidates(pipe, prompts, 4, tmp_path, seed=5)
    assert made.codes.shape == (3, 4, 4, 4) and made.ranked_first is not None
    best = made.best()
    assert best is not None
    for row, result in enumerate(pipe(prompts, n=4, seed=5)):
        first = result.seeds.index(5)
        assert torch.equal(made.first()[row], result.codes[first]) and torch.equal(best[row], result.codes[0])
        shown = Image.fromarray((decode_images(pipe, best)[row] * 255).round().byte().permute(1, 2, 0).numpy())
        assert shown.tobytes() == result.images[0].tobytes()
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = sample_candidates(pipe, prompts, 4, tmp_path, seed=5)
    assert torch.equal(again.codes, made.codes) and {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()} == files
    pipe.sampling = pipe.sampling.updated(temperature=0.5)
    sample_candidates(pipe, prompts, 4, tmp_path, seed=5)
    assert len(list(tmp_path.iterdir())) == 2 * len(files)  # other options are other drawings


@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_halves_cover_the_objects_of_training_scenes(known: Drawings, relation: str) -> None:
    scene = torch.zeros(3, 64, 64)
    for value, (top, left, _) in zip((0.25, 0.75), scene_boxes(relation, 64, random.Random(0), 0.0), strict=True):
        scene[:, top : top + 32, left : left + 32] = value
    first, second = object_halves(scene, relation)
    assert first.shape == second.shape == (3, 32, 32)
    assert first.unique().tolist() == [0.25] and second.unique().tolist() == [0.75]
    prompt = RelationPrompt("", relation, ("", ""), (3, 8))
    (real,) = compose_scenes(known, [prompt])
    for half, index in zip(object_halves(real, relation), prompt.indices, strict=True):
        expected = paint(known.drawings[index].art.render(32), (255, 255, 255))  # type: ignore[attr-defined]
        error = half - torch.tensor(expected / 255).permute(2, 0, 1).float()
        assert error.abs().mean() < 0.01


def test_scene_prompts_name_background_color_relation_and_objects(known: Drawings) -> None:
    indices = choose_images(known, 30, seed=0)
    for one, index in zip(background_prompts(known, indices, 0), indices, strict=True):
        article = "an" if one.color == "orange" else "a"
        assert one.prompt == f"{known.canonical_caption(index)} on {article} {one.color} background"
        assert one.color not in ("white", "black")  # what is drawn is black
    relations = relation_prompts(known, indices, 0)
    assert {one.relation for one in relations} == {"left", "right", "above", "below"}
    for relation in relations:
        first, second = (known.concepts[index].phrase for index in relation.indices)
        assert first != second and relation.prompt.startswith(first) and f" {second}, black" in relation.prompt
        assert relation.prompt.endswith(", black and white style")


def test_icon_prompts_of_one_color_name_that_color(known: Drawings) -> None:
    made = icon_prompts(known, 12, 0)
    assert len(made) == 12 and len({one.color for one in made}) > 4
    for one in made:
        assert one.prompt.removeprefix("an ").removeprefix("a ").startswith(one.color + " ")
        assert one.prompt.endswith(", black and white style")


class FewFeatures(torch.nn.Module):
    """In place of EfficientNet-Lite0, which takes a minute for all training images."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale.detach() * torch.nn.functional.adaptive_avg_pool2d(images, 3).flatten(1)


def test_eval_command_judges_generated_images(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "dalle.checkpoints.published.efficientnet.load_efficientnet_lite0", lambda device: FewFeatures()
    )
    judge = tmp_path / "judge"
    everything = open_plain(DATA, "all", 8)
    torch.manual_seed(0)
    concepts = sorted({concept.phrase for concept in everything.concepts})
    save_classifier(Classifier(concepts, sorted(set(everything.styles))), judge)
    command = [
        "eval",
        str(tiny_model),
        "sets=[emoji]",
        "styles=[fluent-mono]",
        "--judge",
        str(judge),
        "--out",
        str(tmp_path / "out"),
    ]
    command += [
        "--clip-score",
        str(tiny_model / "clip"),
        "--device",
        "cpu",
        "--candidates",
        "3",
        "--split",
        "test_pair",
        "--language",
        "en",
        "--language",
        "ne",
    ]
    assert main([*command, "--draw", "4", "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)["drawn"]
    assert list(drawn) == ["test_pair, en", "test_pair, ne", "scenes"]
    rows = drawn["test_pair, en"]
    assert list(rows) == ["n = 1", "best of 3", "real", "reconstruction", "random"]  # this style has no other one
    for metrics in rows.values():
        assert 0 <= metrics["concept_top1"] <= metrics["concept_top5"] <= 1 and metrics["images"] == 4
    assert rows["real"]["frechet_lite0"] is None and rows["n = 1"]["frechet_lite0"] > 0
    assert rows["random"]["near_copies"] == 1 and rows["random"]["neighbor_rmse"] == pytest.approx(0, abs=0.1)
    assert set(drawn["scenes"]["best of 3"]) == {"background", "icon_color", "relation"}
    assert 0 < rows["n = 1"]["clip_score"] < rows["best of 3"]["clip_score"]  # of the CLIP that ranks
    folders = sorted(folder.name for folder in (tmp_path / "out" / "images" / "test_pair-en").iterdir())
    assert folders == ["best-of-3", "n-1", "real", "reconstruction"]
    first = Image.open(tmp_path / "out" / "images" / "test_pair-en" / "real" / "0003.png")
    assert first.size == (16, 16)
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {
        *("test_pair-en.png", "test_pair-en-neighbors.png", "test_pair-ne.png", "test_pair-ne-neighbors.png")
    }
    # From what was kept; what of it is truncated is computed again, which is said
    caches = [next((tmp_path / "out").glob(f"{kind}-*.safetensors")) for kind in ("codes", "training")]
    whole = [file.read_bytes() for file in caches]
    for file in caches:
        os.truncate(file, file.stat().st_size // 2)
    with caplog.at_level("WARNING"):
        assert main([*command, "--draw", "4"]) == 0
    assert [f"{file} is damaged: computing it again" in caplog.messages for file in caches] == [True, True]
    assert [file.read_bytes() for file in caches] == whole
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tiny_model}, test_pair, en" and "best of 3" in lines[1]
    assert float(next(line for line in lines if "concept_top5" in line).split()[1]) == pytest.approx(
        rows["n = 1"]["concept_top5"], abs=1e-4
    )
    assert main([*command, "--draw", "1"]) == 2
    assert "draw is 1: generate at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_judge_command_trains_and_saves_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["sets=[emoji]", "styles=[fluent-mono]", "--out", str(tmp_path / "judge"), "--device", "cpu"]
    assert main(["judge", *options, "--epochs", "1", "--batch-size", "100"]) == 0
    assert "concepts, 1 styles" in capsys.readouterr().out
    assert load_classifier(tmp_path / "judge").styles == ["fluent-mono"]
    assert main(["judge", *options, "--epochs", "0"]) == 2
    assert "epochs is 0; it must be at least 1" in capsys.readouterr().err


def test_judge_replaces_a_judge_alone_and_says_so(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dalle.apps.judging.train.train_judge", lambda *_: Classifier(["heart"], ["flat"]))
    options = ["judge", "sets=[emoji]", "styles=[fluent-mono]", "--device", "cpu", "--out"]
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    assert main([*options, str(model)]) == 2
    assert "holds a model of stage 'dalle', which one of stage 'judge' does not replace" in capsys.readouterr().err
    for end in ("images\n", "images, in place of the judge that was there\n"):
        assert main([*options, str(tmp_path / "judge")]) == 0
        assert capsys.readouterr().out.endswith(end)


def test_draw_and_judge_options_require_each_other(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tiny_model), "--draw", "4"]) == 2
    assert "--draw and --judge go together" in capsys.readouterr().err
    clip = str(tiny_model.parent / "clip")
    assert main(["eval", clip, "--draw", "4", "--judge", clip]) == 2
    assert "only a dalle draws" in capsys.readouterr().err


UNUSED = {
    "--candidates": (["--candidates", "3"], False),
    "--seed": (["--seed", "0"], False),  # its default, but given
    "--language": (["--language", "hi"], False),
    "--out": (["--out", "evo"], False),
    "--clip-score": (["--clip-score", "x"], False),
    "--guidance": (["--guidance", "5"], False),
    "--temperature": (["--temperature", "0"], False),
    "--top-k": (["--top-k", "null"], False),
    "--clip": (["--clip", "x"], True),
    "--limit": (["--limit", "2"], True),
    "--batch-size": (["--batch-size", "64"], True),
}


@pytest.mark.parametrize(("words", "drawn"), UNUSED.values(), ids=UNUSED)
@pytest.mark.parametrize("source", ["model", "clip", "image_tokenizer"])
def test_options_without_use_are_refused(
    source: str, words: list[str], drawn: bool, tiny_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = ["--draw", "2", "--judge", "nowhere"] if drawn else []
    assert main(["eval", str(tiny_parts / source), *draw, *words]) == 2
    todo = "leave it out" if drawn else "give --draw and --judge, or leave it out"
    is_for = "an evaluation without --draw" if drawn else "generated images"
    assert capsys.readouterr().err == f"dalle eval: {words[0]} is for {is_for}: {todo}\n"


BAD_DRAW = {
    "language": (["--language", "xx"], "language is 'xx': choose from en, hi, ne"),
    "seed": (["--seed", str(10**23 - 1)], "give a number from 0 to 2^63 - n"),
    "candidates": (["--candidates", "0"], "candidates is 0: generate at least 1"),
    "kind": (["kind=shapes"], "data of kind shapes names no concepts and styles: give kind=drawings, or no kind"),
    "judge": ([], "nowhere"),
}


@pytest.mark.parametrize(("words", "message"), BAD_DRAW.values(), ids=BAD_DRAW)
def test_bad_options_of_generated_images_are_refused_before_the_model_is_loaded(
    words: list[str],
    message: str,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dalle.pipelines.text_to_image.TextToImage.from_pretrained", lambda *_: pytest.fail("loaded"))
    assert main(["eval", str(tiny_model), "--draw", "2", "--judge", "nowhere", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


BAD_JUDGE = {
    "lr nan": (["--lr", "nan"], "lr is nan; it must be a finite number, above 0"),
    "lr inf": (["--lr", "inf"], "lr is inf; it must be a finite number, above 0"),
    "lr negative": (["--lr", "-1"], "lr is -1.0; it must be above 0"),
    "seed": (["--seed", str(10**23 - 1)], "seed is 2^76 or more; it must be at most"),
    "epochs": (["--epochs", "0"], "epochs is 0; it must be at least 1"),
    "shapes": (["kind=shapes"], "data of kind shapes names no concepts and styles"),
    "tokens": (["kind=tokens", "path=x"], "data of kind tokens names no concepts and styles"),
}


@pytest.mark.parametrize(("words", "message"), BAD_JUDGE.values(), ids=BAD_JUDGE)
def test_bad_options_of_a_judge_are_refused_before_it_is_trained(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dalle.apps.judging.train.train_judge", lambda *_: pytest.fail("trained"))
    assert main(["judge", *words, "--out", str(tmp_path / "judge")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_images_of_equals_the_data_set(known: Drawings) -> None:
    images = load_images(known, [4, 9])
    assert torch.equal((images[1] * 255).round().byte(), torch.tensor(known.pair(9, 0).image).permute(2, 0, 1))
