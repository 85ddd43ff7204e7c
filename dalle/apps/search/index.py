"""ImageIndex: images by text, by image, or by both. Knows nothing of command lines.

Shapes: N images, D dimensions, K wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle.apps.embed import fingerprint
from dalle.apps.search import store
from dalle.apps.search.ann import FaissIndex
from dalle.apps.search.duplicates import first_of_each, group_duplicates
from dalle.apps.search.filters import Filter
from dalle.apps.search.hit import Hit
from dalle.apps.search.neighbors import NeighborSearch
from dalle.apps.search.query import Query
from dalle.apps.search.sources import read_item
from dalle.apps.search.store import Source
from dalle.apps.search.update import Report, clip_mismatch, update
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.load import load_clip
from dalle.data.custom.records import ImageLike, Record, image_bytes
from dalle.device import pick_device
from dalle.evaluation.zero_shot import embed_texts
from dalle.files import expand_home
from dalle.generation.progress import Progress
from dalle.models.clip import CLIP


class ImageIndex:
    """An index of images in a folder: their CLIP embeddings, and searches in them.

    An open index does not change when its folder is brought up to date: files are replaced, not written over.

    Attributes:
        folder: where it is.
        manifest: the contents of its index.json.
        table: its rows.
    """

    def __init__(self, folder: str | Path, clip: CLIP | str | Path | None = None, device: str = "auto"):
        """Open an index.

        Args:
            folder: of the index.
            clip: the CLIP to search with, or where it is; None: where the one that made it came from. It is loaded when
                it is first needed, and must be the one that made the index.
            device: where queries are embedded.

        Raises:
            ValueError: there is no index, or its files are cut short, damaged, or of another version.
        """
        self.folder, self.device = expand_home(folder), device
        # Another process may replace the files between reading index.json and opening them: then look once more
        for last in (False, True):
            self.manifest = store.read_manifest(self.folder)
            try:
                self.table = store.open_table(self.folder, self.manifest)
                near = self.manifest.ann
                ann = None if near is None else FaissIndex(store.complete_file(self.folder, near))
                self._neighbors = NeighborSearch(self.table, ann)
                break
            except FileNotFoundError as error:  # the index has just been brought up to date: look again
                if last:
                    raise ValueError(
                        f"{error.filename} is not there: remove {self.folder} and index the images again"
                    ) from error
        self._given = clip
        self._clip: CLIP | None = None

    @classmethod
    def build(
        cls,
        folder: str | Path,
        *images: str | Path | Source,
        clip: CLIP | str | Path | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: Progress | None = None,
        device: str = "auto",
    ) -> tuple[ImageIndex, Report]:
        """Make an index or bring it up to date: new and changed images are embedded, those that are gone dropped.

        Args:
            folder: of the index.
            images: folders (with those below them), image, parquet or tar files, patterns, or ids of the hub; the
                index holds just these. None: those of the last time.
            clip: a CLIP, or where it is; None: the one that made the index, or the one that ships.
            batch_size: images at a time.
            workers: processes that read images; 0 reads them in this one.
            progress: called after each batch with the images done and in all.
            device: where images are embedded.

        Returns:
            The index, and what has changed.

        Raises:
            ValueError: see `dalle.apps.search.update.update`.
        """
        target = expand_home(folder)
        sources = [source if isinstance(source, Source) else Source(str(source)) for source in images]
        if isinstance(clip, CLIP):
            report = update(target, sources, clip, "", batch_size, workers, progress)
            return cls(target, clip, device), report
        before = store.read_manifest(target).clip if (target / store.NAME).exists() else None
        name = (before or "") if clip is None else _absolute(clip)

        def load() -> CLIP:
            return load_clip(name or SHIPPED / "clip", pick_device(device))

        # A CLIP that may be another than that of the index is compared with it even if nothing is to be embedded
        own = load if name == before else load()
        report = update(target, sources, own, name, batch_size, workers, progress)
        return cls(target, own if isinstance(own, CLIP) else None, device), report

    def __len__(self) -> int:
        return self.manifest.images

    @property
    def clip(self) -> CLIP:
        """The CLIP that made the index.

        Raises:
            ValueError: it is not there, or the one that was given is another.
        """
        if self._clip is None:
            given = self._given if self._given is not None else self.manifest.clip or SHIPPED / "clip"
            clip = given if isinstance(given, CLIP) else load_clip(given, pick_device(self.device))
            if (found := fingerprint(clip)) != self.manifest.clip_hash:
                raise ValueError(clip_mismatch(self.folder, self.manifest, found))
            self._clip = clip
        return self._clip

    def search(
        self,
        text: str | Sequence[str] = (),
        image: ImageLike | Sequence[ImageLike] = (),
        *,
        minus: str | Sequence[str] = (),
        minus_image: ImageLike | Sequence[ImageLike] = (),
        top: int = 20,
        where: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        vector: Sequence[float] | Tensor | None = None,
        min_score: float | None = None,
        distinct: float | None = None,
    ) -> list[Hit]:
        """The images that are nearest to a query, the nearest first.

        The query is the sum of the unit vectors of all texts and images, without those that are taken away.
        Where a SigLIP made the index and the query is one text, hits say how probable it is that they fit.

        Args:
            text: one or several, in any language that the CLIP reads.
            image: one or several images: paths, files' bytes, data: URLs in base64, or Pillow's.
            minus: texts to lead away from.
            minus_image: images to lead away from.
            top: how many.
            where: conditions that must hold, such as "width>=512", "path~holiday", "caption~dog".
            weights: text -> how much of it, below 0 to lead away; beside the texts, which count as 1.
            vector: an embedding by the CLIP of the index, which is added as a text is; of any length.
            min_score: only images with at least this score; where hits have a probability, with this probability.
            distinct: only the nearest of images whose cosine with each other is at least this, such as 0.97.

        Raises:
            ValueError: no query, an image that cannot be read, a number out of range, or a condition that is none.
        """
        if top < 1:
            raise ValueError(f"top is {top}: ask for 1 image at least")
        if distinct is not None and not 0 < distinct <= 1:
            raise ValueError(f"distinct is {distinct:g}: give a cosine, from above 0 to 1")
        if min_score is not None and not -1 <= min_score <= 1:
            raise ValueError(f"min_score is {min_score:g}: scores are from -1 to 1")
        allowed = Filter(where).mask(self.table.batches)
        query = Query.of(text, image, minus, minus_image, weights, vector)
        direction = query.embed(self.clip)
        judged = query.is_one_text and self.clip.config.sigmoid

        def found(count: int) -> list[Hit]:
            hits = self.nearest(direction, count, allowed)
            hits = self._with_probabilities(hits) if judged else hits
            return [hit for hit in hits if min_score is None or hit.likeness >= min_score]

        if distinct is None:
            return found(top)
        count = 2 * top
        while True:  # how many hits are near-duplicates of others is only known afterward
            hits = found(count)
            different = self._distinct(hits, distinct)
            if len(different) >= top or len(hits) < count:
                return different[:top]
            count *= 4

    def _with_probabilities(self, hits: list[Hit]) -> list[Hit]:
        """Hits of one text, each with the probability that it fits, by a SigLIP."""
        probabilities = self.clip.probabilities(torch.tensor([hit.score for hit in hits])).tolist()
        return [replace(hit, probability=value) for hit, value in zip(hits, probabilities, strict=True)]

    def _distinct(self, hits: list[Hit], least: float) -> list[Hit]:
        """Hits without those whose cosine with an earlier one is at least `least`."""
        vectors = torch.from_numpy(self.table.vectors(np.array([hit.number for hit in hits], dtype=np.int64)))
        return [hits[number] for number in first_of_each(vectors, least)]

    def query(
        self,
        text: str | Sequence[str] = (),
        image: ImageLike | Sequence[ImageLike] = (),
        minus: str | Sequence[str] = (),
        minus_image: ImageLike | Sequence[ImageLike] = (),
        weights: Mapping[str, float] | None = None,
    ) -> Tensor:
        """A query as a unit vector, float32 [D]; see `search`."""
        return Query.of(text, image, minus, minus_image, weights).embed(self.clip)

    def nearest(self, query: Tensor, top: int, allowed: np.ndarray | None = None) -> list[Hit]:
        """The images whose vectors are nearest to a unit vector.

        Args:
            query: float32 [D].
            top: how many.
            allowed: bool [N], the rows that may be found; None: all.
        """
        values, rows = self._neighbors.nearest(query[None], top, allowed)
        found = zip(values[0].tolist(), rows[0].tolist(), strict=True)
        return [self.hit(row, value) for value, row in found if row >= 0]

    def near_duplicates(self, least: float = 0.97) -> list[list[Hit]]:
        """Groups of images that look the same to CLIP, the largest group first.

        Each image of a group has a cosine of at least `least` with another; a hit's score is that with the first.
        Beyond `dalle.apps.search.update.EXACT` images, only the 20 nearest of each are looked at.

        Raises:
            ValueError: `least` is not in (0, 1].
        """
        if not 0 < least <= 1:
            raise ValueError(f"the least cosine of near-duplicates is {least:g}: from above 0 to 1")
        # Comparing all pairs is quadratic: of many images only the nearest of each are looked at
        every = len(self) if self._neighbors.ann is None else 20
        groups = group_duplicates(self.table.blocks, least, self._neighbors.nearest, every)
        shown = []
        for rows in groups:
            vectors = torch.from_numpy(self.table.vectors(rows))
            shown.append([self.hit(row, float(vectors[0] @ one)) for row, one in zip(rows, vectors, strict=True)])
        return shown

    def captions(self, image: ImageLike, top: int = 5, among: int = 1000) -> list[tuple[str, float]]:
        """Captions of the index that fit an image, the best first, each with its cosine.

        They are those of the images that are nearest to it, ranked by CLIP's text tower.

        Args:
            image: the image.
            top: how many captions.
            among: how many of the nearest images to take captions from.

        Raises:
            ValueError: no image in the index has a caption, or the image cannot be read.
        """
        if top < 1 or among < 1:
            raise ValueError(f"top is {top} and among {among}: at least 1")
        query = self.query(image=image)
        lines = [line for hit in self.nearest(query, among) for line in hit.caption.split("\n") if line]
        if not lines:
            raise ValueError(f"none of the nearest images in {self.folder} has a caption")
        distinct = list(dict.fromkeys(lines))
        scores = embed_texts(self.clip, distinct) @ query
        order = scores.argsort(descending=True, stable=True)[:top].tolist()
        return [(distinct[number], float(scores[number])) for number in order]

    def read(self, hit: Hit) -> bytes:
        """Read the file of an image that was found.

        Raises:
            BadRecord: it is not there any more, or cannot be read.
        """
        return image_bytes(self.record(hit))

    def record(self, hit: Hit) -> Record:
        """The record of an image that was found, to read it again."""
        row = self.table.row(hit.number)
        return read_item(row, self.manifest.sources[row["source"]])

    def hit(self, row: int, score: float = 1.0) -> Hit:
        """The image of a row, as a search with that score finds it."""
        found = self.table.row(row, ("path", "caption", "width", "height", "sha256"))
        return Hit(score=min(score, 1.0), number=row, **found)  # rounding may exceed 1


def _absolute(source: str | Path) -> str:
    """The source of weights as an absolute path, valid from any working folder; a hub id unchanged."""
    path = expand_home(source)
    return str(path.absolute()) if path.exists() else str(source)
