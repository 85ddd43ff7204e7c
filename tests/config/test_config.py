"""Strict configs: what is refused and in what words, overrides, YAML, and the help that is made of the fields."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dalle.cli.parser import print_error
from dalle.config import (
    ConfigError,
    apply_overrides,
    config,
    describe,
    descriptions,
    dump,
    from_dict,
    load,
    read_yaml,
    renamed,
    to_dict,
    type_name,
)


@config
class Table:
    kind: Literal["table"] = "table"
    size: int = 512
    """How many codes there are."""


@config
class Levels:
    kind: Literal["levels"] = "levels"
    levels: tuple[int, ...] = (8, 5, 5)
    """Levels of each channel."""


@config
class Optim:
    lr: float = 3e-4
    """Peak learning rate,
    after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 100
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}, expected above 0")


@config
class Root:
    name: str
    out: Path = Path("runs")
    quantizer: Table | Levels = Table()
    spare: Table | Levels | None = None
    optim: Optim = Optim()
    second: Optim | None = None
    debug: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    prompts: tuple[str, ...] = ()
    grid: list[int] | None = None


def build(**values: Any) -> Root:
    root = from_dict(Root, {"name": "x"} | values, "f.yaml")
    assert isinstance(root, Root)
    return root


def mistakes(**values: Any) -> list[str]:
    """Lines of the error, less the file in front."""
    with pytest.raises(ConfigError) as raised:
        build(**values)
    lines = str(raised.value).split("\n")
    assert all(line.startswith("f.yaml: ") for line in lines)
    return [line.removeprefix("f.yaml: ") for line in lines]


# ---- classes


def test_a_config_is_frozen_and_takes_keywords_only() -> None:
    optim = Optim(lr=1e-3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        optim.lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Optim(1e-3)  # type: ignore[misc]
    assert optim == Optim(lr=1e-3) and hash(optim) == hash(Optim(lr=1e-3))


def test_missing_fields_take_defaults() -> None:
    assert build() == Root(name="x")
    assert build(optim={"warmup": 3}).optim == Optim(warmup=3)


# ---- what is refused


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"nam": 1}, "nam: unknown key; did you mean name?"),
        ({"optim": {"warm_up": 1}}, "optim.warm_up: unknown key; did you mean optim.warmup?"),
        ({"optim": {"zzz": 1}}, "optim.zzz: unknown key; known here: lr, betas, warmup, clip"),
        ({"quantizer": {"kind": "levels", "size": 3}}, "quantizer.size: unknown key; known here: kind, levels"),
        ({"quantizer": {"kind": "tabel"}}, "quantizer.kind: expected one of table, levels, got 'tabel'"),
        ({"quantizer": {"size": 3}}, "quantizer.kind: expected one of table, levels, got 'nothing'"),
        ({"quantizer": {"kind": ["table"]}}, "quantizer.kind: expected one of table, levels, got ['table']"),
        ({"quantizer": 3}, "quantizer: expected options of kind table, levels, got 3"),
        ({"quantizer": None}, "quantizer: expected options of kind table, levels, got nothing"),
        ({"spare": [1]}, "spare: expected options of kind table, levels or null, got a list"),
        ({"spare": {"kind": "table", "size": "a"}}, "spare.size: expected an integer, got 'a'"),
        ({"optim": None}, "optim: expected options, got nothing"),
        ({"second": [1]}, "second: expected options or null, got a list"),
        ({"second": {"lr": "a"}}, "second.lr: expected a number, got 'a'"),
        ({"name": 3}, "name: expected text, got 3"),
        ({"out": 3}, "out: expected a path, got 3"),
        ({"precision": "fp8"}, "precision: expected one of fp32, bf16, got 'fp8'"),
        ({"prompts": "abc"}, "prompts: expected a list of (text), got 'abc'"),
        ({"prompts": ["a", 3]}, "prompts.1: expected text, got 3"),
        ({"optim": {"betas": [0.9, "a"]}}, "optim.betas.1: expected a number, got 'a'"),
        ({"optim": {"betas": [0.9]}}, "optim.betas: expected a list of 2 x (a number), got [0.9]"),
        ({"optim": {"betas": []}}, "optim.betas: expected a list of 2 x (a number), got []"),
        ({"optim": {"betas": [1, 2, 3]}}, "optim.betas: expected a list of 2 x (a number), got [1, 2, 3]"),
        ({"optim": {"lr": -1}}, "optim: lr is -1.0, expected above 0"),
        ({"optim": {"lr": "a\nb"}}, r"optim.lr: expected a number, got 'a\nb'"),
    ],
    ids=str,
)
def test_errors_name_what_was_given_and_expected(values: dict[str, Any], line: str) -> None:
    assert mistakes(**values) == [line]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"debug": 1}, "debug: expected true or false, got 1"),
        ({"debug": "yes"}, "debug: expected true or false, got 'yes'"),
        ({"debug": None}, "debug: expected true or false, got None"),
        ({"optim": {"lr": "3e-4"}}, "optim.lr: expected a number, got '3e-4'"),
        ({"optim": {"lr": True}}, "optim.lr: expected a number, got True"),
        ({"optim": {"clip": "1"}}, "optim.clip: expected a number or null, got '1'"),
        ({"optim": {"warmup": "3"}}, "optim.warmup: expected an integer, got '3'"),
        ({"optim": {"warmup": True}}, "optim.warmup: expected an integer, got True"),
        ({"optim": {"warmup": 2.5}}, "optim.warmup: expected an integer, got 2.5"),
        ({"optim": {"betas": ["0.9", 0.5]}}, "optim.betas.0: expected a number, got '0.9'"),
        ({"grid": [8, "8"]}, "grid.1: expected an integer, got '8'"),
        ({"grid": [True, 8]}, "grid.0: expected an integer, got True"),
        ({"grid": [8, 2.5]}, "grid.1: expected an integer, got 2.5"),
        ({"quantizer": {"kind": "levels", "levels": ["8"]}}, "quantizer.levels.0: expected an integer, got '8'"),
        # What they would be converted to is out of range, too
        ({"optim": {"lr": "nan"}}, "optim.lr: expected a number, got 'nan'"),
        ({"optim": {"lr": "-1"}}, "optim.lr: expected a number, got '-1'"),
        ({"optim": {"lr": False}}, "optim.lr: expected a number, got False"),
        (
            {"optim": {"warmup": 1e99}},
            "optim.warmup: expected an integer, got 1e+99, which is too large: is it mistyped?",
        ),
    ],
    ids=str,
)
def test_no_value_is_turned_into_another_type(values: dict[str, Any], line: str) -> None:
    assert mistakes(**values) == [line]


