"""Every command of the README, in its order, in a fresh copy of what the repository tracks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["run.steps=2", "run.batch_size=4", "run.accumulation=1", "run.validation_images=4", "run.tracker=none"]
SHORT += ["run.save_every=1", "run.device=cpu"]


def blocks(kind: str) -> list[str]:
    """The fenced blocks of one kind in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for own, block in found if own == kind]


def commands() -> list[list[str]]:
    """The command lines of the README without those of make, which tests do not run, and of the shell."""
    lines = [shlex.split(line, comments=True) for block in blocks("") for line in block.splitlines()]
    assert {line[0] for line in lines if line} <= {"make", "source", "python", "torchrun", "dalle"}
    return [line for line in lines if line and line[0] in ("python", "torchrun", "dalle")]


def shortened(line: list[str]) -> list[str]:
    """The command for this Python; a training for two steps, and one that goes on for one more."""
    launcher = {"python": [], "dalle": ["-m", "dalle"], "torchrun": ["-m", "torch.distributed.run"]}[line[0]]
    line = [sys.executable, *launcher, *line[1:]]
    if "train.py" not in line:
        return line
    if "resume=true" in line:
        return [*line, "run.steps=3"]
    return [*line, *SHORT]


def images_of(line: list[str]) -> list[Path]:
    """The paths of a command that must be there before it runs."""
    words = [word.partition("=")[2] if word.startswith("data.path=") else word for word in line]
    return [Path(word) for word in words if word.startswith("examples/")]


def test_files_named_by_the_commands_exist() -> None:
    named = [path for line in commands() for path in images_of(line)]
    assert len(named) >= 4 and all((ROOT / path).exists() for path in named)
    texts = {path.stem for path in (ROOT / "examples/images").glob("*.txt")}
    assert texts == {path.stem for path in (ROOT / "examples/images").glob("*.png")} and len(texts) == 12


@pytest.mark.slow
def test_readme_commands_run_in_order(tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    fresh = tmp_path / "dalle"  # the name that a clone has
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("docs/", "tests/", "benchmarks/")) and (ROOT / name).is_file():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, fresh / name)
    environment = os.environ | {"PYTHONPATH": str(fresh), "CUDA_VISIBLE_DEVICES": ""}
    run = [shortened(line) for line in commands()]
    run.insert(3, [sys.executable, "-c", blocks("python")[0]])
    for line in run:
        done = subprocess.run(line, cwd=fresh, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout}{done.stderr}"
    assert (fresh / "heart.png").is_file() and (fresh / "runs/mine/checkpoints/step-00000003").is_dir()


def test_script_beside_the_checkout_imports_the_package(tmp_path: Path) -> None:
    """The checkout and the package have one name; an editable install puts the checkout on the path (a .pth file)."""
    (tmp_path / "dalle").symlink_to(ROOT, target_is_directory=True)
    # A module of the package that needs no torch
    program = "import dalle; from dalle.generation.options import SamplingConfig as C; print(C.__name__, dalle.__all__)"
    (tmp_path / "quick.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "dalle")}  # after the script's own folder, as a .pth is
    done = subprocess.run(
        [sys.executable, "quick.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("SamplingConfig ['") and "'TextToImage'" in done.stdout
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^dev-mode-dirs = \["\."\]$', project, flags=re.MULTILINE), "the checkout is what is put there"
