"""metrics.jsonl as curves: what was logged of each figure, and which figures belong in one chart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Title and figures of each chart, in the order of the page: names without train/ or validation/, of more than one phase
# by their ends. What is not named here has a chart of its own behind these.
_CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("_loss",)),
    ("Image tokens: nats", ("image", "image_nats")),
    ("Text tokens: nats", ("text", "text_nats")),
    ("Accuracy of codes", ("image_accuracy",)),
    ("log² Z", ("text_z", "image_z")),
    ("Reconstruction", ("l1", "nll", "perceptual")),
    ("Codebook and KL losses", ("codebook", "kl")),
    ("Adversarial", ("adversarial", "adversarial_weight", "real", "fake")),
    ("CLIP score of the samples", ("clip_score",)),
    ("PSNR, dB", ("psnr",)),
    ("SSIM", ("ssim",)),
    ("Codebook: share in use", ("codebook_used", "likeliest_used")),
    ("Codebook: perplexity and dead codes", ("codebook_perplexity", "dead_codes")),
    ("Retrieval", ("image_to_text@1", "image_to_text@10", "text_to_image@1", "text_to_image@10")),
    ("CLIP: scale of similarities", ("scale",)),
    ("Gradient norm", ("_gradient",)),
    ("Norm of a step over norm of the weights", ("_update_ratio",)),
    ("Learning rate", ("_lr",)),
    ("Tokens a second", ("tokens_per_s",)),
    ("Images a second", ("images_per_s",)),
    ("Model FLOPs utilisation", ("flops_utilisation",)),
    ("Share of time waiting for data", ("data_wait",)),
    ("Peak memory, GB", ("peak_memory_gb",)),
    ("Loss scale (fp16)", ("loss_scale",)),
    ("Steps skipped, in a row", ("skipped",)),
)


@dataclass
class Curve:
    """A figure over the steps of a run; all values are finite."""

    name: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def downsampled(self, most: int) -> Curve:
        """At most about `most` of its points: of each stretch the lowest and the highest, so that no peak is lost."""
        count = len(self.values)
        if count <= most:
            return self
        stretches = max(1, most // 2 - 1)
        kept = {0, count - 1}
        for number in range(stretches):
            stretch = range(number * count // stretches, (number + 1) * count // stretches)
            kept |= {min(stretch, key=self.values.__getitem__), max(stretch, key=self.values.__getitem__)}
        order = sorted(kept)
        return Curve(self.name, [self.steps[i] for i in order], [self.values[i] for i in order])


@dataclass
class MetricsLog:
    """What a metrics.jsonl holds.

    Attributes:
        curves: by name, in the order of their first appearance.
        last: the last step of which something is logged; 0 before any.
        unreadable: lines that are no log lines: the last one of a run that was killed while it was written.
        not_finite: values that are infinite or NaN, which no curve has.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    last: int = 0
    unreadable: int = 0
    not_finite: int = 0


def read_metrics(file: Path) -> MetricsLog:
    """Read a metrics.jsonl, also of a run that is writing it; one that is not there is an empty one."""
    found = MetricsLog()
    if not file.exists():
        return found
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                _add(found, line)
    return found


def logged(line: str) -> dict[str, Any] | None:
    """What a line of metrics.jsonl says, its step among it; None: it is none."""
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
    """All curves, those of one chart together, with the charts' titles."""
    left = list(curves)
    grouped: list[tuple[str, list[Curve]]] = []
    for title, names in _CHARTS:
        own = [curve for curve in left if any(_is(curve, name) for name in names)]
        left = [curve for curve in left if not any(_is(curve, name) for name in names)]
        if own:
            grouped.append((title, own))
    return grouped + [(curve.name, [curve]) for curve in left]


def _is(curve: Curve, name: str) -> bool:
    bare = curve.name.partition("/")[2] or curve.name
    return bare.endswith(name) if name.startswith("_") else bare == name
