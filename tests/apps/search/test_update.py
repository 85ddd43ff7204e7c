"""Bringing an index up to date: only what changed is embedded, whole or not at all, from any kind of source."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from dalle.apps.search import ImageIndex, store, update
from dalle.apps.search import index as index_module
from dalle.files import install_command
from dalle.models.clip import CLIP
from support.tiny_model import make_tiny_model


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = torch.randint(0, 256, (9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(8):
        file = tmp_path / "photos" / ("a" if number % 2 else "") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    return tmp_path / "photos"


def contents(index: ImageIndex) -> dict[str, list[float]]:
    return {index.table.row(n)["path"]: index.table.vector(n).tolist() for n in range(len(index))}


def test_rebuild_embeds_only_changed_images(tiny_clip: CLIP, photos: Path, tmp_path: Path) -> None:
    first, _ = ImageIndex.build(tmp_path / "index", photos, clip=tiny_clip)
    before = contents(first)
    (photos / "0.png").write_bytes(png(100))
    os.utime(photos / "0.png", ns=(1, 1))  # as an older copy has it: what counts is that it is another time
    (photos / "1.txt").write_text("no image is called so")
    (photos / "a" / "1.txt").write_text("a caption that came later")
    (photos / "2.png").unlink()
    (photos / "new.gif").write_bytes(png(101))
    (photos / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    told: list[tuple[int, int]] = []
    second, report = ImageIndex.build(tmp_path / "index", clip=tiny_clip, progress=lambda *counts: told.append(counts))
    assert (report.images, report.embedded, report.unchanged, report.dropped) == (8, 2, 6, 1)
    assert [reason.partition(":")[0] for reason in report.broken] == [str(photos / "broken.jpg")]
    assert told == [(3, 3)]
    after = contents(second)
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed == {str(photos / "0.png"), str(photos / "new.gif")}
    fresh, _ = ImageIndex.build(tmp_path / "fresh", photos, clip=tiny_clip)
    assert contents(fresh) == after
    assert len(list((tmp_path / "index").glob("*.arrow"))) == 1  # the table of before is gone
    captions = {hit.path: hit.caption for hit in second.search("a")}
    assert captions[str(photos / "a" / "1.png")] == "a caption that came later"
    assert contents(first) == before  # what was open stays what it was


def test_rebuild_with_nothing_new_does_not_load_the_clip(
    tiny_parts: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, folder = tiny_parts / "clip", tmp_path / "index"
    before, _ = ImageIndex.build(folder, photos, clip=clip)
    loaded: list[object] = []
    load = index_module.load_clip

    def counted(*arguments: Any) -> CLIP:
        loaded.append(arguments[0])
        return load(*arguments)

    monkeypatch.setattr(index_module, "load_clip", counted)
    (photos / "0.png").unlink()
    for options in ({}, {"clip": clip}):
        index, report = ImageIndex.build(folder, **options)
        assert (report.embedded, report.unchanged, loaded) == (0, 7, [])
    assert contents(index).items() <= contents(before).items()
    (photos / "new.png").write_bytes(png(50))
    _, report = ImageIndex.build(folder)
    assert report.embedded == 1 and loaded == [str(clip)]
    other = make_tiny_model(tmp_path / "other", seed=1).parent / "clip"
    with pytest.raises(ValueError, match="was made with another CLIP"):
        ImageIndex.build(folder, clip=other)  # refused although nothing is new


def test_rebuild_reuses_the_vectors_of_an_interrupted_build(
    tiny_clip: CLIP, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(tmp_path / "index", photos, clip=tiny_clip, batch_size=2, progress=stop)
    with pytest.raises(ValueError, match="no index"):
        ImageIndex(tmp_path / "index")
    (tmp_path / "index" / ".part-1-piece.arrow").write_bytes(b"killed while it was written")
    piece = next((tmp_path / "index").glob("piece-*.arrow"))
    (tmp_path / "index" / piece.name.replace("1.arrow", "2.arrow")).write_bytes(piece.read_bytes()[:-50])
    told: list[tuple[int, int]] = []
    index, report = ImageIndex.build(tmp_path / "index", photos, clip=tiny_clip, progress=lambda *c: told.append(c))
    assert told == [(4, 4)] and (report.images, report.embedded) == (8, 8)
    assert not list((tmp_path / "index").glob("piece-*"))
    fresh, _ = ImageIndex.build(tmp_path / "fresh", photos, clip=tiny_clip)
    assert contents(fresh) == contents(index)


def test_concurrent_readers_see_the_old_or_the_new_index(
    tiny_clip: CLIP, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is opened at each step of a change, which then fails at its last one."""
    ImageIndex.build(tmp_path / "index", photos, clip=tiny_clip)
    (photos / "more.png").write_bytes(png(50))
    seen = []
    write, replace = store.write_table, os.replace

    def writing(*arguments: object) -> int:
        size: int = write(*arguments)  # type: ignore[arg-type]
        seen.append(len(ImageIndex(tmp_path / "index", tiny_clip).search("a")))
        return size

    def replacing(old: Path, new: Path) -> None:
        seen.append(len(ImageIndex(tmp_path / "index", tiny_clip).search("a")))
        if Path(new).name == store.NAME:
            raise OSError("no space left on device")
        replace(old, new)

    monkeypatch.setattr(store, "write_table", writing)
    monkeypatch.setattr(os, "replace", replacing)
    with pytest.raises(OSError, match="no space"):
        ImageIndex.build(tmp_path / "index", clip=tiny_clip)
    assert len(seen) > 3 and set(seen) == {8}
    monkeypatch.undo()
    index, report = ImageIndex.build(tmp_path / "index", clip=tiny_clip)
    assert len(index) == 9 and report.embedded == 1


