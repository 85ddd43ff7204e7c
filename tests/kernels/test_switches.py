"""One variable for all switches, one seam for native code: each of its operations has a plain body."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dalle.kernels import switches
from dalle.kernels.native import operations

ROOT = Path(__file__).parents[2]
HOMES = {
    "attend": "attention",
    "attend_packed": "attention",
    "conv3x3": "conv",
    "cross_entropy_grad_": "cross_entropy",
    "decode_attention": "decode_attention",
    "decode_step": "decode_step",
    "group_norm": "group_norm",
    "image_layout": "conv",
    "linear": "linear",
    "sample_tokens": "sample",
}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DALLE_KERNELS", raising=False)
    switches._from_environment.cache_clear()
    monkeypatch.setattr(switches, "_from_environment", switches._from_environment.__wrapped__)


def test_native_signatures_equal_their_plain_bodies() -> None:
    assert operations.keys() == HOMES.keys()
    for name, native in operations.items():
        plain = inspect.unwrap(getattr(import_module(f"dalle.kernels.{HOMES[name]}"), name))
        assert plain is not getattr(import_module(f"dalle.kernels.{HOMES[name]}"), name), f"{name} is not accelerated"
        assert [(p.name, p.default) for p in inspect.signature(native).parameters.values()] == [
            (p.name, p.default) for p in inspect.signature(plain).parameters.values()
        ]


def test_switches_follow_defaults_environment_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [switches.switch(name) for name in ("native", "graphs", "sparse")] == ["on", "on", "auto"]
    monkeypatch.setenv("DALLE_KERNELS", "native=off, sparse=dense")
    assert [switches.switch(name) for name in ("native", "graphs", "sparse")] == ["off", "on", "dense"]
    with switches.force_backend(native="on", graphs="off"):
        assert [switches.switch(name) for name in ("native", "graphs", "sparse")] == ["on", "off", "dense"]
        with switches.force_backend(native="off"):
            assert switches.switch("native") == "off" and switches.switch("graphs") == "off"
        assert switches.switch("native") == "on"
    assert switches.switch("native") == "off"


@pytest.mark.parametrize("text", ["native=maybe", "cpu=off", "sparse", "=", "native=off,sparse=fast"])
def test_other_switch_values_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALLE_KERNELS", text)
    with pytest.raises(ValueError, match=r"DALLE_KERNELS has .*native=on\|off; graphs=on\|off; sparse=auto\|dense"):
        switches.switch("native")


@pytest.mark.slow
def test_package_works_without_native_code(tmp_path: Path) -> None:
    """dalle/kernels/native deleted and one line changed: the fast tests of models and sampling pass."""
    copy = [sys.executable, "-c", "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"]
    for name in ("dalle", "tests", "configs", "tokenizers"):
        subprocess.run([*copy, str(ROOT / name), str(tmp_path / name)], check=True)
    for name in ("train.py", "sample.py", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["rm", "-r", str(tmp_path / "dalle/kernels/native")], check=True)
    init = tmp_path / "dalle/kernels/dispatch.py"
    text = init.read_text(encoding="utf-8")
    (line,) = re.findall(r"^from dalle.kernels.native import operations.*\n", text, flags=re.MULTILINE)
    init.write_text(text.replace(line, "operations: dict = {}\n"), encoding="utf-8")
    assert not [file for file in (tmp_path / "dalle").rglob("*.py") if "kernels.native" in file.read_text()]
    tests = ["image_tokenizers", "text_tokenizers", "test_pipeline.py", "training/tasks/test_dalle.py"]
    tests += [f"models/test_{name}.py" for name in ("clip", "dalle", "transformer")]
    tests += [f"generation/test_{name}.py" for name in ("generate", "jacobi", "sampling")]
    tests += ["kernels/test_attention.py", "kernels/test_cross_entropy.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in tests)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
