"""All compiled functions under AddressSanitizer: no size and no wrong argument makes them read or write elsewhere."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dalle.kernels.native import attention, bindings
from dalle.kernels.native.build import cpp_compiler

FUZZ = Path(__file__).with_name("fuzz.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the code is compiled with the sanitizer, whose library must be loaded first."""
    compiler = cpp_compiler()
    if compiler is None or not bindings.functions():
        pytest.skip("there is no C++ compiler here")
    libraries = [_library(compiler, name) for name in ("libasan.so", "libstdc++.so")]  # it also watches exceptions
    if not all(library.is_absolute() for library in libraries):
        pytest.skip(f"{compiler[0]} has no AddressSanitizer")
    return {
        **os.environ,
        "CXX": shlex.join([*compiler, "-fsanitize=address", "-g1"]),
        "LD_PRELOAD": ":".join(str(library.resolve()) for library in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they have until the end
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }


def _library(compiler: list[str], name: str) -> Path:
    asked = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return Path(asked.stdout.strip())


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    root = FUZZ.parents[3]
    command = [sys.executable, str(FUZZ), *arguments]
    environment = {**environment, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=1800)


def test_no_out_of_bounds_access(sanitized: dict[str, str]) -> None:
    done = run(sanitized, "0", "40")
    assert done.returncode == 0, done.stderr[-6000:]
    calls = json.loads(done.stdout)
    fast = attention.usable(torch.zeros(3, 1, 1, 1, 32, dtype=torch.bfloat16))
    expected = {name for name in bindings.functions() if fast or not name.startswith("attention_")}
    assert set(calls) == expected, "a function was never called, or one that should not be"


def test_out_of_bounds_access_is_caught(sanitized: dict[str, str]) -> None:
    done = run(sanitized, "broken")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "cross_entropy" in done.stderr