def test_whole_numbers_fit_int_and_float() -> None:
    root = build(optim={"lr": 1, "warmup": 1e3})
    assert (root.optim.lr, root.optim.warmup) == (1.0, 1000)
    assert (type(root.optim.lr), type(root.optim.warmup)) == (float, int)


def test_all_errors_are_reported_at_once() -> None:
    found = mistakes(
        nonsense=1,
        name=2,
        quantizer={"kind": "levels", "levels": [1, "a"], "size": 4},
        optim={"lr": 0, "wramup": 1},
        second={"lr": "fast", "betas": 0.9},
        debug="no",
    )
    assert {line.split(":")[0] for line in found} == {
        "nonsense", "name", "quantizer.levels.1", "quantizer.size", "optim", "optim.wramup", "second.lr",
        "second.betas", "debug",
    }  # fmt: skip
    assert len(found) == 9


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^f.yaml: name: missing$"):
        from_dict(Root, {}, "f.yaml")


def test_keys_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^f.yaml: 3: unknown key; known here: kind, size$"):
        from_dict(Table, {3: 4}, "f.yaml")


def test_schema_may_be_a_union() -> None:
    assert from_dict(Table | Levels, {"kind": "levels"}, "f.yaml") == Levels()
    with pytest.raises(ConfigError, match=r"^f.yaml: kind: expected one of table, levels, got 'nothing'$"):
        from_dict(Table | Levels, {}, "f.yaml")


# ---- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5e1", 5.0), ("3.e2", 300.0), ("1_000", 1000),
        ("1e", "1e"), ("e3", "e3"), ("1e3x", "1e3x"), ("'1e3'", "1e3"), ("~", None), ("true", True),
    ],
)  # fmt: skip
def test_yaml_numbers_are_read_with_their_type(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "a.yaml").write_text(f"a: {text}\n")
    found = read_yaml(tmp_path / "a.yaml")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2\n", "not valid YAML: expected ',' or ']', but got '<stream end>' in line 2, column 1"),
        (b"a: b: c\n", "not valid YAML: mapping values are not allowed here in line 1, column 5"),
        (b"a: 1\nb: {c: 1, c: 2}\n", "not valid YAML: the key c is there twice in line 2, column 4"),
        (b"a: !!python/object/apply:os.getcwd []\n", "not valid YAML: could not determine a constructor"),
        (b"a: \x01\n", "not valid YAML: unacceptable character"),
        (b"\xff\xfe\x00", "not a YAML file, it is not UTF-8 text"),
        (b"", "expected `key: value` lines, found nothing"),
        (b"- a\n", "expected `key: value` lines, found a list"),
        (b"text\n", "expected `key: value` lines, found 'text'"),
    ],
)
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_yaml(file)
    assert str(raised.value).startswith(f"{file}: {message}")
    assert "\n" not in str(raised.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a.yaml: no such file$"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="is a folder, expected a YAML file$"):
        read_yaml(tmp_path)


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("one: &one {lr: 1, warmup: 2}\ntwo: {<<: *one, lr: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["two"] == {"lr": 3, "warmup": 2}


# ---- overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=2", {"a": 2, "b": {"c": 1, "n": None}}),
        ("b.c=1e-3", {"a": 1, "b": {"c": 1e-3, "n": None}}),
        ("b.n.x.y=z", {"a": 1, "b": {"c": 1, "n": {"x": {"y": "z"}}}}),
        ("new.key=[1, two, null]", {"a": 1, "b": {"c": 1, "n": None}, "new": {"key": [1, "two", None]}}),
        ("b=null", {"a": 1, "b": None}),
        ("b={c: 5}", {"a": 1, "b": {"c": 5}}),
        ("a=", {"a": None, "b": {"c": 1, "n": None}}),
        ("a=x=y", {"a": "x=y", "b": {"c": 1, "n": None}}),
        ("a='2'", {"a": "2", "b": {"c": 1, "n": None}}),
        ("a=गुलाबी हात्ती", {"a": "गुलाबी हात्ती", "b": {"c": 1, "n": None}}),
    ],
)
def test_overrides_set_nested_keys(override: str, expected: dict[str, Any]) -> None:
    data = {"a": 1, "b": {"c": 1, "n": None}}
    assert apply_overrides(data, [override]) == expected
    assert data == {"a": 1, "b": {"c": 1, "n": None}}  # as it was


