"""Errors of the operating system as lines for a user: the file, what is wrong, what to do; no numbers."""

from __future__ import annotations

import errno
import os

import pytest

from dalle.__main__ import main
from dalle.cli.errors import describe_os_error, report_error


@pytest.mark.parametrize(
    "error, line",
    [
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a/b"), "a/b: No such file or directory"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.png"),
            "a.png: No space left on device: make room there, or write to another place",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "No space left on device: make room there, or write to another place",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "गुलाबी.png"),
            "गुलाबी.png: Permission denied: change its permissions, or choose another place",
        ),
        (BlockingIOError("process 3 is there"), "process 3 is there"),
        (OSError("unexpected end of file"), "unexpected end of file"),
    ],
)
def test_os_errors_are_sentences(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe_os_error(error) == line
    assert report_error("dalle x", error, str, "; all else is kept") == 2
    assert capsys.readouterr().err == f"dalle x: {line}; all else is kept\n"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.png")


@pytest.mark.parametrize(
    ("words", "error", "line"),
    [
        (["paint", "a dog"], MemoryError(), "out of memory: give a smaller --size, fewer --cutouts or a smaller"),
        (["index", "a", "--out", "b"], MemoryError(), "out of memory: give a smaller --batch-size"),
        (["report", "a"], MemoryError(), "out of memory: it needs a machine with more memory"),
        (["index", "a", "--out", "b"], FULL, "another place; images embedded so far are kept: the same command goes"),
        (["encode", "a", "b"], KeyboardInterrupt(), "stopped; complete shards are kept: the same command goes on"),
        (["report", "a"], KeyboardInterrupt(), "dalle report: stopped\n"),
    ],
)
def test_broken_off_commands_say_what_to_do_and_what_is_kept(
    words: list[str],
    error: BaseException,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(f"dalle.cli.{words[0]}._run", fail)
    assert main(words) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    err = capsys.readouterr().err
    assert line in err and err.startswith(f"dalle {words[0]}: ") and err.count("\n") == 1


def test_an_option_that_is_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "clip", "models/emoji/clip", "emoji", "--split", "test_pair", "--split", "test_block"])
    assert stopped.value.code == 2
    assert "--split is given twice, test_pair and test_block: give it once" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):  # the same again says nothing new
        main(["eval", "clip", "models/emoji/clip", "--split", "train", "--split", "train", "--help"])


@pytest.mark.parametrize(
    "words",
    [
        ["export", "", "out"],
        ["export", "run", ""],
        ["judge", "--out", ""],
        ["report", ""],
        ["inspect", ""],
        ["eval", ""],
    ],
)
def test_empty_paths_are_not_the_working_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As of a shell's variable that is not set."""
    try:
        code = main(words)
    except SystemExit as stop:  # argparse's own
        code = int(stop.code or 0)
    assert code == 2
    assert "empty text" in (error := capsys.readouterr().err) and error.count("\n") == 1
