"""Token shards: what is in them against the images, reading them in order and in parts, and every kind of damage."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from dalle import load_image_tokenizer
from dalle.checkpoints.model_folder import folder_hash
from dalle.data import CustomConfig, DataConfig, DrawingsConfig, PairDataset, ShapesConfig, open_data, open_training
from dalle.data.bad_records import BadRecordCounter
from dalle.data.loader import batches, evaluation_batches, pair_seed
from dalle.data.token_shards.dataset import ShardsDataset, TokenShardsConfig
from dalle.data.token_shards.encode import EncodeOptions, Encoding
from dalle.data.token_shards.encoders import token_encoder
from dalle.data.token_shards.files import ShardIndex
from dalle.data.token_shards.provenance import TokenProvenance
from dalle.image_tokenizers import ImageTokenizer
from support.provenance import token_provenance
from support.tiny_model import CODES, GRID, IMAGE_SIZE

COUNT = 60
INDEX = TokenProvenance.index


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(tiny_parts: Path) -> ImageTokenizer:
    return load_image_tokenizer(tiny_parts / "image_tokenizer")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise, wider than high, each with one to three captions, in Nepali now and then."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, IMAGE_SIZE), Image.Resampling.NEAREST).save(root / f"{number:02}.png")
        lines = [f"number {number}", f"अंक {number}", "noise"][: 1 + number % 3]
        (root / f"{number:02}.txt").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def table(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as parquet files."""
    root = tmp_path_factory.mktemp("table")
    numbers = [range(25), range(25, 26), range(26, COUNT)]
    for part, own in enumerate(numbers):
        rows = {
            "image": [(images / f"{n:02}.png").read_bytes() for n in own],
            "caption": [(images / f"{n:02}.txt").read_text(encoding="utf-8").splitlines() for n in own],
        }
        parquet.write_table(datasets.Dataset.from_dict(rows).data.table, root / f"part-{part}.parquet")
    return root


def encode(
    config: DataConfig,
    tokenizer: ImageTokenizer,
    folder: Path,
    *,
    sha256: str = "tiny",
    world: int = 1,
    **options: object,
) -> ShardIndex:
    """Encode as `world` processes would."""
    own = EncodeOptions(**({"shard_images": 16, "batch_size": 8} | options))  # type: ignore[arg-type]
    encodings = [Encoding(config, token_encoder(tokenizer, sha256), folder, own) for _ in range(world)]
    encodings[0].begin()
    found = [encoding.run(rank, world, lambda *_: None) for rank, encoding in enumerate(encodings)]
    return encodings[0].finish(found)


def codes_of(tokenizer: ImageTokenizer, image: np.ndarray) -> list[list[int]]:
    return tokenizer.encode(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255)[0].tolist()


def rows_of(folder: Path, split: str = "train") -> list[dict]:
    return [row for file in sorted(folder.glob(f"{split}-*.parquet")) for row in parquet.read_table(file).to_pylist()]


