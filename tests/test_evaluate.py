"""Figures of a folder of weights equal what slow loops over single pictures give."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import dalle
from dalle.data import Pair, ShapesData, open_data
from dalle.evaluation.evaluate import evaluate, table
from tiny_model import CODES, IMAGE_SIZE, make_tiny_model

DATA = ShapesData(size=80)  # 10 of them held out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DALL-E in model/, beside it what it stands on."""
    return make_tiny_model(tmp_path_factory.mktemp("evaluate")).parent


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    held_out = open_data(DATA, "validation", IMAGE_SIZE)
    return [held_out.pair(index, 0) for index in range(len(held_out))]


def tensor(pair: Pair) -> torch.Tensor:
    """The picture of a pair, [1, 3, H, W] in [0, 1]."""
    return torch.tensor(pair.image / 255, dtype=torch.float32).permute(2, 0, 1)[None]


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


def test_figures_of_an_image_tokenizer(folder: Path, pairs: list[Pair]) -> None:
    tokenizer = dalle.load_image_tokenizer(folder / "image_tokenizer")
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
    }
    assert evaluate(folder / "image_tokenizer", DATA, "validation", batch_size=3) == pytest.approx(expected, rel=1e-4)


def test_figures_of_a_clip(folder: Path, pairs: list[Pair]) -> None:
    clip = dalle.load_clip(folder / "clip")
    held_out = open_data(DATA, "validation", 8)  # this CLIP looks at smaller pictures
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
    assert evaluate(folder / "clip", DATA, "validation", batch_size=4) == pytest.approx(expected)


def test_figures_of_a_dalle(folder: Path, pairs: list[Pair]) -> None:
    model = dalle.load_model(folder / "model")
    words = dalle.load_text_tokenizer(folder / "text_tokenizer")
    tokenizer = dalle.load_image_tokenizer(folder / "image_tokenizer")
    image_nats, text_nats, hits, guessed = [], [], [], set()
    for pair in pairs:
        text = words.encode([pair.caption], model.config.text_length)
        codes = tokenizer.encode(tensor(pair)).flatten(1)
        with torch.no_grad():
            logits = model(text, codes)[0].double()
            of_text = model.text_head(model._hidden(model._prefix(text), codes))[0].double()
        guessed |= set(logits.argmax(-1).tolist())
        hits += [row.tolist().index(max(row.tolist())) == code for row, code in zip(logits, codes[0].tolist())]
        image_nats += [-float(row[code] - row.logsumexp(0)) for row, code in zip(logits, codes[0].tolist())]
        length = int((text[0] != words.pad_id).sum())
        text_nats += [-float(of_text[i - 1, word] - of_text[i - 1].logsumexp(0)) for i, word in _real(text[0], length)]
    expected = {"image_nats": np.mean(image_nats), "text_nats": np.mean(text_nats), "image_accuracy": np.mean(hits)}
    expected |= {"images": len(pairs), "likeliest_used": len(guessed) / model.config.image_vocab}
    assert evaluate(folder / "model", DATA, "validation", batch_size=3) == pytest.approx(expected, rel=1e-4)


def _real(row: torch.Tensor, length: int) -> list[tuple[int, int]]:
    """Positions and ids of the words that are predicted: all but the first and the padding."""
    return [(i, int(row[i])) for i in range(1, length)]


def test_a_limit_looks_at_the_first_images_only(folder: Path) -> None:
    part = evaluate(folder / "image_tokenizer", DATA, "validation", limit=4)
    few = evaluate(folder / "image_tokenizer", ShapesData(size=32), "validation")
    assert part == few and part["images"] == 4
    assert evaluate(folder / "clip", DATA, "validation", limit=99)["images"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [({"limit": 0}, "limit is 0"), ({"batch_size": -1}, "batch_size is -1"), ({"split": "dev"}, "split 'dev'")],
)
def test_wrong_numbers_are_named(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(folder / "clip", DATA, **({"split": "validation"} | options))


def test_what_has_no_figures_is_named(folder: Path) -> None:
    text_tokenizer = folder / "text_tokenizer"
    (text_tokenizer / "config.yaml").write_text("stage: text_tokenizer\nmodel: {vocab_size: 300}\n")
    with pytest.raises(ValueError, match="stage is text_tokenizer; eval takes"):
        evaluate(text_tokenizer, DATA, "validation")


def test_the_table_has_a_line_and_a_meaning_for_each_figure() -> None:
    lines = table({"psnr": 21.5, "image_to_text@10": 0.25}).splitlines()
    assert lines[0].split() == ["psnr", "21.5000", "dB,", "mean", "over", "the", "images"]
    assert "0.2500  share of pictures whose caption is among the 10 best" in lines[1]
