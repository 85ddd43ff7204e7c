"""Errors of Hugging Face datasets as one line: tables, the cache that they are copied to, a hub out of reach."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow

from dalle.files.remote import PATIENCE, failures


def _unwritable_cache(error: BaseException | None) -> str | None:
    """What is wrong with the cache of `datasets`, and what to do, if an error came of it; None if it did not."""
    import datasets

    cache = str(datasets.config.HF_DATASETS_CACHE)
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if isinstance(error, OSError) and (full or str(error.filename).startswith(cache)):
            return f"the cache {cache} cannot be written ({error.strerror}): set HF_HOME to another folder"
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def friendly_errors(where: str) -> Iterator[None]:
    """Hide progress bars, and turn the errors of `datasets` into one-line ValueErrors."""
    import datasets
    from datasets.exceptions import DatasetsError

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except StopIteration as error:
        raise ValueError(f"{where} holds no records: give a data set with at least one") from error
    except (ValueError, TypeError, DatasetsError, pyarrow.ArrowException, *failures()) as error:
        reason = (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{where} cannot be loaded: {_unwritable_cache(error) or reason}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def offline_if_unreachable(name: str) -> Iterator[None]:
    """If the hub does not answer one request, use the local cache without the six retries of `datasets`."""
    import datasets
    import huggingface_hub

    # Each library has read the switch into a variable of its own
    switches: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        huggingface_hub.dataset_info(name, timeout=PATIENCE)
    except huggingface_hub.errors.HfHubHTTPError:
        pass  # the hub is reachable: loading will report what is wrong
    except failures():
        for module in switches:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value
