"""The table of scenes, where the data set gives no prompts of some kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dalle.apps.judging.classifier import Classifier
from dalle.apps.judging.drawings import open_plain
from dalle.apps.judging.evaluate import SampleEvaluation, SampleOptions
from dalle.apps.judging.judge import Judge
from dalle.data.drawings import DrawingsConfig
from dalle.pipelines.text_to_image import TextToImage

DATA = DrawingsConfig(sets=("emoji",), styles=("fluent-mono",))


def test_scenes_without_prompts_are_left_out(
    tiny_pipe: TextToImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as backgrounds, where no chosen image leaves its border free."""
    torch.manual_seed(0)
    everything = open_plain(DATA, "all", 8)
    concepts = sorted({concept.phrase for concept in everything.concepts})
    judge = Judge(Classifier(concepts, sorted(set(everything.styles))), everything)
    options = SampleOptions(2, candidates=2, out=tmp_path)
    evaluation = SampleEvaluation(tiny_pipe, judge, torch.nn.Identity(), DATA, options)  # type: ignore[arg-type]
    found = []
    for kind in ("background", "icon", "relation"):  # one after the other
        monkeypatch.setattr(f"dalle.apps.judging.scenes.{kind}_prompts", lambda *_: [])
        found.append({title: set(metrics) for title, metrics in evaluation.evaluate_scenes().items()})
    both, one = {"icon_color", "relation"}, {"relation"}
    true = {"real": one, "reconstruction": one}
    assert found == [{"n = 1": both, "best of 2": both} | true, {"n = 1": one, "best of 2": one} | true, {}]
