"""Streams and arguments of shells whose encoding lacks a character, and streams that are closed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from dalle.__main__ import main
from dalle.cli.streams import utf8_argument

ROOT = Path(__file__).parents[2]
PRINTS = (
    "import sys; from dalle.cli.streams import settle_streams; settle_streams(); "
    "print('\u0444/d.png'); print(1, file=sys.stderr)"
)


def run(command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, shell=True, capture_output=True, cwd=ROOT, env=os.environ | environment, timeout=60, check=False
    )


def test_unencodable_characters_are_printed_as_escapes() -> None:
    result = run(f'{sys.executable} -c "{PRINTS}"', PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"\\u0444/d.png\n", b"1\n")


@pytest.mark.parametrize("closed, out", [("2>&-", "\u0444/d.png\n"), (">&-", "")])
def test_closed_streams_are_no_error(closed: str, out: str) -> None:
    result = run(f'{sys.executable} -c "{PRINTS}" {closed}', PYTHONIOENCODING="utf-8")
    assert (result.returncode, result.stdout.decode()) == (0, out)


COMMANDS = [["-m", "dalle", "inspect"], ["train.py"], ["-m", "dalle", "sample", "a dog", "--model"]]
COMMANDS += [["-m", "dalle", "train"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_errors_of_every_entry_point_are_escaped_and_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that the terminal cannot show is escaped in the error line, which is one line all the same."""
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        words = [*command, str(tmp_path / "\u0444.yaml")]
        assert (train.main(words[1:]) if words[0] == "train.py" else main(words[2:])) == 2
        terminal.flush()
        told = written.getvalue()
    assert b"\\u0444.yaml" in told and told.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_errors_of_every_process_are_escaped_and_one_line(command: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, *command, str(tmp_path / "\u0444.yaml")],
        capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"}, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert b"\\u0444.yaml" in result.stderr and result.stderr.count(b"\n") == 1


def test_prompts_are_utf_8_whatever_the_locale() -> None:
    assert utf8_argument("a dog") == "a dog" and utf8_argument("\u0915\u0947\u0930\u093e") == "\u0915\u0947\u0930\u093e"
    program = "import sys; from dalle.cli.streams import utf8_argument; print(ascii(utf8_argument(sys.argv[1])))"
    result = subprocess.run(
        [sys.executable, "-c", program, "\u0915\u0947".encode()],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == ascii("\u0915\u0947")
    assert utf8_argument("half \udce0") == "half \udce0"


@pytest.mark.parametrize(
    "command",
    [
        "sample.py dog --print-config",
        "sample.py --help",
        # The same code, and seconds of imports
        pytest.param("train.py emoji/dalle --print-config", marks=pytest.mark.slow),
        pytest.param("train.py emoji/dalle --help", marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_ends_early_is_no_error(command: str) -> None:
    """As of `| head`: stdout is a pipe whose other end is closed from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, *command.split()]
    result = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, timeout=120, check=False)
    os.close(writer)
    assert result.returncode in (0, 141) and result.stderr == b""
