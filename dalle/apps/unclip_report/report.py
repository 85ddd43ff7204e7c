"""Which tables there are, what each needs, and all of them one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dalle.apps.judging.classifier import load_classifier
from dalle.apps.judging.drawings import open_plain
from dalle.apps.judging.judge import Judge
from dalle.apps.unclip_report.generated import Pipeline, decoder_table, inpainting_table, systems_table
from dalle.apps.unclip_report.held_out import Advance, Judges, Pairs, Rows, read_pairs, training_split
from dalle.apps.unclip_report.latents import blend_table, edit_table, inversion_table
from dalle.apps.unclip_report.speed import speed_table
from dalle.checkpoints.load import load_clip
from dalle.checkpoints.load_unclip import load_prior
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.source import open_source
from dalle.config import from_dict
from dalle.data import AnyDataConfig, open_data
from dalle.data.drawings.config import check_languages
from dalle.data.drawings.dataset import DrawingsDataset
from dalle.data.loader import evaluation_batches
from dalle.evaluation.prior_baselines import pair_embeddings, prior_table
from dalle.evaluation.priors import Prior
from dalle.evaluation.run import check_stage
from dalle.generation.prior import PriorSamplingConfig
from dalle.models.clip import CLIP
from dalle.pipelines.text_to_image import TextToImage
from dalle.pipelines.unclip import UnCLIP

TABLES = ("prior", "decoder", "inversion", "blend", "edit", "inpainting", "systems", "speed")
_NEED_JUDGE = ("edit",)
_NEED_OTHER = ("systems",)
_LEAST_PAIRS = {"prior": 2, "blend": 2}  # others take one; a Fréchet distance, of two or more, is then left out
# Option -> the tables that use it, of those that not all use
_USERS = {
    "clip": ("decoder", "blend", "inpainting", "systems"),
    "judge": ("decoder", "edit", "inpainting", "systems"),
    "against": ("inpainting", "systems"),
    "language": ("systems",),
    "from_style": ("edit",),
    "to_style": ("edit",),
    "steps": ("blend", "edit"),
    "out": ("decoder", "blend", "edit", "inpainting", "systems"),
}
_BATCH = 64
_INVERTED, _BLENDED, _EDITED, _INPAINTED = 24, 40, 50, 20


@dataclass(frozen=True)
class ReportOptions:
    """What to evaluate on, and what judges.

    Attributes:
        data: the data set; the model was trained on its split "train".
        split: of the held-out pairs.
        limit: pairs of each table at most; None: all, or as many as `docs/unclip.md` says of each table.
        clip: source of the CLIP that judges images; None: the model's own, which they were made to please.
        judge: folder of a classifier of `dalle judge`; None: none, and no table of edits.
        against: source of an autoregressive model to compare with; None: none, and no table of systems.
        language: languages of the prompts of that table; None: en and ne.
        from_style: style of the images of the table of edits; None: fluent-3d.
        to_style: style that they are edited to; None: noto.
        steps: of inversion and sampling in blends and edits; None: 50.
        out: folder for sheets; None: none are written.
    """

    data: AnyDataConfig
    split: str
    limit: int | None = None
    clip: str | None = None
    judge: str | None = None
    against: str | None = None
    language: tuple[str, ...] | None = None
    from_style: str | None = None
    to_style: str | None = None
    steps: int | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: look at 1 pair at least")
        check_languages(self.language or ())

    @property
    def latent_steps(self) -> int:
        """Steps of blends and edits."""
        return 50 if self.steps is None else self.steps

    @property
    def styles(self) -> tuple[str, str]:
        """From which style to which edits go."""
        return self.from_style or "fluent-3d", self.to_style or "noto"

    def at_most(self, usual: int) -> int:
        """Pairs of a table that takes `usual`."""
        return usual if self.limit is None else min(usual, self.limit)


def tables_of(source: str, tables: Sequence[str], options: ReportOptions) -> list[str]:
    """The tables to make: those asked for, or else all that the model and the options allow.

    Raises:
        ValueError: a table is unknown, or needs what is not given; or what is given is used by none of them.
    """
    if unknown := [name for name in tables if name not in TABLES]:
        raise ValueError(f"there is no table {unknown[0]!r}: choose from {', '.join(TABLES)}")
    lacking = dict.fromkeys(_NEED_JUDGE, "--judge, the folder of a judge") if options.judge is None else {}
    if options.against is None:
        lacking |= dict.fromkeys(_NEED_OTHER, "--against, an autoregressive model")
    if _prior_folder(source) is not None:
        lacking |= dict.fromkeys(TABLES[1:], f"a whole unCLIP, and {source} is a prior")
    if missing := [name for name in tables if name in lacking]:
        raise ValueError(f"the table {missing[0]} needs {lacking[missing[0]]}")
    wanted = list(tables) or [name for name in TABLES if name not in lacking]
    for option, users in _USERS.items():
        if getattr(options, option) is not None and not set(users) & set(wanted):
            which = f"the table{'s' * (len(users) > 1)} {', '.join(users)}"
            raise ValueError(f"--{option.replace('_', '-')} is for {which}, not for {', '.join(wanted)}: leave it out")
    for name in wanted:
        least = _LEAST_PAIRS.get(name, 1)
        if options.limit is not None and options.limit < least:
            raise ValueError(f"limit is {options.limit}: the table {name} needs {least} pairs at least")
    return wanted


def report(
    source: str, tables: Sequence[str], options: ReportOptions, device: torch.device, progress: Advance
) -> Iterator[tuple[str, Rows]]:
    """Make tables, one after the other.

    Args:
        source: folder of an unCLIP, or of a prior for its table alone.
        tables: names from `TABLES`; none: all that the model and the options allow.
        options: what to evaluate on.
        device: where to compute.
        progress: called with a number of images or embeddings made.

    Raises:
        ValueError: as `tables_of`, or a source is something else.
    """
    wanted = tables_of(source, tables, options)
    if options.against is not None:
        check_stage(options.against, "dalle")  # now, and not when the tables before it are done
    folder = _prior_folder(source)
    if folder is not None:
        settings = from_dict(PriorSamplingConfig, folder.config.get("sampling") or {}, folder.origin)
        clip = load_clip(folder.component("clip"), device)
        yield "prior", _prior_rows(load_prior(source, device), clip, settings, options, progress)
        return
    evaluation = _Evaluation(UnCLIP.from_pretrained(source, device=device), options, device, progress)
    for name in wanted:
        yield name, evaluation.rows(name)


def _prior_folder(source: str) -> ModelFolder | None:
    """The folder of a prior; None: the source is something else."""
    found = open_source(source)
    return found if isinstance(found, ModelFolder) and found.config.get("stage") == "prior" else None


def _prior_rows(
    prior: Prior, clip: CLIP, settings: PriorSamplingConfig, options: ReportOptions, progress: Advance
) -> Rows:
    size = clip.config.image_size
    known = evaluation_batches(open_data(options.data, training_split(options.data), size), _BATCH)
    pairs = evaluation_batches(open_data(options.data, options.split, size), _BATCH, limit=options.limit)
    return prior_table(prior, clip, pair_embeddings(clip, known), list(pairs), settings, progress=progress)


class _Evaluation:
    """The tables of one whole unCLIP."""

    def __init__(self, pipe: UnCLIP, options: ReportOptions, device: torch.device, progress: Advance):
        self.pipe, self.options, self.device, self.progress = pipe, options, device, progress
        # As large as the pipeline reads images: their small versions are then the same as its own
        size = max(pipe.image_size, pipe.clip.config.image_size)
        self.pairs = read_pairs(options.data, options.split, size, options.limit)
        classifier = None
        if options.judge is not None:
            classifier = Judge(load_classifier(options.judge, device), open_plain(options.data, "all", size))
        self.judges = Judges(load_clip(options.clip, device) if options.clip else pipe.clip, classifier, self.pairs)

    def rows(self, name: str) -> Rows:
        """One table."""
        pipe, options, pairs, judges = self.pipe, self.options, self.pairs, self.judges
        out, progress = options.out, self.progress
        if name == "prior":
            if pipe.prior is None:
                raise ValueError("this model has no prior: leave the table prior out")
            return _prior_rows(pipe.prior, pipe.clip, pipe.sampling.prior, options, progress)
        if name == "decoder":
            return decoder_table(pipe, pairs, judges, options.data, out, progress)
        if name == "inversion":
            return inversion_table(pipe, self._some(_INVERTED), progress)
        if name == "blend":
            return blend_table(pipe, self._some(_BLENDED), judges, out, progress, options.latent_steps)
        if name == "speed":
            return speed_table(pipe, pairs.captions[0])
        if name == "inpainting":
            return inpainting_table(self._pipes(), self._some(_INPAINTED), judges, out, progress)
        if name == "systems":
            drawings = open_plain(options.data, options.split, pipe.image_size)
            languages = ("en", "ne") if options.language is None else options.language
            return systems_table(self._pipes(), drawings, judges, languages, options.limit, out, progress)
        return self._edits()

    def _some(self, usual: int) -> Pairs:
        return self.pairs.first(self.options.at_most(usual))

    def _edits(self) -> Rows:
        options, size = self.options, self.pairs.images.shape[-1]
        dataset, judge = open_data(options.data, options.split, size), self.judges.classifier
        if judge is None or not isinstance(dataset, DrawingsDataset):
            raise ValueError("the table edit is of drawings, whose styles a judge knows: give both")
        count, steps = options.at_most(_EDITED), options.latent_steps
        return edit_table(self.pipe, dataset, judge, options.styles, count, options.out, self.progress, steps)

    def _pipes(self) -> dict[str, Pipeline]:
        pipes: dict[str, Pipeline] = {"unCLIP": self.pipe}
        if self.options.against is not None:
            pipes["autoregressive"] = TextToImage.from_pretrained(self.options.against, self.device)
        return pipes
