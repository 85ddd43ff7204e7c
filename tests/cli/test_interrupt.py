"""Signals of long commands: a flag between steps, acknowledged once; the second Ctrl-C ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.cli.interrupt import SignalHandler, Terminated, exit_code, sigterm_raises

ROOT = Path(__file__).parents[2]


def test_first_signal_is_acknowledged_and_the_second_raises(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), SignalHandler() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.signal == signal.SIGINT and signals.code == 130
        assert capfd.readouterr().err == "\nSIGINT: stopping after this step; Ctrl-C again stops at once\n"
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with SignalHandler() as signals:
        for _ in range(2):  # a launcher passes on what the scheduler sends to all
            os.kill(os.getpid(), signal.SIGTERM)
    assert signals.code == 143 and capfd.readouterr().err == "\nSIGTERM: stopping after this step\n"


@pytest.mark.parametrize(("rank", "forked"), [("1", False), ("0", True)])
def test_one_process_acknowledges(
    rank: str, forked: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not the other processes of a run, nor the workers that read data, which get the same Ctrl-C."""
    monkeypatch.setenv("RANK", rank)
    with SignalHandler() as signals:
        child = os.fork() if forked else 0
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            if forked:
                os._exit(signals.signal or 0)
            assert signals.signal == signal.SIGINT
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == signal.SIGINT
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("module", "word"), [("dalle.__main__", "--version"), ("train", "--help"), ("sample", "--help")]
)
def test_ctrl_c_while_python_ends_prints_no_traceback(module: str, word: str) -> None:
    """As the second of two: PyTorch frees its operators at exit, and Python prints what is raised in there."""
    script = f"""
import atexit, os, signal, sys
from {module} import main
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["program", "{word}"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 130 and done.stderr == "" and done.stdout


def test_sigterm_raises_once() -> None:
    with pytest.raises(Terminated) as caught, sigterm_raises():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_code(caught.value) == 143