def test_later_overrides_win() -> None:
    assert apply_overrides({}, ["a.b=1", "a.b=2", "a.c=3"]) == {"a": {"b": 2, "c": 3}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "'lr': expected key.path=value, for example optim.lr=3e-4"),
        ("=3", "'=3': expected key.path=value"),
        ("a..b=3", "'a..b=3': expected key.path=value"),
        (".a=3", "'.a=3': expected key.path=value"),
        ("a=[1", "'a=[1': the value is not valid YAML: expected ',' or ']'"),
        ("a.b=1", "'a.b=1': a is 1, it has no keys"),
        ("l.0=1", "'l.0=1': l is a list, it has no keys"),
        ("d.e.f.g=1", "'d.e.f.g=1': d.e.f is 'text', it has no keys"),
    ],
)
def test_wrong_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        apply_overrides({"a": 1, "l": [1], "d": {"e": {"f": "text"}}}, [override])
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_load_applies_overrides(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: x\noptim: {lr: 1e-4}\n")
    root = load(Root, file, ["optim.warmup=7", "second.lr=1e-2", "quantizer={kind: levels}"])
    assert root == Root(
        name="x", optim=Optim(lr=1e-4, warmup=7), second=Optim(lr=1e-2), quantizer=Levels(levels=(8, 5, 5))
    )
    with pytest.raises(ConfigError) as raised:
        load(Root, file, ["optim.lr=fast"])
    assert str(raised.value) == f"{file}: optim.lr: expected a number, got 'fast'"


# ---- there and back


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))
optims = st.builds(
    Optim,
    lr=st.floats(min_value=1e-30, max_value=1e30),
    betas=st.tuples(finite, finite),
    warmup=st.integers(),
    clip=st.none() | finite,
)
quantizers = st.builds(Table, size=st.integers()) | st.builds(
    Levels, levels=st.lists(st.integers(), max_size=4).map(tuple)
)
roots = st.builds(
    Root,
    name=texts,
    out=st.sampled_from([Path("runs"), Path("/a b/ç"), Path(".")]),
    quantizer=quantizers,
    spare=st.none() | quantizers,
    optim=optims,
    second=st.none() | optims,
    debug=st.booleans(),
    precision=st.sampled_from(["fp32", "bf16"]),
    prompts=st.lists(texts, max_size=3).map(tuple),
    grid=st.none() | st.lists(st.integers(), max_size=3),
)


@settings(max_examples=40, deadline=None)
@example(Root(name="1e-3", prompts=("1E5", "null", "true", "3", "- a", "a: b", "~", " x ", "")))
@given(roots)
def test_dump_loads_back_equal(root: Root) -> None:
    assert from_dict(Root, to_dict(root), "f.yaml") == root
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.yaml").write_text(dump(root), encoding="utf-8")
        assert load(Root, Path(folder) / "a.yaml") == root


def test_dump_has_every_field_in_order() -> None:
    assert list(to_dict(Root(name="x"))) == [field.name for field in dataclasses.fields(Root)]
    assert dump(Root(name="x", prompts=("एक",))).startswith("name: x\nout: runs\nquantizer: {kind: table, size: 512}\n")
    assert "एक" in dump(Root(name="x", prompts=("एक",)))


# ---- help


