"""The library of native kernels on disk: compiled once, never loaded if it is damaged, and why there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dalle.kernels.native import build


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sources that compile at once, and the cache they are compiled into."""
    if build.platform.system() != "Linux" or build.cpp_compiler() is None:
        pytest.skip("no native kernels here")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "bindings.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(build, "_FOLDER", tmp_path / "csrc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dalle"


@pytest.mark.parametrize("left", [0, 10, 1000, -1, -40])
def test_damaged_library_is_recompiled(toy: Path, left: int, caplog: pytest.LogCaptureFixture) -> None:
    """Loading a library that is cut short would end the process by SIGBUS."""
    assert build.library.__wrapped__().answer() == 42
    assert "compiling native kernels for this CPU, once" in caplog.text and str(toy) in caplog.text
    (file,) = toy.glob("*.so")
    whole = file.read_bytes()
    caplog.clear()
    assert build.library.__wrapped__() is not None and not caplog.records
    damaged = file.with_name("damaged")  # not in place: the library is mapped into this process
    damaged.write_bytes(whole[:left])
    damaged.replace(file)
    assert build.library.__wrapped__().answer() == 42
    assert "is damaged: compiling it again" in caplog.text and build.is_intact(file)


def test_libraries_of_earlier_versions_are_removed(toy: Path) -> None:
    toy.mkdir()
    for number in range(9):
        (toy / f"native-{number}.so").write_bytes(b"old")
        os.utime(toy / f"native-{number}.so", (number, number))
    for name in ("compiling-killed", "compiling-now"):
        (toy / name).mkdir()
    os.utime(toy / "compiling-killed", (0, 0))
    assert build.library.__wrapped__() is not None
    kept = {file.name for file in toy.glob("*.so")}
    assert len(kept) == 4 and {"native-8.so", "native-7.so", "native-6.so"} < kept
    assert [folder.name for folder in toy.glob("compiling-*")] == ["compiling-now"]


def test_missing_native_kernels_are_explained_in_the_log(
    toy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toy.write_text("a file where the cache should be")
    assert build.library.__wrapped__() is None
    monkeypatch.setenv("CXX", "/nope/c++")
    monkeypatch.setattr(build, "cpp_compiler", lambda: None)
    assert build.library.__wrapped__() is None
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("native kernels cannot be compiled, using PyTorch's, which are slower: [Errno 20]")
    assert second.startswith("no C++ compiler found (g++ or clang++, or $CXX)")


def test_cache_without_programs_is_named(
    toy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tmpfs of Docker's is noexec unless told: what is compiled there cannot be loaded."""

    def refuse(path: str) -> None:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(build.ctypes, "CDLL", refuse)
    monkeypatch.setattr(build, "is_intact", lambda path: True)
    assert build.library.__wrapped__() is None
    assert f"{toy} is mounted noexec" in caplog.text and "--tmpfs /tmp:exec" in caplog.text


def test_compiler_that_takes_too_long_is_explained(
    toy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a machine that is busy: without the command itself, which is half a page."""

    def slow(compiler: list[str], path: Path) -> None:
        raise subprocess.TimeoutExpired([*compiler, "-O3"], 600)

    monkeypatch.setattr(build, "_compile", slow)
    assert build.library.__wrapped__() is None
    (record,) = caplog.records
    assert record.getMessage().endswith("which are slower: the compiler took more than 600 seconds")


def test_short_command_compiles_in_the_background(
    toy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on without a library, and starts another process that compiles one for the next."""
    started: list[tuple[list[str], dict[str, str]]] = []
    start = subprocess.Popen

    def detached(command: list[str], **options: Any) -> object:
        if not options.get("start_new_session"):
            return start(command, **options)
        return started.append((command, options["env"]))

    monkeypatch.setattr(subprocess, "Popen", detached)
    monkeypatch.setenv(build.BACKGROUND, "1")
    assert build.library.__wrapped__() is None and not list(toy.glob("*.so"))
    assert "compiling native kernels for this CPU in the background" in caplog.text
    ((command, environment),) = started
    assert command[0] == sys.executable and build.BACKGROUND not in environment
    monkeypatch.delenv(build.BACKGROUND)
    assert build.library.__wrapped__() is not None, "what the other process does"
    monkeypatch.setenv(build.BACKGROUND, "1")
    assert build.library.__wrapped__().answer() == 42 and len(started) == 1
