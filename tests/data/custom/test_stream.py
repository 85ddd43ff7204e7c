"""Images that are read as a stream: shuffled anew each epoch, few shards open, validation from the head of all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from dalle.data import open_training
from dalle.data.custom import stream as stream_module
from dalle.data.custom.config import CustomConfig
from dalle.data.custom.records import Record, Shard
from dalle.data.custom.splits import source_of_split
from dalle.data.custom.stream import CustomStream, StreamValidation
from dalle.data.custom.webdataset import TarSource
from dalle.data.token_shards.jobs import StreamedSplit
from support.custom_layouts import (
    SIDE,
    Layout,
    epoch_of,
    number_of,
    with_parquet,
    with_tars,
)


@pytest.mark.parametrize("layout", [with_parquet, with_tars])
def test_streams_are_reshuffled_each_epoch(layout: Layout, tmp_path: Path) -> None:
    data = open_training(
        CustomConfig(path=str(layout(tmp_path)), stream=True, shuffle_buffer=10, validation_share=0), SIDE
    )
    assert isinstance(data, CustomStream)
    orders = [[r.key for r in data.records(seed, epoch)] for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({order[0].split("/")[0] for order in orders}) > 1  # shards too


@pytest.mark.parametrize("layout", [with_parquet, with_tars])
def test_files_of_a_stream_that_vanish_are_one_line(layout: Layout, tmp_path: Path) -> None:
    """Whether before the first record, or after the records of one file."""
    (tmp_path / "data").mkdir()
    folder = layout(tmp_path / "data")
    config = CustomConfig(path=str(folder), stream=True, shuffle_buffer=1, validation_share=0)
    data = open_training(config, SIDE)
    assert isinstance(data, CustomStream)
    records = data.records(0, 0)
    next(records)
    folder.rename(tmp_path / "elsewhere")
    for some in (records, data.records(0, 1)):
        try:
            faults = [record.fault for record in some if record.fault is not None]
        except ValueError as error:
            faults = [str(error)]
        assert faults and all("No such file" in fault and "\n" not in fault for fault in faults)


def test_stream_validation_is_bounded(tmp_path: Path) -> None:
    config = CustomConfig(path=str(with_tars(tmp_path)), stream=True, stream_validation=4, validation_share=0.5)
    assert len(StreamValidation(config, "validation", SIDE)) == 4
    numbers = {number_of(StreamValidation(config, "train", SIDE).pair(i, 0).image) for i in range(4)}
    assert numbers <= set(epoch_of(config))


def test_stream_validation_comes_from_all_shards(tmp_path: Path) -> None:
    config = CustomConfig(path=str(with_tars(tmp_path)), stream=True, stream_validation=6, validation_share=0.5)
    held = [
        r.key for shard in source_of_split(config, "train").shards() for r in shard.records() if config.holds_out(r.key)
    ]
    kept = [record.key for record in StreamValidation(config, "validation", SIDE)._records()]
    first = [[key for key in held if key.startswith(f"shard-{n:03}")] for n in range(3)]
    assert kept == [key for turn in itertools.zip_longest(*first) for key in turn if key is not None][:6]
    assert {key.partition("/")[0] for key in kept} == {f"shard-{n:03}.tar" for n in range(3)}


def test_few_shards_of_a_stream_are_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_OPEN_SHARDS", 2)
    shards = [Shard(name, lambda n=name: (Record(f"{n}{i}") for i in range(3))) for name in "abcd"]
    found = [record.key for record in stream_module._round_robin(shards, lambda record: record.key != "d1")]
    assert found == ["a0", "d0", "a1", "d2", "a2", "b0", "c0", "b1", "c1", "b2", "c2"]


def test_no_record_is_searched_for_where_none_can_be_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream of the hub may be endless, for all that is known of it."""
    read = []

    def records(self: TarSource, file: Path) -> Iterator[Record]:
        for number in range(1000):
            read.append(number)
            yield Record(f"{file.name}/{number}", ("a",), b"")

    config = CustomConfig(path=str(with_tars(tmp_path)), stream=True, stream_validation=4, validation_share=0)
    monkeypatch.setattr(TarSource, "_records_in_utf8", records)
    assert len(StreamValidation(config, "validation", SIDE)) == 4
    assert len(read) == 4 and "no record is held out" in caplog.text
    assert list(StreamedSplit(config, "validation", SIDE).jobs(8, 0, 1)) == []
    assert len(read) == 4
