"""Images of one part of a long run on disk, as a folder, a WebDataset shard or a Parquet file: whole or not at all."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dalle.files import atomic_file, naming, remove_parts

Kind = Literal["folders", "shards", "parquet"]


@dataclass(frozen=True)
class SampledImage:
    """A finished image."""

    number: int  # of its prompt in the file, from 0
    rank: int  # among the images that are kept of the prompt, from 0
    prompt: str
    seed: int
    scores: dict[str, float | None]  # of `Result.scores_of`
    options: dict[str, Any]
    png: bytes

    @property
    def key(self) -> str:
        """Its name, which no other image of the run has."""
        return f"{self.number:08d}-{self.rank:02d}-seed{self.seed}"

    def record(self) -> dict[str, Any]:
        """What is known of it."""
        return {"prompt": self.prompt, "seed": self.seed, **self.scores, "options": self.options}


class Part(ABC):
    """Takes the images of a part."""

    @abstractmethod
    def add(self, images: list[SampledImage]) -> None:
        """Write some images."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file or folder."""


@contextmanager
def new_part(out: Path, name: str, kind: Kind) -> Iterator[Part]:
    """Write the part `name` of a run from its start; what an earlier attempt left of it is removed.

    The caller records that the part is complete after the block has ended (a folder is not complete before).
    """
    if kind == "folders":
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        files = _Folder(folder)
        yield files
        files.close()
        return
    suffix = ".tar" if kind == "shards" else ".parquet"
    remove_parts(out, f"{name}{suffix}")
    with atomic_file(out / f"{name}{suffix}") as file:
        part: Part = _Shard(file) if kind == "shards" else _Table(file)
        try:
            yield part
        finally:
            part.close()


class _Folder(Part):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, images: list[SampledImage]) -> None:
        for image in images:
            file = self.folder / f"{image.key}.png"
            with naming(file):
                file.write_bytes(image.png)

    def close(self) -> None:
        for path in (*self.folder.iterdir(), self.folder):  # else a power failure could leave empty files
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class _Shard(Part):
    """A tar in which the files of an image stand together, as WebDataset reads them: KEY.png, KEY.txt, KEY.json."""

    def __init__(self, file: Path) -> None:
        # USTAR: keys are short and ASCII, and every reader knows it
        self.tar = tarfile.open(file, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115, open until the part ends

    def add(self, images: list[SampledImage]) -> None:
        for image in images:
            record = json.dumps(image.record(), ensure_ascii=False).encode()
            for suffix, data in (("png", image.png), ("txt", image.prompt.encode()), ("json", record)):
                member = tarfile.TarInfo(f"{image.key}.{suffix}")
                member.size = len(data)
                self.tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        self.tar.close()


class _Table(Part):
    """A Parquet file with a row an image; the image is a PNG file, as Hugging Face's datasets store it."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = [("image", image), ("prompt", pa.string()), ("seed", pa.int64())]
        scores = [("score", pa.float32()), ("agreement", pa.float32())]
        self.schema = pa.schema(
            [("number", pa.int64()), ("rank", pa.int32()), *columns, *scores, ("options", pa.string())]
        )
        self.writer = pq.ParquetWriter(file, self.schema)

    def add(self, images: list[SampledImage]) -> None:
        import pyarrow as pa

        rows = [
            {
                "number": image.number,
                "rank": image.rank,
                "image": {"bytes": image.png, "path": f"{image.key}.png"},
                "prompt": image.prompt,
                "seed": image.seed,
                **image.scores,
                "options": json.dumps(image.options, ensure_ascii=False),
            }
            for image in images
        ]
        if rows:
            self.writer.write_table(pa.Table.from_pylist(rows, schema=self.schema))

    def close(self) -> None:
        self.writer.close()
