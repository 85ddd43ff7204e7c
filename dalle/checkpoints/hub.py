"""Resolves a source of weights: a local path, a Hugging Face hub id, or a project's own archive."""

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

from dalle.files import ROOT, remote

SHIPPED = ROOT / "models" / "emoji"  # the model in this repository, with its CLIP

log = logging.getLogger(__name__)

# Default weight file of hub repositories that hold several.
MAIN_FILES = {
    "ai-forever/rudalle-Malevich": "pytorch_model_v3.bin",
    "sberbank-ai/rudalle-Malevich": "pytorch_model_v3.bin",  # its former name
    "peizesun/llamagen_t2i": "t2i_XL_stage1_256.pt",
}
# URL and MD5 of archives that are on no hub, from the projects' own code.
ARCHIVES = {
    "kakaobrain/minDALL-E/1.3B": (
        "https://arena.kakaocdn.net/brainrepo/models/minDALL-E/57b008f02ceaa02b779c8b7463143315/1.3B.tar.gz",
        "57b008f02ceaa02b779c8b7463143315",
    ),
}
_HUB = "hf://"  # prefix that forces a lookup on the hub
# Formats that nothing here reads
_OTHER_FRAMEWORKS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".ot", ".tflite", ".mlmodel", ".gguf")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_VARIANT = ".fp16."
_WEIGHTS = (".safetensors", ".index.json", ".jit", ".pkl", *_PICKLES)


def resolve(source: str | Path, weights: bool = True) -> Path:
    """The local file or folder for `source`, downloaded and cached if necessary.

    Args:
        source: a path; a hub id `owner/name` or `owner/name/file` (of a repository, only loadable files are fetched);
            or a name in `ARCHIVES`. A source that looks like a local path is not looked up on the hub, where anybody
            may have uploaded something under that name, unless it begins with `hf://`.
        weights: False: of a whole repository only what says how large its model is (configs, text tokenizer), which
            are megabytes.

    Raises:
        ValueError: it is of another type, does not exist, or cannot be downloaded.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"the source of weights is of type {type(source).__name__}: give a path or a hub id")
    path, name = Path(source), str(source)
    if not name:  # as a path it would be the working folder
        raise ValueError("the source of weights is an empty text: give a path or a hub id")
    if path.exists():
        return path
    shipped = ROOT / path  # recipes name what ships by relative paths
    if path.parts[:1] and path.parts[0] in remote.SHIPPED and shipped.exists():
        return shipped
    explicit = name.startswith(_HUB)
    name = name.removeprefix(_HUB)
    if name in ARCHIVES:
        return _archive(name, *ARCHIVES[name])
    parts = name.split("/")
    # ".." would lead out of the cache
    if len(parts) < 2 or not all(parts) or ".." in parts or not (explicit or remote.may_be_an_id(parts)):
        raise ValueError(
            f"{source}: no such file or folder{_suggestion(path)}; train it (see README.md) or give another"
        )
    if name in MAIN_FILES:
        parts += [MAIN_FILES[name]]
    try:
        return _fetch("/".join(parts[:2]), "/".join(parts[2:]), weights)
    except remote.failures() as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{source}: no such file or folder, and it cannot be downloaded from the hub ({reason:.200})"
        ) from error


def _suggestion(path: Path) -> str:
    """A hint for an error message: the most similar name in the same folder."""
    parent = path.parent
    try:
        near = get_close_matches(path.name, [entry.name for entry in parent.iterdir()], 1)
    except OSError:
        return f" (there is no folder {parent})" if str(parent) != "." else ""
    return f" (did you mean {parent / near[0]}?)" if near else ""


def _fetch(repository: str, file: str, weights: bool = True) -> Path:
    """Download a file of a repository, or all its loadable files (see `resolve`); without a network, use the cache."""
    import huggingface_hub as hub

    try:  # a single attempt: downloads retry six times before they give up
        info = hub.model_info(repository, timeout=remote.PATIENCE)
    except remote.failures():
        cached = hub.try_to_load_from_cache(repository, file) if file else None
        if isinstance(cached, str):
            return Path(cached)
        if not file:
            try:
                return Path(hub.snapshot_download(repository, local_files_only=True))
            except OSError:
                pass  # the hub's error, raised below, is the reason to report
        raise
    if file:
        return _fetch_logged(repository, file, lambda: hub.hf_hub_download(repository, file))
    files = [entry.rfilename for entry in info.siblings or ()]
    chosen = loadable_files(files)
    every = [file for file in chosen if file.endswith((".safetensors", *_PICKLES))]
    own = [file for file in every if "/" not in file]  # the repository's own, not those of its parts
    if not every and any(file.endswith(".gguf") for file in files):
        raise ValueError(
            f"{repository} holds GGUF files (llama.cpp), which are not supported: give the repository of the original "
            "weights; --dtype int8 stores them in 8 bits while it loads them"
        )
    # Nothing ties these together (shards have an index, pipelines subfolders), so they are alternatives
    if len(own) > 1 and not any(file.endswith(".index.json") or file == "config.yaml" for file in chosen):
        raise ValueError(
            f"{repository} holds {len(own)} weight files ({', '.join(own[:3])} ...): choose one, for example "
            f"{repository}/{own[0]}"
        )
    if not weights:
        small = [file for file in chosen if not file.endswith(_WEIGHTS)]
        return Path(hub.snapshot_download(repository, allow_patterns=small))
    return _fetch_logged(repository, "", lambda: hub.snapshot_download(repository, allow_patterns=chosen))


def _fetch_logged(repository: str, file: str, fetch: Callable[[], str]) -> Path:
    """Download, after announcing it in the log: it may be gigabytes of somebody else's files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    if not folder.is_dir():  # announced only if it is new
        log.warning("downloading %s from the Hugging Face hub to %s", f"{repository}/{file}".rstrip("/"), folder)
    return Path(fetch())


