"""Classification by names alone: CLIP takes the label whose text is nearest to the picture."""

from __future__ import annotations

from dalle.zeroshot.classifier import Prediction, ZeroShotClassifier
from dalle.zeroshot.labels import Labels, read_labels
from dalle.zeroshot.templates import TEMPLATES

__all__ = ["TEMPLATES", "Labels", "Prediction", "ZeroShotClassifier", "read_labels"]
