"""Where weights are: a local path, the id of a repository on the Hugging Face hub, or a project's own archive."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from dalle import remote
from dalle.files import ROOT

SHIPPED = ROOT / "models" / "emoji"  # the model that ships, with its CLIP

log = logging.getLogger(__name__)

# Of repositories with several weights the one that is meant where no file is named.
MAIN_FILES = {
    "ai-forever/rudalle-Malevich": "pytorch_model_v3.bin",
    "sberbank-ai/rudalle-Malevich": "pytorch_model_v3.bin",
    "peizesun/llamagen_t2i": "t2i_XL_stage1_256.pt",
}
# Address and MD5 of what is on no hub; both stand in the projects' own code.
ARCHIVES = {
    "kakaobrain/minDALL-E/1.3B": (
        "https://arena.kakaocdn.net/brainrepo/models/minDALL-E/57b008f02ceaa02b779c8b7463143315/1.3B.tar.gz",
        "57b008f02ceaa02b779c8b7463143315",
    ),
}
_HUB = "hf://"  # in front of what is to be asked of the hub, whatever it looks like
_OTHER_FRAMEWORKS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".ot", ".tflite", ".mlmodel", ".gguf")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def resolve(source: str | Path) -> Path:
    """The local file or folder that `source` names.

    Args:
        source: a path; `owner/name` or `owner/name/file` of the Hugging Face hub (of a repository only what can be
            loaded is fetched); or a name in `ARCHIVES`. What has been fetched is kept. What looks like a path here is
            not asked of the hub, where a stranger may have put anything, unless it begins with `hf://`.

    Raises:
        ValueError: nothing is there, or it cannot be had.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path
    shipped = ROOT / path  # recipes name what ships by relative paths
    if path.parts[:1] and path.parts[0] in remote.SHIPPED and shipped.exists():
        return shipped
    asked = name.startswith(_HUB)
    name = name.removeprefix(_HUB)
    if name in ARCHIVES:
        return _archive(name, *ARCHIVES[name])
    parts = name.split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts or not (asked or remote.may_be_an_id(parts)):
        raise ValueError(
            f"{source}: no such file or folder{_meant(path)}; train it (README.md tells how) or give another"
        )
    if name in MAIN_FILES:
        parts += [MAIN_FILES[name]]
    try:
        return _fetch("/".join(parts[:2]), "/".join(parts[2:]))
    except remote.failures() as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{source}: no such file or folder, and it cannot be had from the hub ({reason:.200})"
        ) from error


def _meant(path: Path) -> str:
    """What is there instead: the name in that folder that is most like it."""
    parent = path.parent
    try:
        near = get_close_matches(path.name, [entry.name for entry in parent.iterdir()], 1)
    except OSError:
        return f" (there is no folder {parent})" if str(parent) != "." else ""
    return f" (did you mean {parent / near[0]}?)" if near else ""


def _fetch(repository: str, file: str) -> Path:
    """A file of a repository, or what can be loaded of all of it; without a network, what has been fetched before."""
    import huggingface_hub as hub

    try:  # a single try, where fetching tries six times
        told = hub.model_info(repository, timeout=remote.PATIENCE)
    except remote.failures():
        kept = hub.try_to_load_from_cache(repository, file) if file else None
        if isinstance(kept, str):
            return Path(kept)
        if not file:
            try:
                return Path(hub.snapshot_download(repository, local_files_only=True))
            except OSError:
                pass  # what the hub said is the reason
        raise
    if file:
        return _told(repository, file, lambda: hub.hf_hub_download(repository, file))
    files = [entry.rfilename for entry in told.siblings or ()]
    chosen = wanted(files)
    weights = [file for file in chosen if file.endswith((".safetensors", *_PICKLES)) and "/" not in file]
    if len(weights) > 1 and not any(file.endswith(".index.json") or file == "config.yaml" for file in chosen):
        raise ValueError(
            f"{repository} holds {len(weights)} files of weights ({', '.join(weights[:3])} ...): name the one that is "
            f"meant, {repository}/{weights[0]}"
        )
    return _told(repository, "", lambda: hub.snapshot_download(repository, allow_patterns=chosen))


def _told(repository: str, file: str, fetch: Callable[[], str]) -> Path:
    """Fetch, and say so before: it may be gigabytes, and others' files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    if not folder.is_dir():
        log.warning(
            "%s is fetched from the Hugging Face hub, and kept in %s", f"{repository}/{file}".rstrip("/"), folder
        )
    return Path(fetch())


def wanted(files: Sequence[str]) -> list[str]:
    """Which files of a repository to fetch: not the same weights again for other frameworks or in pickles."""
    kept = [file for file in files if not file.endswith(_OTHER_FRAMEWORKS)]
    if any(file.endswith(".safetensors") for file in kept):
        kept = [file for file in kept if not file.endswith(_PICKLES)]
    return kept


def _archive(name: str, address: str, md5: str) -> Path:
    """The one folder in a .tar.gz, fetched and unpacked once."""
    from huggingface_hub.constants import HF_HOME

    kept = Path(HF_HOME) / "dalle" / md5
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=kept.parent))
        try:
            _download(address, scratch / "archive", md5)
            with tarfile.open(scratch / "archive") as archive:
                archive.extractall(scratch / "new", filter="data")
            os.replace(scratch / "new", kept)
        except (OSError, tarfile.TarError, ValueError) as error:
            raise ValueError(
                f"{name} cannot be had from {address} ({error}): fetch and unpack it by hand, and give the folder"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    entries = list(kept.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else kept


def _download(address: str, target: Path, md5: str) -> None:
    """Write what is at an address to a file, with a progress bar.

    Raises:
        ValueError: it is something else than expected.
    """
    from tqdm import tqdm

    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(address, timeout=60) as answer, target.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=address.rpartition("/")[2], delay=1) as bar:
            while block := answer.read(1 << 20):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
    if digest.hexdigest() != md5:
        raise ValueError(f"its MD5 is {digest.hexdigest()}, expected {md5}")
