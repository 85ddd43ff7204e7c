"""Too little memory is one line that says what to change, and blames no file; estimates know every limit."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch

from dalle import device
from dalle.device import out_of_memory

ROOT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")


def raised(make: object) -> BaseException:
    assert callable(make)
    with pytest.raises(BaseException) as caught:
        make()
    return caught.value


def test_out_of_memory_errors_of_libraries_are_recognized() -> None:
    for error in (
        raised(lambda: torch.empty(2**62, dtype=torch.uint8)),
        raised(lambda: np.empty(2**60, dtype=np.uint8)),
        raised(lambda: pyarrow.allocate_buffer(2**60)),
        raised(lambda: bytearray(2**62)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("std::bad_alloc"),
    ):
        told = out_of_memory(error)
        assert told is not None and told.startswith("out of memory") and "\n" not in told, repr(error)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")) == (
        "out of memory (asked for 2.15 GB more)"
    )


def test_chained_out_of_memory_errors_are_recognized() -> None:
    def blames() -> None:
        try:
            pyarrow.allocate_buffer(2**60)
        except pyarrow.ArrowException as error:
            raise ValueError("a.parquet is not whole") from error

    assert str(out_of_memory(raised(blames))).startswith("out of memory")


def test_other_errors_are_not_out_of_memory() -> None:
    for error in (ValueError("out of memory cards"), RuntimeError("sizes differ"), OSError(errno.ENOSPC, "full")):
        assert out_of_memory(error) is None


PROGRAM = """
import resource, sys, torch
import {module} as command
import dalle.pipelines.text_to_image, dalle.evaluation.run, dalle.data
with open("/proc/self/statm") as numbers:
    used = int(numbers.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, resource.RLIM_INFINITY))
sys.exit(command.main({arguments}))
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    "module, arguments, room, told",
    [
        ("sample", ["a dog", "--n", "4", "--out", "OUT"], 30_000_000, "sample.py: out of memory"),
        ("sample", ["a dog", "--n", "4", "--batch-size", "4", "--out", "OUT"], 130_000_000, "--batch-size"),
        (
            "dalle.__main__",
            ["eval", "tokenizers/emoji-vqgan", "--limit", "64"],
            40_000_000,
            "dalle eval: out of memory",
        ),
        (
            "train",
            ["configs/shapes/vqgan.yaml", "run.steps=2", "run.batch_size=4096", "run.dir=OUT"],
            300_000_000,
            "run.accumulation",
        ),
    ],
)
def test_commands_out_of_memory_give_a_one_line_error(
    module: str, arguments: list[str], room: int, told: str, tmp_path: Path
) -> None:
    words = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    program = PROGRAM.format(module=module, room=room, arguments=words)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr[-2000:]
    assert "out of memory" in said[-1] and told in said[-1] and "Traceback" not in done.stderr
    assert "copy it anew" not in done.stderr


@linux
@pytest.mark.parametrize("kind", ["version 2", "version 2, of its own", "version 1"])
def test_free_memory_respects_cgroups(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = device.free_memory(torch.device("cpu"))
    root, own = tmp_path / "cgroup", tmp_path / "own"
    names, folder, line = ("memory.max", "memory.current"), root, "0::/"
    if kind == "version 2, of its own":
        folder, line = root / "a.slice" / "b.scope", "0::/a.slice/b.scope"
        (root / "a.slice").mkdir(parents=True)
        (root / "a.slice" / "memory.max").write_text("max\n")
        (root / "a.slice" / "memory.current").write_text("77\n")
        (root / "a.slice" / "memory.stat").write_text("anon 5\n")
    elif kind == "version 1":
        names, folder = ("memory.limit_in_bytes", "memory.usage_in_bytes"), root / "memory"
        line = "4:cpu,memory:/"
    folder.mkdir(parents=True, exist_ok=True)
    own.write_text(f"1:name=systemd:/x\n{line}\n")
    for name, value in zip(names, ("1000000", "700000")):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text("anon 600000\ninactive_file 100000\n")
    monkeypatch.setattr(device, "_CGROUP", root)
    monkeypatch.setattr(device, "_OWN_GROUPS", own)
    assert device.free_memory(torch.device("cpu")) == 400_000 < whole
    (folder / names[1]).write_text("1200000\n")  # what is over the limit is being written out
    assert device.free_memory(torch.device("cpu")) == 0


@linux
@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_free_memory_respects_process_limits(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def limits(asked: int) -> tuple[int, int]:
        infinite = resource.RLIM_INFINITY
        return (2**50 if asked == kind else infinite, infinite)

    before = device.free_memory(torch.device("cpu"))
    monkeypatch.setattr(resource, "getrlimit", limits)
    assert device.free_memory(torch.device("cpu")) <= before * 1.5  # more than there is: the machine counts
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (1 if asked == kind else resource.RLIM_INFINITY,) * 2)
    assert device.free_memory(torch.device("cpu")) == 0
