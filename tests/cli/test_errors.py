"""Errors of the operating system as lines for a user: the file, what is wrong, what to do; no numbers."""

from __future__ import annotations

import errno
import os

import pytest

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
