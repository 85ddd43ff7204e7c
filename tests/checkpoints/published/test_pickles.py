"""Files of torch.save come back as torch reads them; hostile and damaged ones are a line, and nothing of them runs."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dalle.checkpoints.published.pickles import read_code, read_pickled
from dalle.checkpoints.published.unpickler import OpaqueObject

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def tensors() -> st.SearchStrategy[Tensor]:
    def make(sizes: list[int], dtype: torch.dtype, turned: bool) -> Tensor:
        made = (torch.arange(max(1, torch.Size(sizes).numel())) % 5).to(dtype)[: torch.Size(sizes).numel()].view(sizes)
        return made.transpose(0, -1) if turned and sizes else made

    return st.builds(make, st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES), st.booleans())


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=9), tensors())
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=5), inner, max_size=4).map(collections.OrderedDict),
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(b, Tensor):
        return isinstance(a, Tensor) and a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(b, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("zipped", [True, False])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_torch_save_files_are_read(zipped: bool, tree: Any, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_pickled(tmp_path / "a.pt"), tree)


@pytest.mark.parametrize("zipped", [True, False])
def test_devices_are_read_as_text(zipped: bool, tmp_path: Path) -> None:
    devices = [torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda:1")]
    torch.save({"args": devices, "weights": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert read_pickled(tmp_path / "a.pt")["args"] == ["cpu", "cuda:0", "cuda:1"]


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_share_storage_are_read(zipped: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    layer = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).half()
    tree = {
        "all": base,
        "column": base[:, 2],
        "state": layer.state_dict(),
        "size": base.shape,
        "own": nn.Parameter(base),
    }
    torch.save(tree, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_pickled(tmp_path / "a.pt")
    assert torch.equal(found["column"], base[:, 2]) and found["size"] == (4, 6) and torch.equal(found["own"], base)
    assert found["all"].data_ptr() + 2 * 4 == found["column"].data_ptr()
    assert all(torch.equal(found["state"][name], value) for name, value in layer.state_dict().items())
    found["all"].zero_()  # a copy of the page: the file stays
    assert torch.equal(read_pickled(tmp_path / "a.pt")["all"], base)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_modules_become_opaque_objects_with_their_tensors(zipped: bool, tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    options = argparse.Namespace(lr=0.1, betas=(0.9, 0.95))
    torch.save([layer, options, collections.Counter("ab")], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    module, namespace, counter = read_pickled(tmp_path / "a.pt")
    assert isinstance(module, OpaqueObject) and module.origin == "torch.nn.modules.linear.Linear"
    assert torch.equal(module.state["_parameters"]["weight"], layer.weight)
    assert isinstance(namespace, OpaqueObject) and namespace.state == {"lr": 0.1, "betas": (0.9, 0.95)}
    assert isinstance(counter, OpaqueObject) and repr(counter) == "<collections.Counter>"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archives_are_read(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    torch.jit.save(torch.jit.trace(layer, torch.zeros(1, 3)), tmp_path / "a.pt")
    found = read_pickled(tmp_path / "a.pt")
    assert isinstance(found, OpaqueObject) and torch.equal(found.state["weight"], layer.weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_programs_of_archives_are_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.pt"
    torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 1, stride=(2, 3)), torch.zeros(1, 1, 6, 6)), file)
    assert "torch._convolution(" in read_code(file) and "[2, 3]" in read_code(file)
    torch.save({"a": torch.zeros(3)}, tmp_path / "b.pt")
    assert read_code(tmp_path / "b.pt") == ""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:  # small, but long when it is unpacked
        for number in range(3):
            archive.writestr(f"a/code/{number}.py", b" " * 10**6)
    assert len(read_code(file)) == 3 * 10**6 + 2
    monkeypatch.setattr("dalle.checkpoints.published.pickles.MAX_PICKLE_BYTES", 2 * 10**6)
    with pytest.raises(ValueError, match="more than 2,000,000 bytes of code"):
        read_code(file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="no TorchScript archive, or is damaged .*: download it again"):
        read_code(file)


# What a hostile file asks for


class Asks:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def marked(path: Path) -> str:
    return f"import pathlib; pathlib.Path({str(path)!r}).touch()"


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "system": lambda mark: Asks(os.system, f"touch {mark}"),
    "eval": lambda mark: Asks(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: {"state_dict": [Asks(exec, marked(mark))]},
    "getattr": lambda mark: Asks(getattr, "a text", "upper"),
    "open": lambda mark: Asks(open, str(mark), "w"),
    "rmtree": lambda mark: Asks(shutil.rmtree, str(mark.parent)),
    "_load_from_bytes": lambda mark: Asks(torch.storage._load_from_bytes, b""),
    "loads": lambda mark: Asks(pickle.loads, pickle.dumps(Asks(os.system, f"touch {mark}"))),
    "attrgetter": lambda mark: Asks(__import__("operator").attrgetter, "system"),
}


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_by_name(name: str, how: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "a.pt"
    tree = {"weight": torch.zeros(2) if how != "bare" else 0, "more": HOSTILE[name](mark)}
    if how == "bare":
        file.write_bytes(pickle.dumps(tree))
    else:
        torch.save(tree, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=rf"a\.pt refers to [\w.]+\.{name}, which weight files never need") as caught:
        read_pickled(file)
    assert "\n" not in str(caught.value) and not mark.exists() and file.exists()


def test_refused_classes_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text(marked(tmp_path / "mark"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.pkl").write_bytes(b"ctrap\nThing\n.")
    with pytest.raises(ValueError, match=r"refers to trap\.Thing"):
        read_pickled(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0dcore.trap.sys\x93.")  # a dotted name goes nowhere
    assert issubclass(read_pickled(tmp_path / "b.pkl"), OpaqueObject)
    assert not (tmp_path / "mark").exists()


ARCHIVE = io.BytesIO()
with zipfile.ZipFile(ARCHIVE, "w") as _archive:
    _archive.writestr("word/document.xml", "text")
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"<html>404</html>", "was not written by torch.save"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is an image, and holds no weights"),
    "cut": (pickle.dumps(list(range(99)))[:-20], "was not written by torch.save"),
    "a long text that is not there": (b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"x.", "damaged"),
    "room for many objects": (b"\x80\x02]r\xff\xff\xff\x7f.", "declares 2,147,483,647 objects"),
    "an extension": (b"\x80\x02\x82\x01.", "refers to the registered extension 1"),
    "another archive": (ARCHIVE.getvalue(), "is a ZIP archive with 0 members NAME/data.pkl, and torch.save writes one"),
    "an unknown reference": (b"\x80\x02X\x01\x00\x00\x00aQ.", "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_checkpoints_give_a_one_line_error(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_pickled(tmp_path / "a.pkl")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        read_pickled(tmp_path / "b.pkl")


def rewritten(file: Path, change: Callable[[str, bytes], bytes], packed: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", packed) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_archives_with_false_sizes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1000)}, file)
    rewritten(file, lambda name, content: content, zipfile.ZIP_DEFLATED)  # a bomb would be packed
    with pytest.raises(ValueError, match="not what torch.save writes"):
        read_pickled(file)
    torch.save({"a": torch.zeros(1000)}, file)
    rewritten(file, lambda name, content: b" " * 10**6 if name.endswith("byteorder") else content)
    with pytest.raises(ValueError, match=r"big-endian"):
        read_pickled(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), pickle.dumps(1))
        archive.writestr("a/byteorder", b" " * 10**6)
    with pytest.raises(ValueError, match=r"declares 1,000,000 bytes of a/byteorder, which is not what torch"):
        read_pickled(file)
    torch.save({"a": torch.zeros(1000)}, file)
    rewritten(file, lambda name, content: content[:400] if "/data/" in name else content)
    with pytest.raises(ValueError, match=r"declares 400 bytes for 1,000 numbers of torch\.float32"):
        read_pickled(file)
    torch.save({"a": torch.zeros(1000)}, file)
    rewritten(file, lambda name, content: b"big" if name.endswith("byteorder") else content)
    with pytest.raises(ValueError, match="big-endian"):
        read_pickled(file)


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(0, (11,), (1,)), (5, (3, 3), (2, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))]
)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_outside_their_storage_are_refused(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path
) -> None:
    class Tensorlike:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            arguments = torch.zeros(10).storage(), offset, size, stride, False, collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, arguments

    torch.save([Tensorlike()], tmp_path / "a.pt")
    with pytest.raises(ValueError, match="declares a tensor of size"):
        read_pickled(tmp_path / "a.pt")


SAVED: list[bytes] = []
for _zipped in (True, False):
    _stream = io.BytesIO()
    torch.save(
        {"state_dict": nn.Linear(3, 2).state_dict(), "layer": nn.Conv2d(1, 1, 1), "step": 7},
        _stream,
        _use_new_zipfile_serialization=_zipped,
    )
    SAVED.append(_stream.getvalue())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from(SAVED),
    end=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_damaged_files_are_read_or_refused(
    which: bytes, end: float, flips: list[tuple[float, int]], tmp_path: Path
) -> None:
    content = bytearray(which)
    for at, value in flips:
        content[int(at * len(content))] = value
    (tmp_path / "a.pt").write_bytes(content if flips else content[: int(end * len(content))])
    with contextlib.suppress(ValueError):
        read_pickled(tmp_path / "a.pt")
