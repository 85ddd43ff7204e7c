"""Output files of `sample.py`: a PNG for each kept image, scores.json and grid.png, in a new folder for each run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle import __version__
from dalle.cli.outputs import ScoresFile, file_record, new_folder, slug
from dalle.cli.sample import SampleConfig
from dalle.cli.sample_from import RECORDED, RECORDED_IF_GIVEN
from dalle.generation.options import SamplingConfig

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.images.grid import Row
    from dalle.pipelines.result import Result


class SampleFiles:
    """Writes the files of one run to a new folder: a PNG for each kept image, scores.json, grid.png.

    Only what the current page of the grid shows is kept in memory.
    """

    def __init__(self, settings: SampleConfig):
        self.settings = settings
        self.folder: Path | None = None  # created with the first image: an error before leaves no empty folder
        self.model_hash = ""
        self.options = recorded_options(settings)
        self.steps = 0
        self._prompts = 0  # number of prompts written
        self._scores: ScoresFile | None = None
        self._rows: list[Row] = []  # of the grid, not yet written
        self._first = 1  # number of the first of them
        self._pages = 0

    def begin(self, model_hash: str, options: Mapping[str, Any]) -> None:
        """Note what generates the images; of the options of its calls, those of sampling: speed changes no image."""
        self.model_hash = model_hash
        self.options |= {one.name: options[one.name] for one in fields(SamplingConfig) if one.name in options}

    def add(self, result: Result) -> None:
        """Write the images of one prompt, append them to scores.json, and write pages of the grid that are full."""
        from dalle.images.png import generation_texts, write_png

        if self.folder is None:
            self.folder = new_folder(self.settings.out, f"{slug(self.settings.prompts[0])}-{self.settings.seed}")
        self._prompts += 1
        images: list[dict[str, Any]] = []
        try:
            for rank, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
                name = f"{self._prompts:02d}-{rank + 1:02d}-seed{seed}.png"
                texts = generation_texts(result.prompt, seed, self.options, self.model_hash, f"dalle {__version__}")
                write_png(image, self.folder / name, texts)
                images.append({"file": name, "prompt": result.prompt, "seed": seed, **result.scores_of(rank)})
        finally:  # at an interrupt or on a full disk, too: each image that is written has its line
            if images:
                self._append_scores(images, scored=result.scores is not None)
        if self.settings.grid:
            self._add_row(result)

    def _append_scores(self, images: list[dict[str, Any]], scored: bool) -> None:
        assert self.folder is not None
        if self._scores is None:
            header = {"model": self.model_hash, "options": self.options, "scored_by": "CLIP" if scored else None}
            self._scores = ScoresFile(self.folder / "scores.json", header)
        self._scores.append(images, {"steps": self.steps})

    def _add_row(self, result: Result) -> None:
        from dalle.images.grid import split_to_pages

        scores = [""] * len(result.seeds) if result.scores is None else [f"  CLIP {s:.2f}" for s in result.scores]
        captions = [f"seed {seed}{score}" for seed, score in zip(result.seeds, scores, strict=True)]
        self._rows.append((result.prompt, result.images, captions))
        # The last page may get more rows
        *full, (self._first, self._rows) = split_to_pages(self._rows, self._first)
        for first, rows in full:
            self._write_page(rows, first)

    def _write_page(self, rows: list[Row], first: int) -> None:
        from dalle.images.grid import labeled_grid
        from dalle.images.png import write_png

        assert self.folder is not None
        name = f"grid-{self._pages + 1}.png" if self._pages else "grid.png"
        write_png(labeled_grid(rows, first), self.folder / name, {"Software": f"dalle {__version__}"})
        self._pages += 1  # not before: at an interrupt `finish` writes the page once more

    def finish(self) -> Path:
        """Write the last page of the grid; returns the path to show to the user."""
        assert self.folder is not None
        if self._rows:
            self._write_page(self._rows, self._first)
            self._rows = []
        return self.folder / "grid.png" if self._pages else self.folder

    @property
    def written(self) -> bool:
        """Whether any image of the run is on disk."""
        return self.folder is not None and any(self.folder.glob("[0-9]*.png"))


def finished_images(run: SampleFiles | None) -> str:
    """Complete the files of a run that was broken off, and say where they are."""
    if run is None or not run.written:
        if run is not None and run.folder is not None:
            with suppress(OSError):  # it has something in it after all
                run.folder.rmdir()
        return "nothing was finished"
    try:
        return f"finished images: {run.finish()}"
    except (OSError, ValueError, MemoryError, KeyboardInterrupt):  # it is broken off again, or as before: a full disk
        return f"finished images, without their grid: {run.folder}"


def recorded_options(settings: SampleConfig) -> dict[str, Any]:
    """Collect the options that determine an image, besides prompt, seed and the hash of the model."""
    options = {name: getattr(settings, name) for name in RECORDED} | settings.sampling | settings.diffusion
    options |= {name: value for name in RECORDED_IF_GIVEN if (value := getattr(settings, name)) is not None}
    for name, file in (("image", settings.image), ("mask", settings.mask)):
        if file is not None and file.is_file():
            options[name] = file_record(file)
    return options
