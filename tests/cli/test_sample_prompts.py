"""The candidates of one prompt in parts: what is kept is what is kept of all of them together."""

from __future__ import annotations

from typing import Any

from PIL import Image

from dalle.cli.sample import SampleConfig
from dalle.cli.sample_prompts import sample_prompts
from dalle.pipelines.result import Result


class _Run:
    """Takes the results."""

    def __init__(self) -> None:
        self.found: list[Result] = []

    def add(self, result: Result) -> None:
        self.found.append(result)


def test_near_duplicates_are_chosen_among_all_parts() -> None:
    """Of the first 32 candidates the second is nearly the first; beside the last, the best, both are far from good."""
    scores = [0.30, 0.299, 0.28, 0.275, *(0.001 * i for i in range(28)), 0.5]
    colors = ["red", "#fe0000", "blue", "lime", *(f"#{8 * i:02x}80{250 - 8 * i:02x}" for i in range(28)), "black"]
    images = [Image.new("RGB", (32, 32), color) for color in colors]

    def generate(prompts: list[str], n: int, keep: int | None, seed: int) -> list[Result]:
        part = slice(seed, seed + n)
        return [Result(prompts[0], images[part], scores[part], None, list(range(seed, seed + n)))]

    run: Any = _Run()
    sample_prompts(SampleConfig(prompts=["a dog"], n=33, keep=3), run, generate)
    (result,) = run.found
    whole = Result("a dog", images, scores, None, list(range(33))).best(3, distinct=True)
    assert result.seeds == whole.seeds == [32, 0, 1]
