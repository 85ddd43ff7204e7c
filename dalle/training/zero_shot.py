"""Zero-shot accuracy of a CLIP in training, on labeled images that it is not trained on: whether it forgets."""

from __future__ import annotations

from dalle.config import config
from dalle.data.labeled import LabeledPairs, open_labeled_images
from dalle.data.loader import evaluation_batches
from dalle.evaluation.templates import templates_of
from dalle.evaluation.zero_shot import zero_shot_metrics
from dalle.models.clip import CLIP


@config
class ZeroShotConfig:
    """Labeled images to classify at each validation."""

    path: str
    """A folder with a subfolder of images for each class, Parquet files, a hub id, or `emoji`."""
    by: str | None = None
    """Column with the class; null: label. Of emoji, style or group."""
    split: str | None = None
    """Split of a data set of the hub (null: train), or of emoji (null: test_pair)."""
    templates: str | None = None
    """Sets of templates, with commas between; null: images-en, and those that suit emoji."""


class ZeroShot:
    """The images and labels of a config, opened once.

    Raises:
        ValueError: nothing is there, it does not tell classes, or there is no such set of templates.
    """

    def __init__(self, options: ZeroShotConfig, image_size: int, limit: int):
        self.data = open_labeled_images(options.path, options.by, options.split)
        if len(self.data.labels) < 2:
            raise ValueError(
                f"zero_shot.path={options.path} has images of 1 class: give 2 classes at least to choose from"
            )
        self.templates = templates_of(self.data.templates if options.templates is None else options.templates)
        self.pairs, self.limit = LabeledPairs(self.data, image_size), limit

    def metrics(self, clip: CLIP) -> dict[str, float]:
        """Accuracy of a CLIP with a text tokenizer on at most `limit` images, spread evenly over the set."""
        batches = evaluation_batches(self.pairs, 32, limit=self.limit)
        return zero_shot_metrics(clip, self.data.labels, self.templates, batches, self.data.subclasses)
