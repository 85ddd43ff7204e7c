"""`scheduler_config.json` of diffusers' pipelines: the schedule a diffusion was trained with, and how it is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle.checkpoints.published.files import read_json
from dalle.generation.diffusion.sample import SamplerConfig
from dalle.generation.diffusion.spacing import Spacing
from dalle.generation.diffusion.steps import Variance
from dalle.models.noise_schedule import CosineConfig, LinearConfig, Predicts, ScheduleConfig

_PREDICTS: dict[str, Predicts] = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
_VARIANCE: dict[str, Variance] = {
    "fixed_small_log": "small",
    "fixed_small": "small",
    "fixed_large": "large",
    "learned_range": "learned",
}
_SPACING: dict[str, Spacing] = {"linspace": "linspace", "leading": "leading", "trailing": "trailing"}


@dataclass(frozen=True)
class Scheduler:
    """What a scheduler's config says.

    Attributes:
        schedule: noise of the steps.
        predicts: what the network gives.
        sampler: its sampler.
        bound: what predicted data are clipped at; None: latents are not, images are at 1.
        percentile: of dynamic thresholding; None: there is none.
    """

    schedule: ScheduleConfig
    predicts: Predicts
    sampler: SamplerConfig
    bound: float | None
    percentile: float | None


def read_scheduler(folder: Path, steps: int) -> Scheduler:
    """The scheduler in a folder of its own.

    Args:
        folder: with `scheduler_config.json`.
        steps: that its pipeline takes if nothing else is said; no file records them.

    Raises:
        ValueError: it is missing or damaged, or of a kind that is not read.
    """
    file = folder / "scheduler_config.json"
    settings = read_json(file)
    kind = settings.get("_class_name")
    if kind == "UnCLIPScheduler":
        return _unclip(settings, steps, file)
    if kind in ("DDPMScheduler", "DDIMScheduler"):
        return _ddpm(settings, steps, file, kind == "DDPMScheduler")
    raise ValueError(f"{file} is of a {kind}; UnCLIPScheduler, DDPMScheduler and DDIMScheduler are read")


def _unclip(settings: Mapping[str, Any], steps: int, file: Path) -> Scheduler:
    variance = _value(_VARIANCE, settings.get("variance_type", "fixed_small_log"), file, "variance_type")
    clipped = settings.get("clip_sample", True)
    return Scheduler(
        CosineConfig(steps=settings.get("num_train_timesteps", 1000)),
        _value(_PREDICTS, settings.get("prediction_type", "epsilon"), file, "prediction_type"),
        # UnCLIPScheduler takes DDPM's steps
        SamplerConfig(sampler="ddpm", steps=steps, spacing="linspace", variance=variance),
        settings.get("clip_sample_range", 1.0) if clipped else None,
        None,
    )


def _ddpm(settings: Mapping[str, Any], steps: int, file: Path, stochastic: bool) -> Scheduler:
    total, curve = settings.get("num_train_timesteps", 1000), settings.get("beta_schedule", "linear")
    schedule: ScheduleConfig
    # Both change the noise of every step
    if settings.get("trained_betas") is not None or settings.get("rescale_betas_zero_snr"):
        raise ValueError(f"{file} has trained_betas or rescale_betas_zero_snr, which are not read")
    if curve == "linear":
        schedule = LinearConfig(
            steps=total, first=settings.get("beta_start", 1e-4), last=settings.get("beta_end", 0.02)
        )
    elif curve == "squaredcos_cap_v2":
        schedule = CosineConfig(steps=total)
    else:
        raise ValueError(f"{file} says beta_schedule: {curve!r}; linear and squaredcos_cap_v2 are read")
    # `steps_offset` moves each step by one of a thousand; the steps here begin at 0
    spacing = _value(_SPACING, settings.get("timestep_spacing", "leading"), file, "timestep_spacing")
    variance: Variance = "small"
    if stochastic:
        variance = _value(_VARIANCE, settings.get("variance_type", "fixed_small"), file, "variance_type")
    sampler = SamplerConfig(sampler="ddpm" if stochastic else "ddim", steps=steps, spacing=spacing, variance=variance)
    predicts = _value(_PREDICTS, settings.get("prediction_type", "epsilon"), file, "prediction_type")
    if settings.get("thresholding"):
        bound, percentile = settings.get("sample_max_value", 1.0), settings.get("dynamic_thresholding_ratio", 0.995)
        return Scheduler(schedule, predicts, sampler, bound, percentile)
    bound = settings.get("clip_sample_range", 1.0) if settings.get("clip_sample", True) else None
    return Scheduler(schedule, predicts, sampler, bound, None)


def _value(known: Mapping[str, Any], found: object, file: Path, name: str) -> Any:
    if not isinstance(found, str) or found not in known:
        raise ValueError(f"{file} says {name}: {found!r}; expected one of {', '.join(known)}")
    return known[found]
