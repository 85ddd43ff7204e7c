"""Classification by names alone: CLIP takes the label whose text is nearest to the image."""

from __future__ import annotations

from dalle.apps.zeroshot.classifier import Prediction, ZeroShotClassifier
from dalle.apps.zeroshot.labels import Labels, read_labels
from dalle.evaluation.templates import TEMPLATES

__all__ = ["TEMPLATES", "Labels", "Prediction", "ZeroShotClassifier", "read_labels"]