@pytest.mark.parametrize("kind", ["pairs", "drawings", "shapes"])
def test_rows_hold_the_codes_of_their_splits_images(
    kind: str, images: Path, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    config: DataConfig = {
        "pairs": CustomConfig(path=str(images), validation_share=0.2),
        "drawings": DrawingsConfig(sets=("emoji",), styles=("blob",)),
        "shapes": ShapesConfig(size=40),
    }[kind]
    encode(config, tokenizer, tmp_path, seed=3, shard_images=500)
    for split in ("train", "validation"):
        source, tokens = (
            open_data(config, split, IMAGE_SIZE),
            ShardsDataset(TokenShardsConfig(path=tmp_path), split),
        )
        assert len(tokens) == len(source) > 3
        for index in range(0, len(source), len(source) // 4):
            first = source.pair(index, pair_seed(3, 0, index))  # as the first epoch of a training with that seed
            made = tokens.pair(index, pair_seed(3, 0, index))
            assert made.image.tolist() == codes_of(tokenizer, first.image) and made.image.shape == GRID
            assert made.caption == first.caption
            if kind == "pairs":
                assert made.captions == first.captions and made.key == first.key
                for seed in range(5):
                    assert tokens.pair(index, seed).caption == source.pair(index, seed).caption


def test_views_are_crops_and_mirrored_images(images: Path, tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    config = CustomConfig(path=str(images), validation_share=0.2, crop="random", crop_share=0.5)
    encode(config, tokenizer, tmp_path, views=3, mirror=True)
    source = open_data(config, "train", IMAGE_SIZE)
    rows = rows_of(tmp_path)
    assert len(rows) == 6 * len(source)
    assert [(row["view"], row["mirrored"]) for row in rows[:6]] == [(v, m) for v in range(3) for m in (False, True)]
    for number in range(0, len(rows), 37):
        row, image = rows[number], source.pair(number // 6, pair_seed(0, rows[number]["view"], number // 6)).image
        expected = codes_of(tokenizer, image[:, ::-1] if row["mirrored"] else image)
        assert row["codes"] == list(itertools.chain(*expected))
    assert len({tuple(row["codes"]) for row in rows[:6]}) == 6
    held_out = rows_of(tmp_path, "validation")
    assert len(held_out) == len(open_data(config, "validation", IMAGE_SIZE))  # one view, as validation has it
    assert not {row["key"] for row in held_out} & {row["key"] for row in rows}


@pytest.mark.parametrize("stream", [False, True])
def test_several_processes_write_the_same_shards_as_one(
    stream: bool, table: Path, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    config = CustomConfig(path=str(table), stream=stream, validation_share=0.2)
    assert encode(config, tokenizer, tmp_path / "one") == encode(config, tokenizer, tmp_path / "many", world=4)
    one, many = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("one", "many"))
    assert one == many and len(one) > 4
    keys = Counter(row["key"] for split in ("train", "validation") for row in rows_of(tmp_path / "one", split))
    assert keys == Counter(f"part-{p}.parquet/{row}" for p, n in enumerate((25, 1, 34)) for row in range(n))
    held = {row["key"] for row in rows_of(tmp_path / "one", "validation")}
    assert held == {key for key in keys if config.holds_out(key)} and held


def test_interrupted_encoding_resumes_and_keeps_finished_shards(
    table: Path, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    for stream in (False, True):
        config = CustomConfig(path=str(table), stream=stream, validation_share=0.2)
        folder = tmp_path / str(stream)
        whole = encode(config, tokenizer, folder)
        content = {file.name: file.read_bytes() for file in folder.iterdir()}
        files = sorted(folder.glob("train-*.parquet"))
        files[1].unlink()  # not made yet
        files[0].write_bytes(content[files[0].name][:100])  # the disk lost its end
        kept = {file.name: file.stat().st_ino for file in folder.glob("*.parquet") if file != files[0]}
        (folder / f".part-1234-{files[1].name}").write_bytes(b"half")
        assert encode(config, tokenizer, folder) == whole
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == content
        assert kept == {name: (folder / name).stat().st_ino for name in kept}


@pytest.mark.parametrize("stream", [False, True])
def test_images_that_are_encoded_already_are_counted_as_images(
    stream: bool, table: Path, tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    config = CustomConfig(path=str(table), stream=stream, validation_share=0.2)
    options = EncodeOptions(views=2, mirror=True, shard_images=16, batch_size=8)
    for again in (False, True):
        counted = Counter[bool]()
        encoding = Encoding(config, token_encoder(tokenizer, "tiny"), tmp_path, options)
        encoding.begin()
        found = encoding.run(0, 1, lambda images, there: counted.update({there: images}))  # noqa: B023
        encoding.finish([found])
        assert counted == {again: COUNT}


def test_resuming_with_other_options_is_refused(images: Path, tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    config = CustomConfig(path=str(images))
    encode(config, tokenizer, tmp_path, sha256="aaa")
    for options, told in (
        ({"sha256": "bbb"}, "image tokenizer was aaa, is now bbb"),
        ({"sha256": "aaa", "views": 2}, "views was 1, is now 2"),
    ):
        with pytest.raises(ValueError, match=told):
            encode(config, tokenizer, tmp_path, **options)  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").touch()
    with pytest.raises(ValueError, match="not empty and holds no tokens.json"):
        encode(config, tokenizer, tmp_path / "full")
    with pytest.raises(ValueError, match="views is 0: give at least 1"):
        EncodeOptions(views=0)


def test_broken_images_are_left_out_and_counted(
    images: Path, tokenizer: ImageTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    (root / "07.png").write_text("<html>")
    (root / "30.txt").write_text(" ")
    index = encode(CustomConfig(path=str(root), validation_share=0), tokenizer, tmp_path / "out", views=2)
    assert index.shards is not None
    bad = [name for own in index.shards["train"] for name in own.bad]
    assert sorted(name[:6] for name in bad) == ["07.png", "30.png"] and "is text, not an image" in caplog.text
    assert len(rows_of(tmp_path / "out")) == 2 * (COUNT - 2)
    config = CustomConfig(path=str(root), max_bad=1, validation_share=0)
    for world in (1, 4):  # each process meets one
        with pytest.raises(ValueError, match="too many broken records: 2"):
            encode(config, tokenizer, tmp_path / f"strict-{world}", world=world)


def test_hugging_face_datasets_streams_the_folder(images: Path, tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    encode(CustomConfig(path=str(images), validation_share=0.2), tokenizer, tmp_path)
    streamed = datasets.load_dataset(str(tmp_path), streaming=True)
    for split in ("train", "validation"):
        assert list(streamed[split]) == rows_of(tmp_path, split)


@pytest.fixture
def large(tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of several groups each, more than the buffer of the tests below holds."""
    for module in ("files", "dataset"):
        monkeypatch.setattr(f"dalle.data.token_shards.{module}.GROUP_ROWS", 8)
    encode(ShapesConfig(size=150), tokenizer, tmp_path, shard_images=50, batch_size=50)
    return tmp_path


def seen(data: PairDataset, count: int, **options: int) -> list[tuple]:
    taken = itertools.islice(batches(data, batch_size=12, seed=4, **options), count)  # type: ignore[arg-type]
    return [(batch.images.tolist(), batch.captions, batch.seeds) for batch in taken]


def test_any_batch_can_be_read_directly_and_is_the_same(large: Path) -> None:
    data = open_training(TokenShardsConfig(path=large, shuffle_buffer=40), IMAGE_SIZE)
    assert isinstance(data, ShardsDataset)
    order = data.order(4, 1)
    assert sorted(order[place] for place in range(150)) == list(range(150))
    whole = seen(data, 30)  # more than two epochs
    assert sum(data.sizes[n] for n in data._cache) <= 48  # whatever is read, memory holds the buffer only
    for start in (1, 13, 29):
        data = open_training(TokenShardsConfig(path=large, shuffle_buffer=40), IMAGE_SIZE)
        assert seen(data, 1, start=start) == [whole[start]]  # type: ignore[arg-type]
        assert sum(data.sizes[n] for n in data._cache) <= 48  # type: ignore[union-attr]
    for options in ({"workers": 2}, {"workers": 1, "start": 0}):
        assert seen(data, 14, **options) == whole[:14]  # type: ignore[arg-type]
    shares = [seen(data, 14, rank=rank, world=3) for rank in range(3)]  # type: ignore[arg-type]
    for batch, *split in zip(whole, *shares):
        assert batch == tuple(list(itertools.chain(*own)) for own in zip(*split))


def test_shards_within_the_buffer_have_the_order_of_images(large: Path) -> None:
    images, tokens = ShapesConfig(size=150), TokenShardsConfig(path=large, shuffle_buffer=150)
    for of_images, of_tokens in zip(
        seen(open_data(images, "train", IMAGE_SIZE), 20), seen(open_data(tokens, "train", 0), 20)
    ):
        assert of_images[1:] == of_tokens[1:]


def damaged(file: Path) -> None:
    """Some bytes in the middle of the file's second group."""
    metadata = parquet.read_metadata(file).row_group(1).column(4)
    assert metadata.path_in_schema == "codes.list.element"
    content = bytearray(file.read_bytes())
    at = metadata.dictionary_page_offset + metadata.total_compressed_size // 2
    content[at] ^= 0x55
    file.write_bytes(content)


def test_damaged_row_group_is_named(large: Path) -> None:
    damaged(large / "train-00001.parquet")
    data = open_data(TokenShardsConfig(path=large), "train", IMAGE_SIZE)
    found = Counter(batch.bad[0] for batch in itertools.islice(batches(data, batch_size=1, seed=0), 150) if batch.bad)
    (name,) = found
    assert name.startswith(f"{large / 'train-00001.parquet'}, rows 8 to 15: it is damaged (")
    assert "\n" not in name and "run `python -m dalle encode` again" in name
    assert found[name] == 8
    with pytest.raises(ValueError, match=r"too many broken records: 1 \(.*train-00001.parquet, rows 8 to 15"):
        BadRecordCounter(0).add(found)
    assert sum(len(batch.captions) for batch in evaluation_batches(data, 64)) == 142
    assert len(list(data.captions())) == 142


@pytest.mark.parametrize("harm, told", [("cut", "is truncated: 100 bytes of"), ("gone", "is missing: restore it")])
def test_incomplete_shard_is_refused_at_the_start(large: Path, harm: str, told: str) -> None:
    file = large / "train-00002.parquet"
    file.write_bytes(file.read_bytes()[:100])
    if harm == "gone":
        file.unlink()
    with pytest.raises(ValueError, match=f"the shard {file} {told}"):
        open_data(TokenShardsConfig(path=large), "train", IMAGE_SIZE)


def test_shards_of_another_tokenizer_are_refused(
    large: Path, tokenizer: ImageTokenizer, tiny_parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    encode(ShapesConfig(size=150), tokenizer, other, shard_images=50, batch_size=50, sha256="else")
    sha256 = folder_hash(tiny_parts / "image_tokenizer")
    with pytest.raises(ValueError, match=f"sha256 tiny, but parts/image_tokenizer has {sha256}: use the tokenizer"):
        TokenShardsConfig(path=large).check_tokenizer(sha256, "parts/image_tokenizer")
    shutil.copy(other / "train-00000.parquet", large)  # one of them among the others
    data = open_data(TokenShardsConfig(path=large), "train", IMAGE_SIZE)
    with pytest.raises(
        ValueError, match="it was made with the image tokenizer else, the others of its folder with tiny"
    ):
        data.pair(0, 0)


def test_unfinished_or_foreign_shard_folders_are_refused(large: Path, tmp_path: Path) -> None:
    index = json.loads((large / INDEX).read_text())
    for content, told in (
        (json.dumps(index | {"shards": None}), "is not finished"),
        (json.dumps(index | {"format": 9}), "its format is 9, this version reads 1"),
        ("", "cannot be read"),
        ('{"format": 1}', "cannot be read"),
    ):
        (large / INDEX).write_text(content)
        with pytest.raises(ValueError, match=told):
            open_data(TokenShardsConfig(path=large), "train", IMAGE_SIZE)
    (large / INDEX).unlink()
    with pytest.raises(ValueError, match=f"has no {INDEX}"):
        open_data(TokenShardsConfig(path=large), "train", IMAGE_SIZE)
    with pytest.raises(ValueError, match="no such folder"):
        open_data(TokenShardsConfig(path=large / "nowhere"), "train", IMAGE_SIZE)


def test_codes_beyond_16_bits_are_stored(tmp_path: Path) -> None:
    from dalle.data.token_shards.files import read_group, write_shard

    provenance = token_provenance(codebook_size=70_000, shard_images=8)
    columns = {"key": ["a"], "view": [0], "mirrored": [False], "captions": [["रातो"]]}
    write_shard(tmp_path / "a.parquet", columns, np.array([[69_999, 3]]), provenance, [])
    assert read_group(tmp_path / "a.parquet", 0, 1, provenance).values.tolist() == [[69_999, 3]]
    assert CODES < 70_000