def loadable_files(files: Sequence[str]) -> list[str]:
    """The files of a repository to download: no weights for other frameworks, no pickles if there are safetensors."""
    known = [file for file in files if not file.endswith(_OTHER_FRAMEWORKS)]
    # Per folder: in a pipeline of diffusers one part may have pickles alone
    safe = {file.rpartition("/")[0] for file in known if file.endswith(".safetensors")}
    chosen = [file for file in known if not (file.endswith(_PICKLES) and file.rpartition("/")[0] in safe)]
    # Cosmos' repositories have both parts in one archive more, and again as a pickle
    if {"encoder.jit", "decoder.jit"} <= set(chosen):
        chosen = [file for file in chosen if file != "autoencoder.jit" and not file.endswith(_PICKLES)]
    # The same weights in another precision lie beside them as diffusion_pytorch_model.fp16.safetensors
    return [file for file in chosen if _VARIANT not in file or file.replace(_VARIANT, ".") not in chosen]


def _archive(name: str, address: str, md5: str) -> Path:
    """Download and unpack a .tar.gz once; returns the folder inside."""
    from huggingface_hub.constants import HF_HOME

    cached = Path(HF_HOME) / "dalle" / md5
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cached.parent))
        try:
            _download(address, scratch / "archive", md5)
            with tarfile.open(scratch / "archive") as archive:
                # filter="data" refuses links, devices and paths that lead out of the folder
                archive.extractall(scratch / "new", filter="data")
            # Unpack beside the final place and rename, so that an interrupted download leaves nothing behind.
            os.replace(scratch / "new", cached)
        except (OSError, tarfile.TarError, ValueError) as error:
            raise ValueError(
                f"{name} cannot be downloaded from {address} ({error}): unpack it by hand and give the folder"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    entries = list(cached.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else cached  # archives of a single folder


def _download(address: str, target: Path, md5: str) -> None:
    """Download a URL to a file, with a progress bar.

    Raises:
        ValueError: its MD5 differs from the expected one.
    """
    from tqdm import tqdm

    # MD5 is what the project publishes: it tells a damaged download, not a forged one
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(address, timeout=60) as answer, target.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0) or None  # 0: unknown
        with tqdm(total=total, unit="B", unit_scale=True, desc=address.rpartition("/")[2], delay=1) as bar:
            while block := answer.read(1 << 20):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
    if digest.hexdigest() != md5:
        raise ValueError(f"its MD5 is {digest.hexdigest()}, expected {md5}")