def test_help_has_every_option_with_type_default_and_meaning() -> None:
    lines = [line.split(maxsplit=1) for line in describe(Root).splitlines()]
    shown = dict(lines)
    assert shown["name"] == "text, required"
    assert shown["out"] == "a path = runs"
    assert shown["quantizer.kind"] == "one of table, levels = table"
    assert shown["quantizer.size"] == "an integer = 512. How many codes there are."
    assert shown["spare"] == "options of kind table, levels or null = null"
    assert shown["spare.levels"] == "(kind levels)  a list of (an integer) = [8, 5, 5]. Levels of each channel."
    assert shown["optim.lr"] == "a number = 0.0003. Peak learning rate, after the warm-up."
    assert shown["optim.clip"] == "a number or null = null"
    assert shown["second"] == "options or null = null"
    assert shown["second.betas"] == "a list of 2 x (a number) = [0.9, 0.95]"
    assert shown["precision"] == "one of fp32, bf16 = fp32"
    assert shown["debug"] == "true or false = false"
    assert shown["prompts"] == "a list of (text) = []"
    names = [name for name, _ in lines]
    fields = [field.name for field in dataclasses.fields(Root)]
    assert list(dict.fromkeys(name.split(".")[0] for name in names)) == fields
    assert {name for name in names if name.startswith("optim.")} == {
        f"optim.{f.name}" for f in dataclasses.fields(Optim)
    }


def test_help_shows_the_values_of_a_file() -> None:
    text = describe(Root, {"name": "x", "quantizer": {"kind": "levels"}, "optim": {"lr": 0.5}, "prompts": ["a", "b"]})
    shown = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert shown["name"] == "text = x"
    assert shown["quantizer.kind"] == "one of table, levels = levels"
    assert "quantizer.size" not in shown
    assert shown["optim.lr"].startswith("a number = 0.5.")
    assert shown["prompts"] == "a list of (text) = [a, b]"


def test_field_descriptions_are_inherited() -> None:
    @config
    class Longer(Table):
        depth: int = 2
        """How deep."""

    assert descriptions(Longer) == {"size": "How many codes there are.", "depth": "How deep."}


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (list[str], "a list of (text)"),
        (tuple[int, int], "a list of 2 x (an integer)"),
        (float | None, "a number or null"),
        (Literal["a"], "a"),
        (Literal["a", "b"], "one of a, b"),
        (Table, "options"),
        (Table | Levels, "options of kind table, levels"),
    ],
)
def test_type_names_are_words(annotation: Any, words: str) -> None:
    assert type_name(annotation) == words


def test_print_error_names_the_program_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_error("train.py", ConfigError("a: wrong\nb: wrong")) == 2
    assert capsys.readouterr().err == "train.py: a: wrong\ntrain.py: b: wrong\n"


@config
class Renamed:
    steps: int = 1
    normalized: bool = True
    crop: Literal["center", "random"] = "center"


def test_old_keys_and_values_are_named_in_recipes_and_read_from_what_was_saved() -> None:
    old = {"updates": 3, "normalised": False, "crop": "centre"}
    with pytest.raises(ConfigError) as caught:
        from_dict(Renamed, old, "old.yaml")
    assert str(caught.value).splitlines() == [
        "old.yaml: updates: this key is steps now",
        "old.yaml: normalised: this key is normalized now",
        "old.yaml: crop: centre is called center now",
    ]
    assert from_dict(Renamed, renamed(old), "old") == Renamed(steps=3, normalized=False)
    assert renamed({"data": {"crop": "centre"}, "crop": 0.5}) == {"data": {"crop": "center"}, "crop": 0.5}


@pytest.mark.parametrize(
    "text, value",
    [
        ("runs/exp #3", "runs/exp #3"),
        ("#3", "#3"),
        ("a#b", "a#b"),
        ("'runs/exp #3'", "runs/exp #3"),
        ("{a: 'x #1', b: 2}", {"a": "x #1", "b": 2}),
        ("3", 3),
    ],
)
def test_hash_in_an_override_is_no_comment(text: str, value: object) -> None:
    assert apply_overrides({}, [f"key={text}"]) == {"key": value}


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 5000, "nested too deep"),
        ("9" * 5000, "Exceeds the limit"),
        ("2026-02-31", "not valid YAML: day is out of range for month"),
        ("&a [1, *a]", "a value contains itself in line 1, column"),
        ("&a {b: {c: *a}}", "a value contains itself in line 1, column"),
        ("{a: x #1}", "a # after a space begins a comment: put the text in quotes"),
    ],
    ids=["deep", "long number", "date", "list in itself", "mapping in itself", "comment"],
)
def test_invalid_yaml_values_give_a_one_line_error(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        apply_overrides({}, [f"key={text}"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    if "#" not in text:
        file = tmp_path / "x.yaml"
        file.write_text(f"key: {text}\n")
        with pytest.raises(ConfigError, match=message) as caught:
            read_yaml(file)
        assert "\n" not in str(caught.value)
