"""The wheel: what is in it, and that it works alone, installed into a virtual environment outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import dalle

ROOT = Path(__file__).parents[1]
FOLDERS = ("dalle", "configs", "models", "tokenizers")
FILES = ("train.py", "sample.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
LARGEST = 40_000_000  # bytes


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Files of the repository that a wheel is made of."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z", *FOLDERS, *FILES], cwd=ROOT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline from a copy of the tracked files."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    code = "from hatchling import build; print(build.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.split()[-1]


def test_wheel_holds_the_package_and_shipped_files(wheel: Path, tracked: list[str]) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    left_out = {name for name in tracked if name.endswith((".png", "gpu.md"))}
    root = {name for name in tracked if not name.startswith(("dalle/", "pyproject", "README", "LICENSE", "."))}
    package = {name for name in tracked if name.startswith("dalle/")}
    assert ours == package | {f"dalle/shipped/{name}" for name in root - left_out}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < LARGEST


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `dalle` command of an environment that holds the wheel, and sees the packages that this one has."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in sorted(others)))
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    runner = shutil.which("uv")
    if runner is not None:
        command = [runner, "pip", "install", "-q", "--no-deps", "--no-index", "--python", str(python), str(wheel)]
    else:
        command = [str(python), *install]  # pip is among the packages that it sees
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place / "bin" / "dalle"


def run(command: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_sample_and_train_work_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    assert run(installed, "--version", cwd=tmp_path).stdout.split() == ["dalle", dalle.__version__]

    done = run(installed, "sample", "a red heart, 3d style", "--n", "2", "--keep", "1", "--seed", "7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (image,) = (tmp_path / "outputs" / "a-red-heart-3d-style-7").glob("01-01-*.png")
    with Image.open(image) as opened:
        assert opened.info["Software"] == f"dalle {dalle.__version__}"

    done = run(installed, "train", "emoji/dalle", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "data.root=CHECKOUT/data" in done.stderr

    small = ["run.steps=2", "run.batch_size=4", "run.validation_images=4", "run.tracker=none"]
    done = run(installed, "train", "emoji/dalle", f"data.root={ROOT / 'data'}", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "emoji-dalle" / "model" / "model.safetensors").is_file()

    done = run(installed, "train", "shapes/bpe", cwd=tmp_path)  # a recipe whose data is made as it is read
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "shapes-bpe" / "model" / "bpe.model").is_file()
