"""Best-checkpoint tracking and early stopping by one validation metric (`run.keep_best`, `run.stop_after`).

A resumed run rebuilds its history from metrics.jsonl, which is truncated to the step of the checkpoint, so the outcome
is the same as without the interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from dalle.training.checkpoint.folders import folders
from dalle.training.metrics_log import logged

_LOWER, _HIGHER = False, True
METRICS: dict[str, dict[str, bool]] = {
    "image_tokenizer": {
        "psnr": _HIGHER,
        "ssim": _HIGHER,
        "codebook_used": _HIGHER,
        "codebook_perplexity": _HIGHER,
        "dead_codes": _LOWER,
    },
    "clip": {
        "image_to_text@1": _HIGHER,
        "image_to_text@10": _HIGHER,
        "text_to_image@1": _HIGHER,
        "text_to_image@10": _HIGHER,
        "zero_shot_top_1": _HIGHER,
        "zero_shot_mean_per_class": _HIGHER,
    },
    "dalle": {
        "image_nats": _LOWER,
        "text_nats": _LOWER,
        "image_accuracy": _HIGHER,
        "likeliest_used": _HIGHER,
    },
    "prior": {
        "cos": _HIGHER,
        "centered_cos": _HIGHER,
        "mean_cos": _HIGHER,
        "mean_centered_cos": _HIGHER,
        "frechet": _LOWER,
    },
    "diffusion": {
        "mse": _LOWER,
        "centered_cos": _HIGHER,
        "psnr": _HIGHER,
    },
}
"""Validation metrics of each stage; True where higher is better."""


class NaNMetricError(ValueError):
    """A validation metric is NaN, which ends the run: the weights must not replace good ones."""

    code = 3  # the exit code

    def __init__(self, step: int, metric: str, run: Path):
        advice = "a lower optim.lr, a longer optim.warmup or run.precision=fp32"
        then = (
            f"the checkpoints in {run} are older: resume from them with {advice}"
            if folders(run)
            else f"there is no checkpoint: start again with {advice}"
        )
        super().__init__(f"step {step}: the validation metric {metric} is NaN: these weights are not saved, {then}")


def check_not_nan(step: int, metrics: Mapping[str, float], run: Path) -> None:
    """Check the metrics of a validation.

    Raises:
        NaNMetricError: one of them is NaN.
    """
    for name, value in metrics.items():
        if math.isnan(value):
            raise NaNMetricError(step, name, run)


def check_metric(stage: str, metric: str | None, stop_after: int | None) -> None:
    """Check `run.keep_best` and `run.stop_after` of a recipe.

    Raises:
        ValueError: the stage has no such metric, or early stopping is on without a metric.
    """
    if metric is not None and metric not in METRICS[stage]:
        known = ", ".join(METRICS[stage])
        raise ValueError(f"run.keep_best is {metric!r}: expected a validation metric of stage {stage}: {known}")
    if stop_after is not None and metric is None:
        raise ValueError(f"run.stop_after is {stop_after} but run.keep_best is null: set it to the metric to stop by")


class BestTracker:
    """The best validation so far.

    Attributes:
        metric: name of the metric that decides; None if none was chosen.
        step: step of the best validation; None before the first one.
        value: value of the metric at that step.
        since: number of validations since then.
        validated: last step that was validated; 0 if none was.
    """

    def __init__(self, stage: str, metric: str | None, stop_after: int | None = None):
        self.metric, self.stop_after = metric, stop_after
        self._higher = metric is not None and METRICS[stage][metric]
        self.step: int | None = None
        self.value = -math.inf if self._higher else math.inf
        self.since = 0
        self.validated = 0

    def add(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Record a validation; returns whether it is the best so far."""
        self.validated = step
        if self.metric is None or self.metric not in metrics:
            return False
        value = metrics[self.metric]
        if value > self.value if self._higher else value < self.value:
            self.step, self.value, self.since = step, value, 0
            return True
        self.since += 1
        return False

    def reset(self) -> None:
        """Start over, since the weights of the best step no longer exist: the next validation is the best."""
        self.step, self.value, self.since = None, -math.inf if self._higher else math.inf, 0

    @property
    def should_stop(self) -> bool:
        """Whether early stopping has triggered."""
        return self.stop_after is not None and self.step is not None and self.since >= self.stop_after

    def is_exported(self, step: int) -> bool:
        """Return whether the weights of `step`, the newest, belong in the model folder."""
        return self.metric is None or self.step in (None, step)

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4g} at step {self.step}"


def validations(log: Path) -> list[tuple[int, dict[str, float]]]:
    """Read the validations of a metrics.jsonl, as pairs of step and metrics."""
    found = []
    # Lines that are no metrics, such as one cut short by a crash, are skipped
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        metrics = logged(line)
        if metrics is not None and any(name.startswith("validation/") for name in metrics):
            found.append((metrics["step"], {name.removeprefix("validation/"): v for name, v in metrics.items()}))
    return found
