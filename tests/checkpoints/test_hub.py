"""Sources of weights: local ones stay, ids of the hub and archives are fetched once, all else is one line."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from dalle.checkpoints import hub
from dalle.checkpoints.hub import loadable_files, resolve

ROOT = Path(__file__).resolve().parents[2]


def one_line(source: str | Path) -> str:
    with pytest.raises(ValueError) as caught:
        resolve(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


OFFLINE: list[Exception] = [ConnectionError("no network"), httpx2.ConnectError("[Errno -2] Name or service not known")]


def lists(monkeypatch: pytest.MonkeyPatch, files: list[str] | Exception) -> None:
    """Have the hub list such files of every repository, or fail."""

    def info(name: str, timeout: float) -> SimpleNamespace:
        assert timeout <= 10
        if isinstance(files, Exception):
            raise files
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    monkeypatch.setattr(huggingface_hub, "model_info", info)


def test_local_paths_resolve_to_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path and resolve(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "file.pt").write_text("")
    assert resolve(tmp_path / "file.pt") == tmp_path / "file.pt"
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")  # not asked of the hub


def test_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"]
    monkeypatch.chdir(tmp_path)
    lists(monkeypatch, files)

    def snapshot(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(tmp_path / "got")

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert resolve("owner/name") == tmp_path / "got"
    assert resolve("owner/name/a/b.pt") == tmp_path / "a" / "b.pt"
    assert resolve("ai-forever/rudalle-Malevich") == tmp_path / "pytorch_model_v3.bin"  # not all three models in it
    assert asked == [
        ("owner/name", {"allow_patterns": ["config.json", "model.safetensors"]}),
        ("owner/name", "a/b.pt"),
        ("ai-forever/rudalle-Malevich", "pytorch_model_v3.bin"),
    ]

    for error in OFFLINE:
        lists(monkeypatch, error)
        assert resolve("owner/name") == tmp_path / "got"
        assert asked[-1] == ("owner/name", {"local_files_only": True})
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: f"{tmp_path}/kept/{file}")
    assert resolve("owner/name/a/b.pt") == tmp_path / "kept" / "a" / "b.pt"


def test_repository_with_several_weight_files_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    lists(monkeypatch, ["README.md", "c2i_B_256.pt", "c2i_L_256.pt"])
    message = one_line("some/models")
    assert "holds 2 weight files" in message and message.endswith("some/models/c2i_B_256.pt")


def test_repository_of_gguf_files_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    lists(monkeypatch, ["README.md", "config.json", "janus-pro-q4_k_m.gguf"])
    assert "somebody/janus-gguf holds GGUF files (llama.cpp)" in one_line("somebody/janus-gguf")


def test_safetensors_are_preferred_to_pickles() -> None:
    assert loadable_files(["a.bin", "b.msgpack", "merges.txt"]) == ["a.bin", "merges.txt"]
    assert loadable_files(["a.bin", "a.safetensors"]) == ["a.safetensors"]
    # Pipelines of diffusers: each part has its own weights, some also in half precision
    files = ["unet/w.fp16.safetensors", "unet/w.safetensors", "unet/w.bin", "text/w.bin", "half/w.fp16.bin"]
    assert loadable_files(files) == ["unet/w.safetensors", "text/w.bin", "half/w.fp16.bin"]


def test_unknown_hub_id_gives_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def fail(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("nothing is kept")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    for error in (
        LocalEntryNotFoundError("no network\nat all"),
        HFValidationError("bad name"),
        OSError("broken"),
        *OFFLINE,
    ):
        lists(monkeypatch, error)
        reason = str(error).splitlines()[0]
        for name in ("owner/name", "owner/name/a.pt"):
            loadable_files = f"{name}: no such file or folder, and it cannot be downloaded from the hub ({reason})"
            assert one_line(name) == loadable_files


PROGRAM = """
import sys
from dalle.checkpoints import hub
from dalle.data import CustomConfig, open_data
for path in sys.argv[1:]:
    for read in (hub.resolve, lambda path: open_data(CustomConfig(path=path), "train", 8)):
        try: read(path)
        except ValueError as error: print(error)
