"""Figures of a folder of weights equal what slow loops over single images give."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dalle
from dalle.data import Pair, ShapesConfig, open_data
from dalle.evaluation.dalle import derangement
from dalle.evaluation.metrics import frechet_distance, psnr
from dalle.evaluation.run import evaluate, feature_network
from dalle.evaluation.table import table
from dalle.image_tokenizers.vq import VQConfig
from dalle.models import captions
from support.published import folders
from support.tiny_model import CODES, GRID, IMAGE_SIZE

DATA = ShapesConfig(size=80)  # 10 of them held out


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    held_out = open_data(DATA, "validation", IMAGE_SIZE)
    return [held_out.pair(index, 0) for index in range(len(held_out))]


@pytest.fixture
def no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the network of the Fréchet distance, which takes longer than all else; it has a test of its own."""
    monkeypatch.setattr("dalle.evaluation.run.feature_network", lambda device: None)


def tensor(pair: Pair) -> torch.Tensor:
    """The image of a pair, [1, 3, H, W] in [0, 1]."""
    return torch.tensor(pair.image / 255, dtype=torch.float32).permute(2, 0, 1)[None]


def of_validation(source: Path, **options: Any) -> dict[str, Any]:
    """Measures of the split that is held out."""
    return evaluate(source, DATA, ["validation"], **options)["validation"]


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, window by window; [C, H, W]."""
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / 4.5)
    window /= window.sum()
    values = []
    for a, b in zip(x, y):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                p, q = a[top : top + 11, left : left + 11], b[top : top + 11, left : left + 11]
                m, n = (window * p).sum(), (window * q).sum()
                v, w = (window * (p - m) ** 2).sum(), (window * (q - n) ** 2).sum()
                c = (window * (p - m) * (q - n)).sum()
                values.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4)))
    return float(np.mean(values))


@pytest.mark.usefixtures("no_features")
def test_image_tokenizer_metrics_equal_a_slow_loop(tiny_parts: Path, pairs: list[Pair]) -> None:
    tokenizer = dalle.load_image_tokenizer(tiny_parts / "image_tokenizer")
    counts: Counter[int] = Counter()
    psnr, ssim = [], []
    for pair in pairs:
        image = tensor(pair)
        codes = tokenizer.encode(image)
        again = tokenizer.decode(codes)
        counts.update(codes.flatten().tolist())
        x, y = (t[0].detach().double().numpy() for t in (again, image))
        psnr.append(10 * math.log10(1 / float(np.mean((x - y) ** 2))))
        ssim.append(slow_ssim(x, y))
    shares = [count / counts.total() for count in counts.values()]
    expected = {
        "psnr": np.mean(psnr),
        "ssim": np.mean(ssim),
        "codebook_used": len(counts) / CODES,
        "codebook_perplexity": math.exp(-sum(share * math.log(share) for share in shares)),
        "dead_codes": CODES - len(counts),
        "images": len(pairs),
        "white_codes": len(set(tokenizer.encode(torch.ones(1, 3, IMAGE_SIZE, IMAGE_SIZE)).flatten().tolist())),
    }
    found = of_validation(tiny_parts / "image_tokenizer", batch_size=3)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("no_features")
def test_image_tokenizer_locality_equals_a_slow_loop(tiny_parts: Path, pairs: list[Pair]) -> None:
    """Cell by cell, with images that numpy moves."""
    tokenizer = dalle.load_image_tokenizer(tiny_parts / "image_tokenizer")
    factor = tokenizer.factor

    def codes_of(image: np.ndarray) -> list[list[int]]:
        return tokenizer.encode(torch.tensor(image, dtype=torch.float32)[None])[0].tolist()

    same: dict[str, list[bool]] = {"kept_cell_shift": [], "kept_pixel_shift": [], "kept_reencoded": []}
    white: dict[tuple[int, int], list[int]] = {}
    for pair in pairs:
        image = (pair.image / 255).transpose(2, 0, 1)
        codes = codes_of(image)
        again = tokenizer.decode(torch.tensor([codes]))[0].numpy()
        for pixels, cells in ((factor, 1), (1, 0)):
            name = "kept_cell_shift" if cells else "kept_pixel_shift"
            for down, right in ((1, 0), (0, 1)):
                edge = np.pad(image, ((0, 0), (pixels * down, 0), (pixels * right, 0)), mode="edge")
                moved = codes_of(edge[:, : image.shape[1], : image.shape[2]])
                for row in range(GRID[0] - cells * down):
                    for column in range(GRID[1] - cells * right):
                        same[name].append(codes[row][column] == moved[row + cells * down][column + cells * right])
        for row, (one, other) in enumerate(zip(codes, codes_of(again))):
            for column, (a, b) in enumerate(zip(one, other)):
                same["kept_reencoded"].append(a == b)
                if (image[:, factor * row :, factor * column :][:, :factor, :factor] == 1).all():
                    white.setdefault((row, column), []).append(a)
    total = sum(len(these) for these in white.values())
    nats = -sum(n / total * math.log(n / len(these)) for these in white.values() for n in Counter(these).values())
    expected = {name: np.mean(hits) for name, hits in same.items()} | {
        "blank_nats": nats,
        "blank_share": total / (len(pairs) * GRID[0] * GRID[1]),
    }
    found = of_validation(tiny_parts / "image_tokenizer", batch_size=3)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert 0 < found["kept_noise"] <= 1 and 0 < expected["blank_share"] < 1


def test_frechet_distance_compares_reconstructions_with_originals(tiny_parts: Path, pairs: list[Pair]) -> None:
    features = feature_network("cpu")
    if features is None:
        pytest.skip('pip install "dalle[eval]"')
    tokenizer = dalle.load_image_tokenizer(tiny_parts / "image_tokenizer")
    images = torch.cat([tensor(pair) for pair in pairs])
    expected = frechet_distance(features(images), features(tokenizer.decode(tokenizer.encode(images))))
    assert of_validation(tiny_parts / "image_tokenizer")["frechet_lite0"] == pytest.approx(expected, rel=1e-3)


def test_clip_metrics_equal_a_slow_loop(tiny_parts: Path, pairs: list[Pair]) -> None:
    clip = dalle.load_clip(tiny_parts / "clip")
    held_out = open_data(DATA, "validation", 8)  # this CLIP looks at smaller images
    images = [clip.encode_image(tensor(held_out.pair(index, 0)))[0].detach() for index in range(len(pairs))]
    texts = [clip.encode_text([pair.caption])[0].detach() for pair in pairs]
    expected: dict[str, float] = {"images": len(pairs)}
    for name, these, those in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        for k in (1, 10):
            hits = 0
            for index, one in enumerate(these):
                similar = [float(one @ other) for other in those]
                better = sum(value >= similar[index] for other, value in enumerate(similar) if other != index)
                hits += better < k
            expected[f"{name}@{k}"] = hits / len(pairs)
    assert of_validation(tiny_parts / "clip", batch_size=4) == pytest.approx(expected)


def test_dalle_metrics_equal_a_slow_loop(tiny_parts: Path, pairs: list[Pair]) -> None:
    model = dalle.load_model(tiny_parts / "model")
    words = dalle.load_text_tokenizer(tiny_parts / "text_tokenizer")
    tokenizer = dalle.load_image_tokenizer(tiny_parts / "image_tokenizer")
    image_nats, text_nats, hits, guessed = [], [], [], set()
    for pair in pairs:
        text = words.encode([pair.caption], model.config.text_length)
        codes = tokenizer.encode(tensor(pair)).flatten(1)
        with torch.no_grad():
            logits = model(text, codes)[0].double()
            of_text = model.text_head(model._hidden(captions.prefix(text, model.config), codes))[0].double()
        guessed |= set(logits.argmax(-1).tolist())
        hits += [row.tolist().index(max(row.tolist())) == code for row, code in zip(logits, codes[0].tolist())]
        image_nats += [-float(row[code] - row.logsumexp(0)) for row, code in zip(logits, codes[0].tolist())]
        length = int((text[0] != words.pad_id).sum())
        text_nats += [-float(of_text[i - 1, word] - of_text[i - 1].logsumexp(0)) for i, word in _real(text[0], length)]
    expected = {"image_nats": np.mean(image_nats), "text_nats": np.mean(text_nats), "image_accuracy": np.mean(hits)}
    expected |= {"images": len(pairs), "likeliest_used": len(guessed) / model.config.image_vocab}
    found = of_validation(tiny_parts / "model", batch_size=3)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_image_nats_under_own_empty_and_other_caption_equal_a_slow_loop(tiny_parts: Path, pairs: list[Pair]) -> None:
    model = dalle.load_model(tiny_parts / "model")
    words = dalle.load_text_tokenizer(tiny_parts / "text_tokenizer")
    tokenizer = dalle.load_image_tokenizer(tiny_parts / "image_tokenizer")
    others = derangement(len(pairs))
    assert others is not None
    nats: dict[str, list[float]] = {"image_nats": [], "image_nats_none": [], "image_nats_other": []}
    kept: list[tuple[list[float], int]] = []
    for index, pair in enumerate(pairs):
        codes = tokenizer.encode(tensor(pair)).flatten(1)
        own = words.encode([pair.caption], model.config.text_length)
        other = words.encode([pairs[others[index]].caption], model.config.text_length)
        for name, text in zip(nats, (own, torch.zeros_like(own), other)):
            with torch.no_grad():
                logits = model(text, codes)[0].double()
            for row, code in zip(logits, codes[0].tolist()):
                nats[name].append(-float(row.log_softmax(0)[code]))
                if name == "image_nats":
                    kept.append((row.tolist(), code))
    expected = {name: float(np.mean(values)) for name, values in nats.items()}
    expected["own_minus_none"] = expected["image_nats"] - expected["image_nats_none"]
    expected["own_minus_other"] = expected["image_nats"] - expected["image_nats_other"]
    rows, targets = np.array([row for row, _ in kept]), np.array([code for _, code in kept])
    at = np.geomspace(0.1, 10, 4001)
    curve = [_nats_at(rows, targets, temperature) for temperature in at]
    expected["best_temperature"], expected["image_nats_calibrated"] = at[int(np.argmin(curve))], min(curve)
    found = of_validation(tiny_parts / "model", batch_size=4)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=3e-3)
    assert found["image_nats_calibrated"] == pytest.approx(min(curve), rel=1e-5)
    assert expected["own_minus_other"] != 0  # the case is not a trivial one


def _nats_at(rows: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    scaled = rows / temperature
    top = scaled.max(1, keepdims=True)
    log_z = np.log(np.exp(scaled - top).sum(1)) + top[:, 0]
    return float((log_z - scaled[np.arange(len(targets)), targets]).mean())


@pytest.mark.usefixtures("no_features")
def test_published_weights_are_evaluated_without_conversion(tmp_path: Path) -> None:
    """A VQGAN of taming-transformers, and minDALL-E with its own parts: small ones of the same layout."""
    data = ShapesConfig(size=24)
    quantizer = VQConfig(codebook_size=13, code_channels=8, distance="euclidean", update="gradient")
    torch.save({"state_dict": folders.vqgan(quantizer)}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(
        "model: {target: taming.models.vqgan.VQModel, params: {ddconfig: {resolution: 16}}}\n"
    )
    found = evaluate(tmp_path / "last.ckpt", data, ["validation"])["validation"]
    tokenizer = dalle.load_image_tokenizer(tmp_path / "last.ckpt")
    batch = torch.cat([tensor(open_data(data, "validation", 16).pair(index, 0)) for index in range(3)])
    again = tokenizer.decode(tokenizer.encode(batch))
    assert found["psnr"] == pytest.approx(psnr(again, batch).mean().item(), rel=1e-4) and found["images"] == 3
    assert found["white_codes"] is not None and 0 <= (found["kept_pixel_shift"] or -1) <= 1
    model = evaluate(folders.mindalle(tmp_path / "mindalle"), data, ["validation"])["validation"]
    assert model["image_nats"] == pytest.approx((model["image_nats_none"] or 0) + (model["own_minus_none"] or 0))


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_deranged_is_a_permutation_without_fixed_points(count: int) -> None:
    others = derangement(count)
    assert others is not None
    assert sorted(others) == list(range(count)) and all(other != index for index, other in enumerate(others))
    assert derangement(count) == others and derangement(1) is None


def _real(row: torch.Tensor, length: int) -> list[tuple[int, int]]:
    """Positions and ids of the words that are predicted: all but the first and the padding."""
    return [(i, int(row[i])) for i in range(1, length)]


def test_limit_is_the_number_of_images(tiny_parts: Path) -> None:
    assert of_validation(tiny_parts / "clip", limit=4)["images"] == 4
    assert of_validation(tiny_parts / "clip", limit=99)["images"] == 10


def test_without_a_split_all_are_evaluated(tiny_parts: Path) -> None:
    seen: list[int] = []
    found = evaluate(tiny_parts / "clip", DATA, batch_size=30, progress=seen.append)
    assert {split: metrics["images"] for split, metrics in found.items()} == {"train": 80, "validation": 10}
    assert found["validation"] == of_validation(tiny_parts / "clip", batch_size=5)
    assert seen == [30, 30, 20, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"limit": 0}, "limit is 0"), ({"batch_size": -1}, "batch_size is -1"), ({"splits": ["dev"]}, "split 'dev'")],
)
def test_options_out_of_range_are_refused(tiny_parts: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_parts / "clip", DATA, **({"splits": ["validation"]} | options))


def test_stages_without_metrics_are_refused(tiny_parts: Path, tmp_path: Path) -> None:
    text_tokenizer = shutil.copytree(tiny_parts / "text_tokenizer", tmp_path / "text_tokenizer")
    (text_tokenizer / "config.yaml").write_text("stage: text_tokenizer\nmodel: {vocab_size: 300}\n")
    with pytest.raises(ValueError, match="stage is text_tokenizer; eval takes"):
        evaluate(text_tokenizer, DATA)


def test_table_has_a_line_per_metric_and_a_column_per_split() -> None:
    first, psnr, nats, retrieved = table(
        {"train": {"psnr": 21.5, "blank_nats": None}, "validation": {"psnr": 20.0, "image_to_text@10": 0.25}}
    ).splitlines()
    assert first.split() == ["train", "validation"]
    assert psnr.split() == ["psnr", "21.5000", "20.0000", "dB,", "mean", "over", "images"]
    assert nats.split()[:3] == ["blank_nats", "-", "-"]
    assert "0.2500  fraction of images whose caption is among the 10 most similar" in retrieved
