"""A program for torchrun: trains several runs one after the other, as train.py does, and may kill itself in one.

Its argument is JSON: a list of the arguments of each, and perhaps "kill": [step, rank].
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys

import train
from dalle.training.run.log import RunLog


def main(runs: list[list[str]], kill: list[int] | None = None) -> int:
    """Train them; returns the exit code of the first that fails."""
    if kill is not None:
        step, rank = kill
        logged = RunLog.step

        steps = itertools.count(1)  # only the first process has a bar that counts

        def killed_at(self: RunLog) -> None:
            logged(self)
            if next(steps) >= step and int(os.environ["RANK"]) == rank:
                os.kill(os.getpid(), signal.SIGKILL)

        RunLog.step = killed_at  # type: ignore[method-assign]
    for arguments in runs:
        code = train.main(arguments)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
