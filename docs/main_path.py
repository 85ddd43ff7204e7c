"""Count the main path, the files that one reads to understand the whole: python docs/main_path.py [--write]

`--write` puts the sentence into README.md.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

_SENTENCE = re.compile(r"The main path is .*?tools\s+and\s+speed\.", re.DOTALL)
ROOT = Path(__file__).resolve().parents[1]
MAIN_PATH = (
    *("train.py", "dalle/training/state.py", "dalle/training/tasks/dalle.py", "dalle/training/train_step.py"),
    *("dalle/data/loader.py", "dalle/data/base.py", "dalle/models/dalle.py", "dalle/models/transformer.py"),
    *("dalle/kernels/attention.py", "dalle/kernels/kv_cache.py", "dalle/image_tokenizers/base.py"),
    *("dalle/generation/generate.py", "dalle/generation/sampling.py", "dalle/pipelines/text_to_image.py", "sample.py"),
)


def lines(*paths: str) -> int:
    """Lines of files, and of all Python files in folders."""
    found = [ROOT / path for path in paths]
    files = [file for path in found for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def sentence() -> str:
    """What README says, rounded so that not every commit changes it."""
    here, whole = lines(*MAIN_PATH), lines("train.py", "sample.py", "dalle")
    minutes = round(here / 1000 * 60, -1)  # at a thousand lines an hour
    return (
        f"The main path is {len(MAIN_PATH)} files and about {round(here, -2):,} lines, some {minutes:.0f} minutes of "
        f"reading; the other {round(whole - here, -3):,} lines are formats, tools and speed."
    )


def write() -> None:
    """Put the sentence in its place in README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    wrapped = textwrap.fill(sentence(), 120)
    readme.write_text(_SENTENCE.sub(wrapped, text), encoding="utf-8")


if __name__ == "__main__":
    write() if sys.argv[1:] == ["--write"] else print(sentence())
