"""A user's images in every layout: each function writes `COUNT` gray images with captions and returns data.path."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from dalle.data import open_training
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.dataset import CustomDataset
from dalle.data.loader import batches

COUNT = 24
SHARD = COUNT // 3
SIDE = 4


def image(number: int) -> bytes:
    """A gray square that tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (number,) * 3).save(file, "png")
    return file.getvalue()


def captions(number: int) -> list[str]:
    """One or two, in Hindi now and then."""
    return [f"number {number}", f"संख्या {number}"][: 1 + number % 2]


def with_texts(root: Path) -> Path:
    for number in range(COUNT):
        file = root / f"{number % 3}/{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(image(number))
        file.with_suffix(".txt").write_text("\n".join(captions(number)) + "\n\n", encoding="utf-8")
    return root


def with_jsonl(root: Path) -> Path:
    rows = []
    for number in range(COUNT):
        (root / f"{number}.png").write_bytes(image(number))
        own = captions(number)
        rows.append({"file_name": f"{number}.png", "text": own if len(own) > 1 else own[0]})
    text = "\n".join(json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows))
    (root / "metadata.jsonl").write_text(text, encoding="utf-8")
    return root


def with_csv(root: Path) -> Path:
    (root / "images").mkdir()
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for number in range(COUNT):
            (root / f"images/{number}.png").write_bytes(image(number))
            writer.writerows([f"images/{number}.png", caption] for caption in captions(number))
    return root


def with_parquet(root: Path) -> Path:
    """As pyarrow writes it: a struct without any mark of being an image."""
    for shard in range(3):
        own = range(shard * SHARD, (shard + 1) * SHARD)
        table = {
            "id": [f"record {number}" for number in own],
            "image": [{"bytes": image(number), "path": None} for number in own],
            "captions": [captions(number) for number in own],
        }
        parquet.write_table(pyarrow.table(table), root / f"part-{shard}.parquet", row_group_size=3)
    return root


def with_hub_layout(root: Path) -> Path:
    """As datasets writes it for the hub: a column of type Image, and the split in the file's name."""
    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    (root / "data").mkdir()
    for split, numbers in (("train", range(COUNT)), ("test", range(100, 110))):
        rows = {"image": [{"bytes": image(n), "path": None} for n in numbers], "text": [captions(n) for n in numbers]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / f"data/{split}-00000-of-00001.parquet")
    return root


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def with_tars(root: Path) -> Path:
    for shard in range(3):
        with tarfile.open(root / f"shard-{shard:03}.tar", "w") as tar:
            for number in range(shard * SHARD, (shard + 1) * SHARD):
                add(tar, f"a/{number:04}.png", image(number))
                add(tar, f"a/{number:04}.txt", "\n".join(captions(number)).encode())
    return root


def with_json_tars(root: Path) -> Path:
    with tarfile.open(root / "all.tar", "w") as tar:
        for number in range(COUNT):
            content = {"caption": captions(number), "title": f"title {number}"}
            add(tar, f"{number:04}.json", json.dumps(content).encode())
            add(tar, f"{number:04}.{'jpg' if number % 3 else 'png'}", image(number))
    return root


LAYOUTS = [with_texts, with_jsonl, with_csv, with_parquet, with_hub_layout, with_tars, with_json_tars]
EVERY = pytest.mark.parametrize("layout", LAYOUTS)
STREAM = pytest.mark.parametrize("stream", [False, True])
Layout = Callable[[Path], Path]


def number_of(image: np.ndarray) -> int:
    assert image.dtype == np.uint8 and len(np.unique(image)) == 1
    return int(image[0, 0, 0])


def epoch_of(config: CustomConfig, size: int = SIDE) -> dict[int, set[str]]:
    """Numbers that one epoch of training shows, each once, with the captions that ten epochs give them."""
    data = open_training(config, size)
    records = range(len(data)) if isinstance(data, CustomDataset) else data.records(0, 0)
    numbers = [number_of(data.pair(record, 0).image) for record in records]
    assert len(set(numbers)) == len(numbers)
    seen: dict[int, set[str]] = {number: set() for number in numbers}
    for batch in itertools.islice(batches(data, batch_size=len(numbers), seed=1), 8):
        assert sorted(batch.images[:, 0, 0, 0].tolist()) == sorted(numbers) and batch.bad == []
        for image, caption in zip(batch.images.numpy(), batch.captions):
            seen[number_of(image.transpose(1, 2, 0))].add(caption)
    return seen
