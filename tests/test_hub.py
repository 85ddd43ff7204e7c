"""Sources of weights: local ones stay, ids of the hub and archives are fetched once, all else is one line."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from dalle.checkpoints import hub
from dalle.checkpoints.hub import resolve, wanted


def one_line(source: str | Path) -> str:
    with pytest.raises(ValueError) as caught:
        resolve(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_here_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path and resolve(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "file.pt").write_text("")
    assert resolve(tmp_path / "file.pt") == tmp_path / "file.pt"
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")  # not asked of the hub


def test_an_id_of_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: files)

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

    def offline(name: str) -> list[str]:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    assert resolve("owner/name") == tmp_path / "got"
    assert asked[-1] == ("owner/name", {"local_files_only": True})


def test_a_repository_of_several_models_is_not_fetched_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: ["README.md", "c2i_B_256.pt", "c2i_L_256.pt"])
    message = one_line("some/models")
    assert "holds 2 files of weights" in message and message.endswith("some/models/c2i_B_256.pt")


def test_which_files_are_fetched() -> None:
    assert wanted(["a.bin", "b.msgpack", "merges.txt"]) == ["a.bin", "merges.txt"]
    assert wanted(["a.bin", "a.safetensors"]) == ["a.safetensors"]


def test_an_id_that_the_hub_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for error in (LocalEntryNotFoundError("no network\nat all"), HFValidationError("bad name"), OSError("broken")):

        def fail(*_: object, error: Exception = error, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        assert one_line("owner/name").startswith(
            "owner/name: no such file or folder, and it cannot be had from the hub"
        )


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "/a/b", "../b", "~/b", "a/../b", "a//b"])
def test_what_can_be_no_id_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("asked the hub"))
    assert one_line(source).startswith(f"{source}: no such file or folder; train it")


def archive(file: Path, names: list[str]) -> str:
    """Write a .tar.gz with these files; returns its MD5."""
    with tarfile.open(file, "w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"hi"))
    return hashlib.md5(file.read_bytes()).hexdigest()


def test_an_archive_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    md5 = archive(tmp_path / "a.tar.gz", ["1.3B/config.yaml", "1.3B/tokenizer/vocab.json"])
    monkeypatch.setitem(hub.ARCHIVES, "some/model/1B", ((tmp_path / "a.tar.gz").as_uri(), md5))
    folder = resolve("some/model/1B")
    assert folder.name == "1.3B" and (folder / "tokenizer" / "vocab.json").read_text() == "hi"
    (tmp_path / "a.tar.gz").unlink()
    assert resolve("some/model/1B") == folder


def test_an_archive_that_is_not_what_was_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    address = (tmp_path / "a.tar.gz").as_uri()
    md5 = archive(tmp_path / "a.tar.gz", ["../outside"])
    monkeypatch.setitem(hub.ARCHIVES, "some/model/1B", (address, md5))
    assert "fetch and unpack it by hand" in one_line("some/model/1B")
    assert not (tmp_path / "home" / "outside").exists() and not list((tmp_path / "home" / "dalle").iterdir())
    monkeypatch.setitem(hub.ARCHIVES, "some/model/1B", (address, "0" * 32))
    assert f"its MD5 is {md5}, expected 0000" in one_line("some/model/1B")
    monkeypatch.setitem(hub.ARCHIVES, "some/model/1B", ((tmp_path / "none").as_uri(), md5))
    assert "some/model/1B cannot be had from" in one_line("some/model/1B")
