"""Files and folders written whole or not at all, hashes, and locks."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.apps.search import ImageIndex
from dalle.apps.zeroshot.labels import read_labels
from dalle.data.custom.records import as_record
from dalle.files import FileLock, atomic_file, expand_home, install_command, local, remove_parts, sha256, write_text


def test_atomic_file_replaces_completely_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "लाल")
    with pytest.raises(RuntimeError), atomic_file(file) as part:
        assert part.suffix == ".txt" and part.parent == tmp_path
        part.write_text("half")
        raise RuntimeError
    assert file.read_text(encoding="utf-8") == "लाल"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_scratch_of_killed_processes_is_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "kept")
    killed = "import os; from pathlib import Path; from dalle.files import atomic_file\n"
    killed += "with atomic_file(Path('b.txt')) as part: part.write_text('half'); os._exit(1)"
    subprocess.run([sys.executable, "-c", killed], cwd=tmp_path, env={"PYTHONPATH": str(Path.cwd())}, check=False)
    assert len(list(tmp_path.iterdir())) == 2
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 7])
def test_sha256_equals_hashlib(size: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_file_lock_is_exclusive_within_and_between_processes(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with FileLock(file):
        with pytest.raises(BlockingIOError, match="this process"):
            FileLock(file)
        other = "import sys; from pathlib import Path; from dalle.files import FileLock; FileLock(Path(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", other, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "BlockingIOError: process" in done.stderr
    FileLock(file).close()


def test_install_hint_names_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the name alone, under which an index may have something else, nor into another Python."""
    for there, begin in ((object(), f"{sys.executable} -m pip install "), (None, "uv pip install --python ")):
        monkeypatch.setattr(local, "find_spec", lambda name, there=there: there)
        command = install_command("video")
        assert command.startswith(begin) and sys.executable in command
        assert command.endswith(f' -e "{Path(__file__).parents[2]}[video]"')
    monkeypatch.setattr(local, "CHECKOUT", None)
    assert install_command("video").endswith(f'--python {sys.executable} "dalle[video]"')


def test_home_folders_are_expanded_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/a") == tmp_path / "a"
    assert expand_home(Path("a/~")) == Path("a/~")
    with pytest.raises(ValueError, match=r"^~nobody-of-this-name/a: ~nobody-of-this-name is no home folder here"):
        expand_home("~nobody-of-this-name/a")
    for use in (ImageIndex, read_labels, as_record):
        with pytest.raises(ValueError, match="~nobody-of-this-name is no home folder here"):
            use("~nobody-of-this-name/a")  # type: ignore[operator]
