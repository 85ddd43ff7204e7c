"""Recipe options of a run of two steps on the CPU, for tests of what a stage does in a step."""

from __future__ import annotations

from typing import Any

TWO_STEPS: dict[str, Any] = {
    "optim": {"lr": 1e-3, "warmup": 1, "ema": 0.9},
    "run": {
        "steps": 2,
        "batch_size": 4,
        "device": "cpu",
        "precision": "fp32",
        "tracker": "none",
        "validation_images": 8,
        "report": False,
    },
}
