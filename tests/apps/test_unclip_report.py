"""The tables of an unCLIP with random weights: figures against other ways to them, the command, and wrong inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dalle
from dalle.__main__ import main
from dalle.apps.judging.classifier import Classifier, save_classifier
from dalle.apps.judging.drawings import open_plain
from dalle.apps.judging.judge import Judge
from dalle.apps.unclip_report import latents
from dalle.apps.unclip_report.generated import decoder_table, inpainting_table
from dalle.apps.unclip_report.held_out import Judges, Pairs, read_pairs
from dalle.apps.unclip_report.latents import blend_table, edit_table, inversion_table, violations, without_upsampler
from dalle.data import ShapesConfig
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.evaluation.table import markdown_table
from dalle.pipelines.unclip import UnCLIP
from support.tiny_model import make_tiny_model
from support.tiny_unclip import make_tiny_unclip

DRAWINGS = DrawingsConfig(sets=("emoji",), styles=("fluent-mono",))
WORDS = ["sets=[emoji]", "styles=[fluent-mono]", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_unclip(tmp_path_factory.mktemp("unclip"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> UnCLIP:
    return dalle.UnCLIP.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return read_pairs(ShapesConfig(size=200), "validation", 16, 6)


@pytest.fixture
def judges(pipe: UnCLIP, pairs: Pairs) -> Judges:
    return Judges(pipe.clip, None, pairs)


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    everything = open_plain(DRAWINGS, "all", 8)
    torch.manual_seed(0)
    concepts = sorted({concept.phrase for concept in everything.concepts})
    out = tmp_path_factory.mktemp("judge")
    save_classifier(Classifier(concepts, ["fluent-mono", "noto"]), out)
    return out


def nothing(count: int) -> None:
    """No progress bar."""


def test_captions_are_ranked_as_by_a_slow_loop(pipe: UnCLIP, pairs: Pairs, judges: Judges) -> None:
    with torch.no_grad():
        embeds, texts = judges.embeds(pairs.images), pipe.clip.encode_text(pairs.captions)
    hits = 0
    for row, caption in enumerate(pairs.captions):
        scores = {other: float(embeds[row] @ texts[n]) for n, other in enumerate(pairs.captions)}
        hits += max(scores, key=lambda other: scores[other]) == caption
    found = judges.metrics(pairs.images, pairs)
    assert found["caption_top1"] == pytest.approx(hits / len(pairs)) and found["caption_top10"] == 1
    assert found["frechet"] == pytest.approx(0, abs=1e-4) and "style" not in found
    twice = Pairs(pairs.images[[0, 0]], [pairs.captions[0]] * 2, None)
    assert Judges(pipe.clip, None, twice).metrics(twice.images, twice)["caption_top1"] == 1


def test_decoder_that_returns_the_images_is_perfect(
    pipe: UnCLIP, pairs: Pairs, judges: Judges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "decode", lambda z, captions, seed: pairs.images[seed : seed + len(z)], raising=False)
    rows = decoder_table(pipe, pairs, judges, ShapesConfig(size=40), tmp_path, nothing)
    assert list(rows) == ["real image", "true embedding", "prior's embedding", "caption's embedding"]
    for metrics in rows.values():
        assert metrics["cos"] == pytest.approx(1, abs=1e-5) and metrics["frechet"] == pytest.approx(0, abs=1e-4)
        assert metrics["neighbor_rmse"] == rows["real image"]["neighbor_rmse"]
    assert (tmp_path / "decoder.png").is_file()


def test_images_of_training_are_copies_of_themselves(judges: Judges) -> None:
    data = ShapesConfig(size=40)
    known = read_pairs(data, "train", 16, 8)
    found = judges.nearest_training(known.images, data)
    assert found["near_copies"] == 1 and found["neighbor_rmse"] == pytest.approx(0, abs=0.1)


def test_inversion_table_equals_variations_of_eta_0(
    pipe: UnCLIP, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "INVERSION_STEPS", (4, 20))
    two = pairs.first(2)
    rows = inversion_table(pipe, two, nothing)
    base = without_upsampler(pipe)
    assert base.image_size == 8 and pipe.image_size == 16
    errors = []
    for image, wanted in zip(two.pil_images(), latents.small_images(two, 8), strict=True):
        (same,) = base.vary(image, n=1, eta=0.0, steps=20)
        back = torch.from_numpy(np.asarray(same).copy()).permute(2, 0, 1) / 255
        errors.append(-10 * (back - wanted).square().mean().log10().item())
    # Those of `vary` are rounded to 8 bits, which leaves at most 59 dB
    found = rows["20 steps, 2 passes each"]["psnr"]
    assert min(found, 59) == pytest.approx(min(sum(errors) / 2, 59), abs=2.0)
    assert rows["20 steps, 2 passes each"]["psnr"] > rows["4 steps, 1 pass each"]["psnr"]
    assert all(row["worst"] <= row["psnr"] for row in rows.values())


def test_falls_are_counted() -> None:
    assert violations(torch.tensor([0.0, 1.0, 0.5, 0.5, 2.0, 1.9])) == 2
    assert violations(torch.arange(9.0)) == 0


def test_ends_of_blends_are_the_images(pipe: UnCLIP, pairs: Pairs, judges: Judges, tmp_path: Path) -> None:
    (row,) = blend_table(pipe, pairs.first(5), judges, tmp_path, nothing, 20).values()
    assert row["pairs"] == 2 and row["ends_psnr"] > 30 and row["violations"] <= 2 * row["worst"] <= 2 * 8
    assert 0 <= row["good"] <= 1 and (tmp_path / "blends.png").is_file()


def test_inpainting_changes_nothing_outside_the_mask(
    pipe: UnCLIP, pairs: Pairs, judges: Judges, tmp_path: Path
) -> None:
    other = dalle.TextToImage.from_pretrained(make_tiny_model(tmp_path / "tiny"), device="cpu")
    few = pairs.first(2)
    rows = inpainting_table({"unCLIP": pipe, "autoregressive": other}, few, judges, tmp_path, nothing)
    assert list(rows) == ["real", "half", "unCLIP", "autoregressive"]
    assert rows["unCLIP"]["changed_bytes"] == 0 == rows["autoregressive"]["changed_bytes"]
    assert rows["half"]["frechet"] > 0

    class Careless:
        image_size = 16

        def __call__(self, prompts: Any, **given: Any) -> Any:
            results = pipe(prompts, seed=given["seed"])
            return results

    assert inpainting_table({"unCLIP": Careless()}, few, judges, None, nothing)["unCLIP"]["changed_bytes"] > 100  # type: ignore[dict-item]


def test_edits_are_counted_by_the_judge(pipe: UnCLIP, judge_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, judge = DrawingsDataset(DRAWINGS, "test_pair", 16), None
    judge = Judge(dalle_classifier(judge_folder), open_plain(DRAWINGS, "all", 16))

    def edit(image: Any, before: str, after: str, theta: list[float], steps: int) -> list[Any]:
        assert before.endswith("black and white style") and after.endswith("noto style")
        assert theta == [0, *latents.THETAS]
        return [image] * len(theta)

    monkeypatch.setattr(pipe, "edit", edit, raising=False)
    rows = edit_table(pipe, dataset, judge, ("fluent-mono", "noto"), 4, None, nothing, 5)
    assert list(rows) == ["theta 0", "theta 0.25", "theta 0.35", "theta 0.5"]
    styles = judge.classifier.log_probs(torch.cat([latents._image(dataset, n) for n in range(4)]))[1]
    for row in rows.values():
        assert row["images"] == 4 and row["new_style"] == (styles.argmax(1) == 1).double().mean()
        assert row["old_style"] + row["new_style"] == 1  # of two styles
    with pytest.raises(ValueError, match="no drawing of split test_pair has the style blob"):
        edit_table(pipe, dataset, judge, ("blob", "noto"), 4, None, nothing, 5)
    with pytest.raises(ValueError, match="style is 'cubist': choose from noto"):
        edit_table(pipe, dataset, judge, ("fluent-mono", "cubist"), 4, None, nothing, 5)


def dalle_classifier(folder: Path) -> Classifier:
    from dalle.apps.judging.classifier import load_classifier

    return load_classifier(folder)


@pytest.mark.slow
def test_command_makes_every_table(
    folder: Path,
    judge_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latents, "INVERSION_STEPS", (2,))
    monkeypatch.setattr("dalle.apps.unclip_report.report.training_split", lambda data: "validation")  # fewer
    monkeypatch.setattr("dalle.apps.unclip_report.held_out.training_split", lambda data: "validation")
    other = make_tiny_model(tmp_path / "tiny")
    command = ["eval", "unclip", str(folder), *WORDS, "--limit", "4", "--judge", str(judge_folder), "--steps", "2"]
    command += ["--against", str(other), "--from-style", "fluent-mono", "--out", str(tmp_path / "out")]
    assert main([*command, "--clip", str(folder / "clip"), "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert list(tables) == ["prior", "decoder", "inversion", "blend", "edit", "inpainting", "systems", "speed"]
    assert {"prior, guidance 1, one sample", "prior, guidance 4, mean of 16", "ridge regression"} <= set(
        tables["prior"]
    )
    assert {"unCLIP, en", "autoregressive, ne"} <= set(tables["systems"])
    assert tables["systems"]["unCLIP, en"]["seconds"] > 0 and "style" in tables["decoder"]["real image"]
    assert tables["speed"]["all"]["images"] == 8
    sheets = {file.name for file in (tmp_path / "out").glob("*.png")}
    assert sheets == {
        f"{name}.png" for name in ("decoder", "blends", "edits", "inpainting", "systems-en", "systems-ne")
    }


def test_command_prints_markdown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "unclip", str(folder), *WORDS, "--limit", "4", "--table", "speed"]) == 0
    told = capsys.readouterr().out
    assert "| seconds | share |" in told and "decoder, 25 steps" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "beauty"], "there is no table 'beauty': choose from prior, decoder"),
        (["--table", "edit"], "the table edit needs --judge, the folder of a judge"),
        (["--table", "systems"], "the table systems needs --against, an autoregressive model"),
        (["--limit", "0"], "limit is 0: look at 1 pair at least"),
        (["--limit", "1"], "limit is 1: the table prior needs 2 pairs at least"),
        (["--limit", "1", "--table", "speed", "--table", "blend"], "the table blend needs 2 pairs at least"),
        (["--table", "inversion", "--steps", "9"], "--steps is for the tables blend, edit, not for inversion: leave"),
        (["--table", "decoder", "--against", "nope"], "--against is for the tables inpainting, systems, not for deco"),
        (["--table", "speed", "--judge", "nope"], "--judge is for the tables decoder, edit, inpainting, systems, not"),
        (["--table", "prior", "--clip", "nope"], "--clip is for the tables decoder, blend, inpainting, systems, not f"),
        (["--table", "blend", "--language", "en"], "--language is for the table systems, not for blend: leave it out"),
        (["--from-style", "noto"], "--from-style is for the table edit, not for prior, decoder, inversion, blend"),
        (["--table", "speed", "--out", "nope"], "--out is for the tables decoder, blend, edit, inpainting, systems, n"),
        (["--table", "speed", "--table", "systems", "--against", "nope"], "nope: no such file or folder"),
        (["--split", "nowhere"], "unknown data split 'nowhere'"),
        (["--steps", "0", "--table", "blend", "--limit", "2"], "steps is 0"),
    ],
)
def test_wrong_options_give_a_one_line_error(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "unclip", str(folder), *WORDS, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("nope").exists()


def test_one_pair_is_enough_for_an_inversion(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "INVERSION_STEPS", (2,))
    command = ["eval", "unclip", str(folder), *WORDS, "--limit", "1", "--json"]
    assert main([*command, "--table", "inversion", "--table", "inpainting"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert tables["inversion"]["2 steps, 1 pass each"]["images"] == 1
    assert tables["inpainting"]["unCLIP"]["images"] == 1 and tables["inpainting"]["unCLIP"]["frechet"] is None


def test_a_blend_is_of_two(pipe: UnCLIP, pairs: Pairs, judges: Judges) -> None:
    with pytest.raises(ValueError, match="the table blend is of 2 images or more, and the split has 1"):
        blend_table(pipe, pairs.first(1), judges, None, nothing, 2)


def test_a_prior_has_its_own_table_only(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prior: str = str(folder / "prior")
    monkeypatch.setattr("dalle.apps.unclip_report.report.training_split", lambda data: "validation")  # fewer
    assert main(["eval", "unclip", prior, *WORDS, "--limit", "4", "--json"]) == 0
    (rows,) = json.loads(capsys.readouterr().out)["tables"].values()
    assert rows["the image's own embedding"]["cos"] == pytest.approx(1, abs=1e-5) and len(rows) == 13
    assert main(["eval", "unclip", prior, *WORDS, "--table", "decoder"]) == 2
    assert f"the table decoder needs a whole unCLIP, and {prior} is a prior" in capsys.readouterr().err


def test_tables_are_markdown() -> None:
    told = markdown_table({"one": {"cos": 0.5, "images": 3}, "other": {"cos": None}})
    assert told.splitlines() == [
        "|  | cos | images |",
        "| --- | --- | --- |",
        "| one | 0.500 | 3 |",
        "| other | - | - |",
    ]
