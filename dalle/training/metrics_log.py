"""Reads metrics.jsonl as curves, and groups the curves that share a chart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Title and metrics of each chart, in the order of the page. Names are without train/ or validation/; those that begin
# with _ match the end of a name, since the phase comes first. Any other metric gets a chart of its own at the end.
_CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("_loss",)),
    ("Image tokens: nats", ("image", "image_nats")),
    ("Text tokens: nats", ("text", "text_nats")),
    ("Accuracy of codes", ("image_accuracy",)),
    ("Reward", ("reward", "reward_text", "reward_image", "reward_pixels")),
    ("Deviation of the rewards of a caption", ("reward_deviation",)),
    ("log² Z", ("text_z", "image_z")),
    ("Reconstruction", ("l1", "nll", "perceptual")),
    ("Codebook and KL losses", ("codebook", "kl")),
    ("Adversarial", ("adversarial", "adversarial_weight", "real", "fake")),
    ("CLIP score of the samples", ("clip_score",)),
    ("PSNR, dB", ("psnr",)),
    ("SSIM", ("ssim",)),
    ("Codebook: fraction in use", ("codebook_used", "likeliest_used")),
    ("Codebook: perplexity and dead codes", ("codebook_perplexity", "dead_codes")),
    ("Retrieval", ("image_to_text@1", "image_to_text@10", "text_to_image@1", "text_to_image@10")),
    ("CLIP: scale of similarities", ("scale",)),
    ("Gradient norm", ("_gradient",)),
    ("Update norm / weight norm", ("_update_ratio",)),
    ("Learning rate", ("_lr",)),
    ("Tokens a second", ("tokens_per_s",)),
    ("Images a second", ("images_per_s",)),
    ("Model FLOPs utilization", ("flops_utilization", "flops_utilisation")),  # the latter in older logs
    ("Fraction of time waiting for data", ("data_wait",)),
    ("Peak memory, GB", ("peak_memory_gb",)),
    ("Loss scale (fp16)", ("loss_scale",)),
    ("Steps skipped, in a row", ("skipped",)),
)


@dataclass
class Curve:
    """A metric over the steps of a run; all values are finite."""

    name: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def downsampled(self, most: int) -> Curve:
        """Reduce the curve to about `most` points: the minimum and maximum of each interval, so that spikes remain."""
        count = len(self.values)
        if count <= most:
            return self
        stretches = max(1, most // 2 - 1)  # two points of each, and both ends
        kept = {0, count - 1}
        for number in range(stretches):
            stretch = range(number * count // stretches, (number + 1) * count // stretches)
            kept |= {min(stretch, key=self.values.__getitem__), max(stretch, key=self.values.__getitem__)}
        order = sorted(kept)
        return Curve(self.name, [self.steps[i] for i in order], [self.values[i] for i in order])


@dataclass
class MetricsLog:
    """The content of a metrics.jsonl.

    Attributes:
        curves: curves by name, in order of first appearance.
        last: last step in the log; 0 if it is empty.
        unreadable: number of lines that are not valid, such as the last one of a run that was killed.
        not_finite: number of values that are infinite or NaN, which are left out of the curves.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    last: int = 0
    unreadable: int = 0
    not_finite: int = 0


def read_metrics(file: Path) -> MetricsLog:
    """Read a metrics.jsonl, which a run may still be writing; a missing file counts as empty."""
    found = MetricsLog()
    if not file.exists():
        return found
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                _add(found, line)
    return found


def logged(line: str) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl into step and metrics; None if it is not a valid line."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if isinstance(content, dict) and "update" in content:  # the key of runs begun before version 0.2
        content = {"step": content.pop("update")} | content
    return content if isinstance(content, dict) and type(content.get("step")) is int else None


def _add(found: MetricsLog, line: str) -> None:
    metrics = logged(line)
    if metrics is None:
        found.unreadable += 1
        return
    step = metrics.pop("step")
    found.last = max(found.last, step)
    for name, value in metrics.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            curve = found.curves.setdefault(name, Curve(name))
            curve.steps.append(step)
            curve.values.append(float(value))
        else:
            found.not_finite += 1


def charts(curves: Iterable[Curve]) -> list[tuple[str, list[Curve]]]:
    """Group curves into charts; returns pairs of title and curves."""
    left = list(curves)
    grouped: list[tuple[str, list[Curve]]] = []
    for title, names in _CHARTS:
        own = [curve for curve in left if any(_is(curve, name) for name in names)]
        # A curve is in the first chart that takes it, and in no other
        left = [curve for curve in left if not any(_is(curve, name) for name in names)]
        if own:
            grouped.append((title, own))
    return grouped + [(curve.name, [curve]) for curve in left]


def _is(curve: Curve, name: str) -> bool:
    bare = curve.name.partition("/")[2] or curve.name  # train/l1 and validation/l1 share a chart
    return bare.endswith(name) if name.startswith("_") else bare == name
