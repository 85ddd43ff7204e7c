"""Samples rows of a file of prompts: with a model that samples tokens all together, with an unCLIP those that fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from dalle.cli.prompts_file import PromptRow
from dalle.cli.sample import SampleConfig
from dalle.cli.sample_files import recorded_options
from dalle.config import from_dict, to_dict
from dalle.generation.options import SamplingConfig, UnCLIPOptions

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipelines.result import Result
    from dalle.pipelines.text_to_image import TextToImage
    from dalle.pipelines.unclip import UnCLIP

_AT_ONCE = 256  # candidates drawn together
_CPU_AT_ONCE = 32


def with_defaults(row: PromptRow, settings: SampleConfig, ranks: bool = True) -> PromptRow:
    """A row with what the command line says where it says nothing itself, but for sampling options.

    Args:
        row: the row.
        settings: the command line.
        ranks: whether there is a CLIP that chooses among candidates.

    Raises:
        ValueError: something is out of range whatever the model.
    """
    from dalle.pipelines.request import check_request

    n = settings.n if row.n is None else row.n
    keep = settings.keep if row.keep is None else row.keep
    seed = settings.seed if row.seed is None else row.seed
    negative = settings.negative if row.negative is None else row.negative
    try:
        keep = check_request([row.prompt], n, keep, seed, ranks, negative)
        for options in (SamplingConfig, UnCLIPOptions):
            names = [one.name for one in fields(options)]
            options(**{name: value for name, value in row.sampling.items() if name in names})
    except ValueError as error:
        raise ValueError(f"{settings.prompts_file}, {row.place}: {error}") from None
    return replace(row, n=n, keep=keep, seed=seed, negative=negative)


class RowSampler(ABC):
    """Draws rows with one pipeline.

    Attributes:
        options: what determines the images where a row says nothing, for their metadata.
        together: candidates to draw together.
    """

    options: dict[str, Any]
    together: int

    def __init__(self, settings: SampleConfig, model_hash: str) -> None:
        from dalle.images.read import read_image

        self.settings, self.model_hash = settings, model_hash
        self.image = None if settings.image is None else read_image(settings.image)
        self.mask = None if settings.mask is None else read_image(settings.mask)

    def complete(self, row: PromptRow) -> PromptRow:
        """A row with what the command line says where it says nothing itself, checked.

        Raises:
            ValueError: something of it is out of range, or not for this model.
        """
        row = with_defaults(row, self.settings, self._ranks())
        try:
            return replace(row, sampling=self._checked(row.sampling, row.negative))
        except ValueError as error:
            raise ValueError(f"{self.settings.prompts_file}, {row.place}: {error}") from None

    @abstractmethod
    def _ranks(self) -> bool:
        """Whether there is a CLIP that chooses among candidates."""

    @abstractmethod
    def _checked(self, given: Mapping[str, Any], negative: str | None) -> dict[str, Any]:
        """All options of a row's images, of which it gives some."""

    @abstractmethod
    def sample(self, rows: Sequence[PromptRow]) -> list[Result]:
        """The images of completed rows that are kept, each as it is alone."""

    @abstractmethod
    def unfamiliar(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """The words of each prompt that the model has hardly seen in training."""


class TokenRows(RowSampler):
    """Rows of a model that samples tokens."""

    def __init__(self, settings: SampleConfig, pipe: TextToImage, options: Mapping[str, Any]) -> None:
        from dalle.device import device_of
        from dalle.generation.options import split_options

        super().__init__(settings, pipe.model_hash)
        self.pipe = pipe
        self.sampling = to_dict(pipe.sampling.updated(**settings.sampling))
        self.options = recorded_options(settings) | self.sampling
        self.start = pipe.encode_init_image(self.image, settings.keep_rows, self.mask)
        self.speed, _ = split_options(options)
        on_cpu = device_of(pipe.model).type == "cpu"
        self.together = settings.batch_size or (_CPU_AT_ONCE if on_cpu else _AT_ONCE)

    def _ranks(self) -> bool:
        return self.pipe.clip is not None

    def _checked(self, given: Mapping[str, Any], negative: str | None) -> dict[str, Any]:
        if negative is not None:
            self.pipe.check_negative(negative)
        return to_dict(self.pipe.sampling.updated(**{**self.sampling, **given})) if given else self.sampling

    def sample(self, rows: Sequence[PromptRow]) -> list[Result]:
        """In one batch, each row with its own options."""
        from dalle.pipelines.request import Request

        requests = []
        for row in rows:
            assert row.seed is not None and row.n is not None
            seeds, sampling = tuple(range(row.seed, row.seed + row.n)), self.pipe.sampling.updated(**row.sampling)
            requests.append(Request(row.prompt, seeds, sampling, self.start, negative=row.negative))
        found = self.pipe.draw(requests, self.speed)
        return [one.best(row.keep or 1, self.settings.distinct) for one, row in zip(found, rows, strict=True)]

    def unfamiliar(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """By the model's own text head."""
        from dalle.pipelines.familiarity import unfamiliar_words

        return unfamiliar_words(self.pipe.model, self.pipe.text_tokenizer, prompts)


class UnCLIPRows(RowSampler):
    """Rows of an unCLIP, whose calls have one seed and one set of options: rows that share them are drawn together."""

    def __init__(self, settings: SampleConfig, pipe: UnCLIP) -> None:
        super().__init__(settings, pipe.model_hash)
        self.pipe, self.options = pipe, recorded_options(settings)
        self.together = _CPU_AT_ONCE if pipe.device.type == "cpu" else _AT_ONCE

    def _ranks(self) -> bool:
        return self.pipe.judge is not None

    def _checked(self, given: Mapping[str, Any], negative: str | None) -> dict[str, Any]:
        if negative is not None:
            raise ValueError("negative is for models that sample tokens, not for an unCLIP: leave it out")
        own = [one.name for one in fields(UnCLIPOptions)]
        from_dict(UnCLIPOptions, {name: value for name, value in given.items() if name in own}, "its options")
        options = self.settings.sampling | self.settings.diffusion | dict(given)
        self.pipe.check_options(options)
        return options

    def sample(self, rows: Sequence[PromptRow]) -> list[Result]:
        """One call for each seed, n and set of options."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault((row.seed, row.n, *sorted(row.sampling.items())), []).append(number)
        found: dict[int, Result] = {}
        for numbers in groups.values():
            first = rows[numbers[0]]
            prompts = [rows[number].prompt for number in numbers]
            assert first.n is not None and first.seed is not None
            results = self.pipe(prompts, n=first.n, seed=first.seed, image=self.image, mask=self.mask, **first.sampling)
            for number, result in zip(numbers, results, strict=True):
                found[number] = result.best(rows[number].keep or 1, self.settings.distinct)
        return [found[number] for number in range(len(rows))]

    def unfamiliar(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """None: an unCLIP does not say how improbable a text is."""
        return [()] * len(prompts)
