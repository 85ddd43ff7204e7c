"""`dalle search` and `dalle classify` on the command line: weights, floors, near-duplicates, none of these."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

import dalle
from dalle.__main__ import main
from dalle.apps.search import ImageIndex
from dalle.apps.zeroshot.classifier import DOUBTFUL


@pytest.fixture(scope="module")
def made(tiny_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ (the last two alike) and photos.index."""
    root = tmp_path_factory.mktemp("made")
    (root / "photos").mkdir()
    for name, color in {"a": "red", "b": "blue", "c": "white", "d": "white"}.items():
        Image.new("RGB", (9, 9), color).save(root / "photos" / f"{name}.png")
    clip = dalle.load_clip(tiny_parts / "clip")
    ImageIndex.build(root / "photos.index", root / "photos", clip=tiny_parts / "clip")
    assert not clip.config.sigmoid
    return root


def found(made: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    assert main(["search", str(made / "photos.index"), *options, "--json", "--device", "cpu"]) == 0
    hits: list[dict[str, object]] = json.loads(capsys.readouterr().out)["found"]
    return hits


def test_search_weights_floor_and_distinct(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = found(made, capsys, "a red heart")
    assert len(every) == 4 and every[0]["probability"] is None
    assert found(made, capsys, "--weights", "a red heart: 2") == every
    floor = (float(str(every[0]["score"])) + float(str(every[-1]["score"]))) / 2
    assert 0 < len(found(made, capsys, "a red heart", "--min-score", str(floor))) < 4
    apart = [str(hit["path"])[-5:] for hit in found(made, capsys, "a red heart", "--distinct", "0.99999")]
    assert not {"c.png", "d.png"} <= set(apart) and len(apart) < 4
    assert main(["search", str(made / "photos.index"), "a", "--min-score", "0.9999", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "no image fits\n"


def test_search_takes_a_vector_and_a_data_url(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = ImageIndex(made / "photos.index", device="cpu")
    file = tmp_path / "v.json"
    file.write_text(json.dumps(index.query("a red heart").tolist()))
    assert [hit["path"] for hit in found(made, capsys, "--vector", str(file))] == [
        hit["path"] for hit in found(made, capsys, "a red heart")
    ]
    image = made / "photos/b.png"
    url = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    assert found(made, capsys, "--image", url) == found(made, capsys, "--image", str(image))
    file.write_text("{}")
    for options, message in (
        (["--vector", str(file)], "is no JSON list of numbers"),
        (["--vector", str(tmp_path / "none.json")], "cannot be read: No such file"),
    ):
        assert main(["search", str(made / "photos.index"), *options, "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "dog"], "expected a text and a number"),
        (["--weights", "dog:much"], "expected a text and a number"),
        (["--weights", "dog:1, dog:2"], "'dog' twice"),
        (["--weights", "dog:0"], "each must be a finite number other than 0"),
        (["a", "--distinct", "2"], "give a cosine"),
        (["a", "--min-score", "30"], "scores are from -1 to 1"),
        (["a", "--min-score", "nan"], "scores are from -1 to 1"),
        (["a", "--weights", "a:-1"], "nothing is left to look for"),
        (["--image", "https://example.com/a.png"], "URLs are not fetched: download it"),
        (["--duplicates", "--min-score", "0.5"], "--duplicates is no search, and does not look at --min-score"),
        (["--duplicates", "--top", "0"], "--top is 0: give 1 or more"),
        (["--duplicates", "--top", "-1"], "--top is -1: give 1 or more"),
        (["a", "--duplicates", "--where", "width>1"], "does not look at TEXT, --where"),
        (
            ["--captions", "--image", "a.png", "--weights", "a:1"],
            "--captions is no search, and does not look at --weights",
        ),
    ],
)
def test_wrong_options_give_a_one_line_error(
    options: list[str], message: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(made / "photos.index"), *options, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_inputs_are_not_replaced(made: Path, tiny_parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the image that is searched for, nor those of an index, by name, in a folder or by a pattern."""
    image, index = str(made / "photos/a.png"), str(made / "photos.index")
    before = Path(image).read_bytes()
    clip = ["--clip", str(tiny_parts / "clip"), "--device", "cpu"]
    for words, option in (
        (["search", index, "--image", image, "--html", image], "--html"),
        (["search", index, "a", "--minus-image", image, "--html", image], "--html"),
        (["search", index, "a", "--html", image], "--html"),
        (["search", index, "--duplicates", "--html", image], "--html"),
        (["index", image, "--out", str(made / "new.index"), "--export", image], "--export"),
        (["index", "--out", index, "--export", image], "--export"),
        (["index", str(made / "photos"), "--out", index, "--export", image], "--export"),
        (["eval", "classify", image, "--labels", "a,b", "--calibrate", image], "--calibrate"),
        (["eval", "classify", "emoji", "--labels-file", image, "--confusion", image], "--confusion"),
    ):
        assert main([*words, *(clip if words[1] != "--out" else [])]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.endswith(f"{image} is also an input, which would be replaced: give another name as {option}")
        assert Path(image).read_bytes() == before
    assert not (made / "new.index").exists()


@pytest.mark.parametrize("words", ["index --out INDEX --export FILE", "search INDEX a --html FILE"])
@pytest.mark.parametrize("name", ["index.json", "more/new.html"])
def test_nothing_is_written_into_the_folder_of_an_index(
    words: str, name: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = made / "photos.index"
    before = {file: file.read_bytes() for file in index.iterdir()}
    places = {"INDEX": str(index), "FILE": str(index / name)}
    assert main([places.get(word, word) for word in words.split()]) == 2
    option = words.split()[-2]
    said = f"{index / name} is in {index}, which holds the files of an index alone: give another {option}\n"
    assert capsys.readouterr().err.endswith(said)
    assert {file: file.read_bytes() for file in index.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--split", "train"], "--split"),
        (["--image", "back", "--caption", "name"], "--image, --caption"),
        (["--export", "FILE", "--clip", "models/emoji/clip"], "--clip"),
        (["--export", "FILE", "--device", "cpu", "--batch-size", "2", "--workers", "1"], "--device, --batch-size, --w"),
    ],
)
def test_options_that_need_images_are_refused_without_them(
    options: list[str], named: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tmp_path / "out.parquet") if word == "FILE" else word for word in options]
    assert main(["index", "--out", str(made / "photos.index"), *given]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"dalle index: without IMAGES nothing is done with {named}")
    assert said.out == "" and said.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_control_characters_of_names_are_printed_as_escapes(
    tiny_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, index = tmp_path / "photos", str(tmp_path / "index")
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "a\n\x1b[31m.png")
    (folder / "b\n.png").write_bytes(b"no image")
    clip = ["--clip", str(tiny_parts / "clip"), "--device", "cpu"]
    assert main(["classify", str(folder), "--labels", "cat,dog", *clip]) == 0
    assert main(["index", str(folder), "--out", index, *clip]) == 0
    assert main(["search", index, "a", *clip]) == 0
    said = capsys.readouterr()
    assert said.out.count(f"{folder}/a\\n\\x1b[31m.png") == 2 and said.err.count("b\\n.png: ") == 2
    assert "\x1b" not in said.out + said.err


def test_classify_says_when_labels_hardly_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The built-in CLIP, on an image that is neither: a label is the likeliest, words for other things fit better."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    given = ["classify", str(tmp_path / "red.png"), "examples/images/dog.png", "--labels", "cat,dog", "--device", "cpu"]
    assert main(given) == 0
    red, dog = capsys.readouterr().out.split("examples/images/dog.png")
    assert "%  dog\n" in red and "perhaps none of these: words for other things fit better (99.8" in red
    assert "dog" in dog and "none" not in dog
    assert main([*given, "--json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert images[0]["none"] > DOUBTFUL and images[1]["none"] < 0.5
    assert sum(label["probability"] for label in images[0]["labels"]) == pytest.approx(1, abs=1e-5)


def test_classify_threshold_prints_none_of_these(
    made: Path, tiny_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, clip = str(made / "photos/a.png"), str(tiny_parts / "clip")
    given = ["classify", image, "--labels", "heart,star", "--clip", clip, "--device", "cpu"]
    assert main([*given, "--threshold", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(image) and out.endswith("%  none of these\n") and "heart" not in out
    assert main([*given, "--threshold", "0", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["images"]
    assert one["none"] + sum(label["probability"] for label in one["labels"]) == pytest.approx(1, abs=1e-5)
    assert main([*given, "--threshold", "7"]) == 2
    assert "give a probability, from 0 to 1" in capsys.readouterr().err
