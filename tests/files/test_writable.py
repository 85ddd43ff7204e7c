"""Places that cannot be written are refused before work begins, by one line with the option; nothing is left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dalle.files import FileLock, atomic_file, atomic_folder, check_file, check_folder, naming
from support.file_limits import files_of_at_most


def test_folder_check_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    mkdir = os.mkdir
    monkeypatch.setattr(os, "mkdir", lambda path, *more, **named: (made.append(str(path)), mkdir(path, *more, **named)))
    check_folder(tmp_path / "a" / "b")
    # Nor for a moment, in which another process could find it or lose it
    assert str(tmp_path / "a") not in made and list(tmp_path.iterdir()) == []
    check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/under", "link", "link/under"])
def test_run_dir_that_is_a_file_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"(file|link) is not a folder that can be written: give another as run\.dir"):
        check_folder(tmp_path / place, "run.dir=FOLDER")


@pytest.mark.parametrize("place", ["/proc/nope", "x" * 300, f"a/{'ह' * 100}"])
def test_folder_that_cannot_be_made_is_named(place: str, tmp_path: Path) -> None:
    if place.startswith("/proc") and not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(ValueError, match=r" cannot be made \([A-Z][^\[\]]+\): give another folder as --out$"):
        check_folder(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
@pytest.mark.parametrize("check", [check_folder, lambda place, option: check_file(place / "a.png", option)])
def test_folder_that_takes_nothing_is_named(check: Callable[[Path, str], None]) -> None:
    with pytest.raises(
        ValueError, match=r"^nothing can be written in /proc \([A-Z].*\): give another folder as --out$"
    ):
        check(Path("/proc"), "--out")


def test_file_check(tmp_path: Path) -> None:
    (tmp_path / "old.html").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    check_file(tmp_path / "old.html", "--html")
    check_file(tmp_path / "new" / "a.html", "--html")
    for name, message in ((".", "is a folder"), ("pipe", "is a device or a pipe"), ("old.html/a", "not a folder")):
        with pytest.raises(ValueError, match=rf"{message}.* --html$"):
            check_file(tmp_path / name, "--html")
    assert sorted(os.listdir(tmp_path)) == ["old.html", "pipe"]


def test_a_file_that_is_an_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("")
    (tmp_path / "link.png").symlink_to("a.png")
    nothing = ["owner/name", "data:image/png;base64," + "A" * 9000, "a\0b", "~nobody-here/a", tmp_path / "missing.png"]
    check_file(tmp_path / "b.png", "--out", [tmp_path / "a.png", *nothing])
    check_file(tmp_path / "a.png", "--out", nothing)
    for file in ("a.png", "link.png"):
        with pytest.raises(ValueError, match=rf"{file} is also an input, .*: give another name as --out$"):
            check_file(tmp_path / file, "--out", [*nothing, str(tmp_path / "a.png")])


@pytest.mark.parametrize("write", [atomic_file, atomic_folder, naming])
def test_failed_writes_name_what_was_to_be_written(write: object, tmp_path: Path) -> None:
    """A full disk gives an error without a name, and a missing folder the name of a temporary file."""
    target = tmp_path / "a.html"
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*/a\.html'$"), write(target):  # type: ignore[operator]
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match=r"\[Errno 2\] Gone: 'other'$"), write(target):  # type: ignore[operator]
        raise OSError(2, "Gone", "other")
    with pytest.raises(OSError, match=r"\[Errno 30\] Read-only: '.*/a\.html'$"), write(target):  # type: ignore[operator]
        raise OSError(30, "Read-only", None, None, None)
    with pytest.raises(BlockingIOError, match=r"^held$"), write(target):  # type: ignore[operator]
        raise BlockingIOError("held")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_a_copy_of_a_folder_is_one_error(tmp_path: Path) -> None:
    """copytree collects what failed of every file, in a list of a line each."""
    for name in ("a", "b"):
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / "part" / name).write_text(name)

    def full(source: str, *_: object) -> None:
        raise OSError(28, "No space left on device", source)

    with (
        pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '.*/out'$"),
        atomic_folder(tmp_path / "out") as new,
    ):
        shutil.copytree(tmp_path / "part", new / "part", copy_function=full)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
    with pytest.raises(shutil.Error, match=r"^same file$"), naming(tmp_path):
        raise shutil.Error("same file")


def test_temporary_names_do_not_appear_in_errors(tmp_path: Path) -> None:
    target = tmp_path / "gone" / "a.html"
    with pytest.raises(FileNotFoundError, match=r": '.*/gone/a\.html'$"), atomic_file(target) as part:
        part.write_text("text")


def test_a_lock_on_a_full_disk_is_named(tmp_path: Path) -> None:
    with files_of_at_most(0), pytest.raises(OSError, match="File too large: .*a.lock"):
        FileLock(tmp_path / "a.lock")
    FileLock(tmp_path / "a.lock").close()
