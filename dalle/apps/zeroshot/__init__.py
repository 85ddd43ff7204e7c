"""Zero-shot classification: CLIP chooses the label whose text embedding is nearest to the image's."""

from __future__ import annotations

from dalle.apps.zeroshot.classifier import Prediction, ZeroShotClassifier
from dalle.apps.zeroshot.labels import Labels, read_labels
from dalle.evaluation.templates import TEMPLATES

__all__ = ["TEMPLATES", "Labels", "Prediction", "ZeroShotClassifier", "read_labels"]
