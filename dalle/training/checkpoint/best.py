"""Which step validates best, by the figure that a run names: its weights are kept, and training may end by it.

What is known is read from the run's log, which a run that goes on cuts where its checkpoint stands: so it is what it
would be without the interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from dalle.training.report.metrics_log import logged

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
}
"""Of each stage the figures of a validation, and whether more of one is better."""


class NaNMetricError(ValueError):
    """A figure of a validation is NaN, which ends the run."""

    code = 3  # the exit code

    def __init__(self, step: int, metric: str, run: Path):
        super().__init__(
            f"step {step}: {metric} of the validation is NaN: its weights are not kept, the checkpoints in {run} "
            "are from before: go on from them with a lower optim.lr, a longer optim.warmup or run.precision=fp32"
        )


def check_not_nan(step: int, metrics: Mapping[str, float], run: Path) -> None:
    """Refuse figures of a validation that are NaN.

    Raises:
        NotANumber: one is.
    """
    for name, value in metrics.items():
        if math.isnan(value):
            raise NaNMetricError(step, name, run)


def check_metric(stage: str, metric: str | None, stop_after: int | None) -> None:
    """Refuse options that name no figure of the stage's validations.

    Raises:
        ValueError: there is no such figure, or none by which to stop.
    """
    if metric is not None and metric not in METRICS[stage]:
        known = ", ".join(METRICS[stage])
        raise ValueError(f"run.keep_best is {metric!r}: the validation of stage {stage} has {known}; take one of these")
    if stop_after is not None and metric is None:
        raise ValueError(f"run.stop_after is {stop_after} but run.keep_best is null: set it to the figure to stop by")


class BestTracker:
    """The best validation so far.

    Attributes:
        figure: by which; None: nobody asks.
        step: when that was; None: before any validation.
        value: of the figure then.
        since: validations after it.
        validated: the last step that was validated; 0: none.
    """

    def __init__(self, stage: str, metric: str | None, stop_after: int | None = None):
        self.metric, self.stop_after = metric, stop_after
        self._higher = metric is not None and METRICS[stage][metric]
        self.step: int | None = None
        self.value = -math.inf if self._higher else math.inf
        self.since = 0
        self.validated = 0

    def add(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Note a validation; returns whether it is the best so far."""
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
        """The next validation is the best, as the weights of the best one are gone."""
        self.step, self.value, self.since = None, -math.inf if self._higher else math.inf, 0

    @property
    def should_stop(self) -> bool:
        """Whether it is time to stop."""
        return self.stop_after is not None and self.step is not None and self.since >= self.stop_after

    def is_exported(self, step: int) -> bool:
        """Whether the weights of this step, the newest, are those of the model folder."""
        return self.metric is None or self.step in (None, step)

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4g} at step {self.step}"


def validations(log: Path) -> list[tuple[int, dict[str, float]]]:
    """The validations in a metrics.jsonl: after which step, and the figures."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        metrics = logged(line)
        if metrics is not None and any(name.startswith("validation/") for name in metrics):
            found.append((metrics["step"], {name.removeprefix("validation/"): v for name, v in metrics.items()}))
    return found