def test_reader_retries_when_its_manifest_was_replaced(
    tiny_clip: CLIP, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ImageIndex.build(tmp_path / "index", photos, clip=tiny_clip)
    old = store.read_manifest(tmp_path / "index")
    ImageIndex.build(tmp_path / "index", clip=tiny_clip)
    manifests: Iterator[store.Manifest] = iter([old, store.read_manifest(tmp_path / "index")])
    monkeypatch.setattr(store, "read_manifest", lambda folder: next(manifests))
    assert len(ImageIndex(tmp_path / "index")) == 8


def test_only_one_process_writes_an_index(tiny_clip: CLIP, photos: Path, tmp_path: Path) -> None:
    with store.locked(tmp_path / "index"), pytest.raises(ValueError, match="is being written by another process"):
        ImageIndex.build(tmp_path / "index", photos, clip=tiny_clip)


def as_tar(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(3):
            for ending, content in (("png", png(number)), ("txt", f"caption {number}".encode())):
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def as_parquet(folder: Path) -> None:
    rows = {"image": [png(number) for number in range(3)], "caption": [f"caption {number}" for number in range(3)]}
    parquet.write_table(pyarrow.table(rows), folder / "0.parquet", row_group_size=2)


def as_parquet_without_captions(folder: Path) -> None:
    parquet.write_table(pyarrow.table({"jpg": [png(number) for number in range(3)]}), folder / "0.parquet")
    parquet.write_table(pyarrow.table({"name": ["no image"]}), folder / "1.parquet")


def as_metadata(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "caption 1"}\n')


def as_saved(folder: Path) -> None:
    rows = {"image": [png(number) for number in range(3)], "text": [f"caption {number}" for number in range(3)]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(str(folder))


def as_base64(folder: Path) -> None:
    rows = {"image": [base64.b64encode(png(number)).decode() for number in range(3)], "text": ["caption 0", None, None]}
    parquet.write_table(pyarrow.table(rows), folder / "0.parquet")


def as_coco(folder: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(3)]
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    content = {"images": images, "annotations": [{"image_id": 0, "caption": "caption 0"}]}
    (folder / "captions_train.json").write_text(json.dumps(content))


def as_unreadable_text(folder: Path) -> None:
    """A caption that cannot be read does not keep its image out of an index."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "1.txt").write_bytes(b"caption 1")
    (folder / "2.txt").write_bytes("caf\u00e9".encode("cp1252"))


@pytest.mark.parametrize(
    "make",
    [
        *(as_tar, as_parquet, as_parquet_without_captions, as_metadata),
        *(as_saved, as_base64, as_coco, as_unreadable_text),
    ],
)
def test_folders_tables_and_archives_are_indexed(tiny_clip: CLIP, tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = tmp_path / "data [1]"
    folder.mkdir()
    make(folder)
    index, report = ImageIndex.build(tmp_path / "index", folder, clip=tiny_clip, workers=1)
    assert report.images == 3
    assert len(report.broken) == (make is as_parquet_without_captions)
    for hit in index.search("a"):
        number = next(n for n in range(3) if png(n) == index.read(hit))
        assert hit.caption in ("", f"caption {number}") and hit.path.startswith(str(folder))
    assert sum(bool(hit.caption) for hit in index.search("a")) == (
        {as_tar: 3, as_parquet: 3, as_saved: 3, as_parquet_without_captions: 0}.get(make, 1)
    )
    assert ImageIndex.build(tmp_path / "index", clip=tiny_clip)[1].unchanged == 3


def test_another_image_column_has_vectors_of_its_own(tiny_clip: CLIP, tmp_path: Path) -> None:
    table, folder = tmp_path / "t.parquet", tmp_path / "index"
    columns = {name: [png(seed + number) for number in range(3)] for name, seed in (("image", 0), ("back", 10))}
    parquet.write_table(pyarrow.table(columns), table)
    usual, _ = ImageIndex.build(folder, table, clip=tiny_clip)
    # As indexes have it that were made before a column could be noted: they are not embedded again
    assert usual.table.row(0)["stamp"] == f"{table.stat().st_mtime_ns} {table.stat().st_size}"
    assert ImageIndex.build(folder, store.Source(str(table), image="image"), clip=tiny_clip)[1].unchanged == 3
    back, report = ImageIndex.build(folder, store.Source(str(table), image="back"), clip=tiny_clip)
    assert (report.embedded, report.unchanged, report.dropped) == (3, 0, 0)
    fresh, _ = ImageIndex.build(tmp_path / "fresh", store.Source(str(table), image="back"), clip=tiny_clip)
    assert contents(back) == contents(fresh) != contents(usual)
    assert ImageIndex.build(folder, clip=tiny_clip)[1].unchanged == 3


def test_two_splits_of_a_data_set_are_both_indexed(tiny_clip: CLIP, tmp_path: Path) -> None:
    folder, counts = tmp_path / "data", {"train": 3, "test": 2}
    splits = {
        split: datasets.Dataset.from_dict({"image": [png(10 * count + number) for number in range(count)]})
        for split, count in counts.items()
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    sources = [store.Source(str(folder), split) for split in counts]
    index, report = ImageIndex.build(tmp_path / "index", *sources, clip=tiny_clip)
    assert report.images == 5
    wanted = {f"{folder}/{split}/{n}": png(10 * count + n) for split, count in counts.items() for n in range(count)}
    assert {hit.path: index.read(hit) for hit in index.search("a")} == wanted
    assert ImageIndex.build(tmp_path / "index", clip=tiny_clip)[1].unchanged == 5
    assert ImageIndex.build(tmp_path / "index", sources[0], clip=tiny_clip)[1].unchanged == 3


def test_failed_update_leaves_the_index_unchanged(tiny_clip: CLIP, photos: Path, tmp_path: Path) -> None:
    index, _ = ImageIndex.build(tmp_path / "index", photos, clip=tiny_clip)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"")
    (tmp_path / "film.mp4").write_bytes(b"\0")
    parquet.write_table(pyarrow.table({"name": ["no image"]}), tmp_path / "table.parquet")
    for source, message in (
        ("empty", "holds no images"),
        ("nowhere", "no such file or folder"),
        ("broken", "none of 1 images can be read: .*a.jpg: the file is empty"),
        ("film.mp4", "expected a folder, images, or files that end"),
        ("table.parquet", r"no column with a usual name for images.*set image \(--image\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageIndex.build(tmp_path / "index", tmp_path / source, clip=tiny_clip)
    photos.rename(tmp_path / "elsewhere")  # as a disk that is not there
    with pytest.raises(ValueError, match="no such file or folder"):
        ImageIndex.build(tmp_path / "index", clip=tiny_clip)
    assert contents(ImageIndex(tmp_path / "index")) == contents(index)
    with pytest.raises(ValueError, match="say which images"):
        ImageIndex.build(tmp_path / "new", clip=tiny_clip)
    for name in (".lock", "metrics.jsonl"):  # the folder of a run, which has a lock too
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    with pytest.raises(ValueError, match="run holds other things than an index"):
        ImageIndex.build(tmp_path / "run", tmp_path / "elsewhere", clip=tiny_clip)
    with pytest.raises(ValueError, match="holds other things than an index"):
        ImageIndex.build(tmp_path / "elsewhere", tmp_path / "elsewhere", clip=tiny_clip)


def test_large_index_without_faiss_warns(
    tiny_clip: CLIP, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(update, "EXACT", 4)
    monkeypatch.setattr(update.ann, "library", lambda: None)
    index, _ = ImageIndex.build(tmp_path / "index", photos, clip=tiny_clip)
    assert install_command("search") in caplog.text and len(index.search("a")) == 8
