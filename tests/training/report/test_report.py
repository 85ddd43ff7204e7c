"""report.html: its curves are the numbers of metrics.jsonl, and it stands on whatever a run left."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dalle.__main__ import main
from dalle.training.metrics_log import Curve, charts, read_metrics
from dalle.training.report.html import write_report

PROMPTS = ["एउटा रातो घर", "<b>a & b</b>", "красный дом"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run: 40 log lines, two validations, three images."""
    folder = tmp_path / "mine"
    (folder / "samples").mkdir(parents=True)
    config = {"stage": "dalle", "prompts": PROMPTS, "run": {"dir": str(folder), "steps": 1000}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    (folder / "origin.yaml").write_text("seed: 0\nparts_sha256: {image_tokenizer: abc123}\n")
    rng = random.Random(0)
    lines: list[dict[str, float]] = [
        {
            "step": n * 20,
            "train/dalle_loss": 7 * 0.9**n + rng.random(),
            "train/image": 8 * 0.9**n,
            "train/dalle_gradient": 10 ** rng.uniform(-3, 3),
            "train/dalle_lr": 3e-4 * n / 40,
            "train/kl": rng.uniform(-1, 1),
            "train/of_my_own": 3.0,
        }
        for n in range(1, 41)
    ]
    lines += [{"step": u, "validation/image_nats": 5 - u / 400, "validation/image_accuracy": 0.1} for u in (400, 800)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (10, 400, 800):
        Image.new("RGB", (1500, 300), (step % 256, 80, 10)).save(folder / "samples" / f"{step:08d}.png")
    return folder


def page(run: Path) -> ET.Element:
    """The page, read as XML: every tag is closed, every attribute quoted, every text escaped."""
    return ET.fromstring(write_report(run).read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>"))


def text_of(element: ET.Element) -> str:
    return "".join(element.itertext())


def drawn(svg: ET.Element) -> dict[str, list[tuple[float, float]]]:
    """The values of a drawing's curves, by its ticks alone."""

    def scale(of: str, log: bool) -> tuple[float, float]:
        ticks = [t for t in svg.iter("text") if t.get("class") == of]
        assert 2 <= len(ticks) <= 9, of
        values = [float(t.text or "") for t in ticks]
        slope, offset = np.polyfit([float(t.get(of) or "") for t in ticks], np.log(values) if log else values, 1)
        return float(slope), float(offset)

    log = svg.get("class") == "log"
    (a, b), (c, d) = scale("x", False), scale("y", log)
    curves = {}
    for line in svg.iter("polyline"):
        places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        upwards = [c * y + d for _, y in places]
        curves[line.attrib["data-name"]] = [
            (a * x + b, math.exp(v) if log else v) for (x, _), v in zip(places, upwards)
        ]
    return curves


@pytest.mark.parametrize("kind", ["linear", "log"])
def test_curves_equal_the_logged_metrics(run: Path, kind: str) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line if name != "step"}
    found: dict[str, list[tuple[float, float]]] = {}
    for svg in page(run).iter("svg"):
        if svg.get("class") == kind:
            found |= drawn(svg)
    assert found.keys() == (names if kind == "linear" else names - {"train/kl"})  # which has values below 0
    for name, points in found.items():
        logged = [(line["step"], line[name]) for line in lines if name in line]
        assert len(points) == len(logged)
        span = max(abs(v) for _, v in logged)
        for (x, y), (step, value) in zip(points, logged):
            assert x == pytest.approx(step, abs=0.1)
            assert y == (pytest.approx(value, rel=1e-3) if kind == "log" else pytest.approx(value, abs=1e-3 * span))


def test_the_page_is_complete_and_self_contained(run: Path) -> None:
    root = page(run)
    text = text_of(root)
    for expected in (
        *PROMPTS,
        "step 800 of 1000",
        "no checkpoint yet",
        "abc123",
        "validation/image_nats",
        "step 400",
    ):
        assert expected in text, expected
    assert all(text.count(name) >= 2 for name in ("train/of_my_own", "train/dalle_lr"))  # a legend and a row
    source = (run / "report.html").read_text(encoding="utf-8")
    assert "http" not in source and "<script" not in source and "<b>" not in source
    sources = [image.attrib["src"] for image in root.iter("img")]
    assert len(sources) == 3 and all(x.startswith("data:image/jpeg;base64,") for x in sources)
    newest = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    assert newest.size == (720, 144)
    assert np.allclose(np.asarray(newest)[70, 300], (800 % 256, 80, 10), atol=3)
    assert [p.name for p in run.iterdir() if "report" in p.name] == ["report.html"]


def test_few_values_have_markers(run: Path) -> None:
    titles = [text_of(title) for circle in page(run).iter("circle") for title in circle.iter("title")]
    assert "validation/image_nats, step 400: 4" in titles


def test_truncated_or_broken_log_is_reported(run: Path) -> None:
    log = run / "metrics.jsonl"
    with log.open("ab") as file:
        file.write(b'{"step": 820, "train/image": NaN, "train/text": Infinity}\n[1]\n\xff\xfe\n{"upd')
    root = page(run)
    text = text_of(root)
    assert "cannot be read and are left out: 3." in text and "not finite and are not drawn: 2." in text
    assert "step 820 of 1000" in text
    names = {line.attrib["data-name"] for line in root.iter("polyline")}
    assert "train/image" in names and "train/text" not in names


@pytest.mark.parametrize("left", ["", '{"step": 20, "train/im', None])
def test_run_without_a_log_has_a_report(run: Path, left: str | None) -> None:
    for file in (run / "metrics.jsonl", run / "origin.yaml", *(run / "samples").iterdir()):
        file.unlink()
    if left is not None:
        (run / "metrics.jsonl").write_text(left)
    root = page(run)
    assert "Nothing is logged yet." in text_of(root) and "step 0 of 1000" in text_of(root)
    assert not list(root.iter("svg"))


def test_values_of_any_size_are_plotted(run: Path) -> None:
    rows = [
        {"step": 1, "train/a": 0.0, "train/b": 1e30, "train/c": 1e-12, "train/d": -5.0, "train/e": 5e-4},
        {
            "step": 2,
            "train/a": 0.0,
            "train/b": 1e-30,
            "train/c": 1.0001e-12,
            "train/d": 1e-9,
            "train/e": 5.000000000000001e-4,
        },
    ]
    for count in (1, 2):
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        for svg in page(run).iter("svg"):
            for line in svg.iter("polyline"):
                places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
                assert all(0 <= x <= 460 and 0 <= y <= 240 for x, y in places), line.attrib["data-name"]


def test_truncated_sample_image_is_named(run: Path) -> None:
    newest = run / "samples" / "00000800.png"
    newest.write_bytes(newest.read_bytes()[:60])
    root = page(run)
    assert "step 800: 00000800.png cannot be read" in text_of(root)
    assert len(list(root.iter("img"))) == 2


def test_many_points_are_thinned_to_the_extremes() -> None:
    rng = random.Random(1)
    values = [rng.gauss(0, 1) for _ in range(50_000)]
    values[33_333], values[12_345] = 100.0, -100.0
    thin = Curve("train/x", list(range(50_000)), values).downsampled(800)
    assert 400 <= len(thin.values) <= 800
    assert thin.steps == sorted(set(thin.steps)) and (thin.steps[0], thin.steps[-1]) == (0, 49_999)
    assert all(values[u] == v for u, v in zip(thin.steps, thin.values))
    assert (33_333, 100.0) in zip(thin.steps, thin.values) and (12_345, -100.0) in zip(thin.steps, thin.values)


def test_each_metric_is_in_one_chart(run: Path) -> None:
    curves = read_metrics(run / "metrics.jsonl").curves
    grouped = charts(curves.values())
    assert sorted(c.name for _, own in grouped for c in own) == sorted(curves)
    together = next(own for title, own in grouped if title == "Image tokens: nats")
    assert [c.name for c in together] == ["train/image", "validation/image_nats"]
    assert grouped[-1][0] == "train/of_my_own"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "not the folder of a run"),
        ("stage: dalle\nmodel: {}\n", "not the folder of a run"),  # the folder of a model
        ("run: [", "not valid YAML"),
    ],
)
def test_folder_without_a_run_gives_a_one_line_error(
    config: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_report_command_prints_its_path(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert main(["report", str(run / "nowhere")]) == 2
