"""The log of a run whose output nobody reads any more."""

from __future__ import annotations

import io

from tqdm import tqdm

from dalle.training.run.log import RunLog


class Gone(io.StringIO):
    """As of a pipe to a `tee` that has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_run_goes_on_if_its_reader_ends() -> None:
    log = RunLog.__new__(RunLog)  # the bar alone: no recipe, no folder
    log.main, log.taken, log.estimated_from = True, 0, None
    log.bar = tqdm(total=3, file=io.StringIO(), mininterval=0, miniters=1)
    log.bar.fp = Gone()
    log.bar.sp = log.bar.status_printer(log.bar.fp)
    log.step()
    with log.activity("validating"):
        log.step()
    assert log.taken == log.bar.n == 2
    log.bar.disable = True  # else its destructor closes it, and writes once more
