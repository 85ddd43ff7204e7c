"""Threads that wait for work leave the cores to others, unless the user has said how they wait."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.cli.threads import limit_openmp_spinning

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("set_by_user", [None, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_openmp_settings_of_the_user_are_kept(set_by_user: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "7")  # so that it is put back
        if name != set_by_user:
            monkeypatch.delenv(name)
    before = dict(os.environ)
    limit_openmp_spinning()
    limit_openmp_spinning()
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert changed == ({} if set_by_user else {"GOMP_SPINCOUNT": "1000"})


def test_environment_is_unchanged_once_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)
    limit_openmp_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ


COMMANDS = (
    ["train.py", "--help"],
    ["-m", "dalle", "inspect", "no-such-file.pt"],
    ["sample.py", "a", "--model", "no-such-folder/"],
)


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="GNU's OpenMP says how it waits")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_every_command_limits_openmp_spinning(command: list[str]) -> None:
    environment = os.environ | {"OMP_DISPLAY_ENV": "verbose", "HF_HUB_OFFLINE": "1"}
    environment.pop("GOMP_SPINCOUNT", None), environment.pop("OMP_WAIT_POLICY", None)
    for settings, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77")):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment | settings,
            capture_output=True,
            text=True,
            timeout=120,
        )
        told = [line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
        assert told and set(told) == {expected}