"""


def test_offline_hub_is_tried_once_and_paths_never(tmp_path: Path) -> None:
    """By the hub's own client, for weights and for data: nothing listens where it is told the hub is."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, "owner/name", "data/my_images", "runs/x"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    weights, data, *others = done.stdout.splitlines()
    assert weights.startswith("owner/name: no such file or folder, and it cannot be downloaded from the hub (")
    assert data.startswith("owner/name (not a local folder, so taken as a hub id) cannot be loaded: ")
    assert [line.partition(":")[0] for line in others[::2]] == command[4:] and "hub" not in "".join(others)
    assert others[1::2] == [f"no such file or folder: {path}; set data.path to your images" for path in command[4:]]
    assert "Retry" not in done.stderr and done.returncode == 0


def test_downloads_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    lists(monkeypatch, ["config.yaml"])
    folder = tmp_path / "cache" / "models--owner--name"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    resolve("owner/name")
    assert [record.getMessage() for record in caplog.records] == [
        f"downloading owner/name from the Hugging Face hub to {folder}"
    ]
    folder.mkdir(parents=True)
    caplog.clear()
    resolve("owner/name")
    assert not caplog.records


LOCAL = ["models/emojj", "runs/no-such-run/model", "tokenizers/emoji-bqe", "here/model", "a\\b/c", "owner/name/model"]


@pytest.mark.parametrize("source", LOCAL)
def test_local_looking_paths_are_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "modle").mkdir(parents=True)
    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("asked the hub"))
    assert one_line(source).startswith(f"{source}: no such file or folder")
    assert one_line("here/model").startswith("here/model: no such file or folder (did you mean here/modle?)")
    assert "(there is no folder runs/no-such-run)" in one_line("runs/no-such-run/model")
    monkeypatch.setattr(hub, "_fetch", lambda repository, file, weights: Path(repository, file))
    assert resolve("hf://here/model") == Path("here/model")  # as it is told so


def test_paths_of_shipped_recipes_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("tokenizers/emoji-bpe") == ROOT / "tokenizers" / "emoji-bpe"
    (tmp_path / "tokenizers" / "emoji-bpe").mkdir(parents=True)
    assert resolve("tokenizers/emoji-bpe") == Path("tokenizers/emoji-bpe")  # what is here comes first
    assert one_line("docs/architecture.md").startswith("docs/architecture.md: no such file")


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "/a/b", "../b", "~/b", "a/../b", "a//b"])
def test_invalid_repository_ids_are_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("asked the hub"))
    assert one_line(source).startswith(f"{source}: no such file or folder")


def archive(file: Path, names: list[str]) -> str:
    """Write a .tar.gz with these files; returns its MD5."""
    with tarfile.open(file, "w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"hi"))
    return hashlib.md5(file.read_bytes()).hexdigest()


def test_archive_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    md5 = archive(tmp_path / "a.tar.gz", ["1.3B/config.yaml", "1.3B/tokenizer/vocab.json"])
    monkeypatch.setitem(hub.ARCHIVES, "some/model/1B", ((tmp_path / "a.tar.gz").as_uri(), md5))
    folder = resolve("some/model/1B")
    assert folder.name == "1.3B" and (folder / "tokenizer" / "vocab.json").read_text() == "hi"
    (tmp_path / "a.tar.gz").unlink()
    assert resolve("some/model/1B") == folder


def test_unsafe_or_changed_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    address = (tmp_path / "a.tar.gz").as_uri()
    md5 = archive(tmp_path / "a.tar.gz", ["../outside"])
    monkeypatch.setitem(hub.ARCHIVES, "some/model/1B", (address, md5))
    assert "unpack it by hand" in one_line("some/model/1B")
    assert not (tmp_path / "home" / "outside").exists() and not list((tmp_path / "home" / "dalle").iterdir())
    monkeypatch.setitem(hub.ARCHIVES, "some/model/1B", (address, "0" * 32))
    assert f"its MD5 is {md5}, expected 0000" in one_line("some/model/1B")
    monkeypatch.setitem(hub.ARCHIVES, "some/model/1B", ((tmp_path / "none").as_uri(), md5))
    assert "some/model/1B cannot be downloaded from" in one_line("some/model/1B")
