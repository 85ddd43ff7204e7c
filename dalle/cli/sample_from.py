"""`dalle sample --from IMAGE`: options of a generated PNG, from its metadata. Does not import torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from dalle.config import from_dict
from dalle.files import parse_json, printable, sha256
from dalle.generation.options import SamplingConfig, UnCLIPOptions

log = logging.getLogger(__name__)

RECORDED = ("model", "image_tokenizer", "text_tokenizer", "text_encoder", "given", "keep_rows", "dtype")
"""Options besides those of sampling that determine an image, always recorded with it."""
RECORDED_IF_GIVEN = ("prior", "negative", "size")
"""The same, recorded only where they were given."""
_FILES = ("image", "mask")
_GROUPS = {"sampling": SamplingConfig, "diffusion": UnCLIPOptions}


def read_metadata(file: Path) -> dict[str, str]:
    """Metadata of a PNG that was generated here.

    Raises:
        ValueError: it has none.
    """
    from dalle.images.read import read_image

    texts = {str(name): text for name, text in read_image(file).info.items() if isinstance(text, str)}
    if "models" in texts and "command" in texts:
        raise ValueError(f"{file} was painted, not sampled: {texts['command']}")
    missing = [name for name in ("prompt", "seed", "options", "model") if name not in texts]
    if missing:
        raise ValueError(
            f"{file} has no {missing[0]} in its metadata: give a PNG of `dalle sample` or `dalle serve` as it was "
            "written (other programs drop metadata when they save an image)"
        )
    return texts


def options_from(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that generate the image of a PNG again, with those that are given changed.

    Args:
        file: the PNG.
        given: options of the command line by the names of `SampleConfig`.

    Returns:
        `given` and what the metadata says, as for `SampleConfig`.

    Raises:
        ValueError: the file has no such metadata, or was generated from an image that is not given.
    """
    texts = read_metadata(file)
    try:
        recorded, seed = parse_json(texts["options"]), int(texts["seed"])
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict):
        raise ValueError(f"{file}: its metadata is damaged")
    _warn_of_options(file, recorded)
    values: dict[str, Any] = {"prompts": [texts["prompt"]], "seed": seed, "n": 1}
    values |= {name: recorded[name] for name in (*RECORDED, *RECORDED_IF_GIVEN) if recorded.get(name) is not None}
    for group, schema in _GROUPS.items():
        # A null of sampling is a value (all codes); one of an unCLIP is the model's own
        names = [one.name for one in fields(schema) if one.name in recorded]
        own = {name: recorded[name] for name in names if schema is SamplingConfig or recorded[name] is not None}
        from_dict(schema, own, f"the metadata of {file}")  # else an error would name the command line
        values[group] = own | given.get(group, {})
    # They exclude each other: what is given wins
    if "mask" in given:
        values.pop("keep_rows", None)
    kept = _FILES[:1] if "keep_rows" in given else _FILES
    _check_files(file, {name: recorded[name] for name in kept if name in recorded}, given)
    # `argparse` gives [] where there is no PROMPT
    return values | {name: value for name, value in given.items() if name not in _GROUPS and value != []}


def _warn_of_options(file: Path, recorded: Mapping[str, Any]) -> None:
    """Log which options are recorded that are none here, and which are not: the model's own take their place."""
    groups = {name: {one.name for one in fields(schema)} for name, schema in _GROUPS.items()}
    known = {*RECORDED, *RECORDED_IF_GIVEN, *_FILES}.union(*groups.values())
    unknown = sorted(recorded.keys() - known)
    if unknown:
        log.warning("%s records what is no option here, and is ignored: %s", file, printable(", ".join(unknown)))
    # Agreement changes which images are kept, and none of them
    missing = sorted(groups["sampling"] - recorded.keys() - {"agreement"})
    if missing and not recorded.keys() & groups["diffusion"]:
        log.warning("%s does not record %s: the model's own are taken", file, ", ".join(missing))


@contextmanager
def naming_options_of(file: Path | None) -> Iterator[None]:
    """Say in errors where the options come from that were not given; None: they were all given.

    Raises:
        ValueError: as in the block, with `file`.
    """
    try:
        yield
    except ValueError as error:
        if file is None or str(file) in str(error):
            raise
        raise ValueError(f"{error} (options that are not given are those of {file})") from error


def check_model(file: Path, source: str | None, model_hash: str) -> None:
    """Check that a model is the one that generated the image of a PNG, unless another was asked for.

    Args:
        file: the PNG.
        source: where the model was loaded from.
        model_hash: its hash.

    Raises:
        ValueError: it is another one, though it comes from where the metadata says.
    """
    texts = read_metadata(file)
    if texts["model"] == model_hash:
        return
    difference = f"{file} was generated by a model with sha256 {texts['model']}, and this one has {model_hash}"
    if source == json.loads(texts["options"]).get("model"):
        raise ValueError(f"{difference}: give its folder as --model")
    log.warning("%s", difference)


def _check_files(file: Path, records: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that an image that was continued and its mask are given again; other ones are a change, which is logged."""
    known = {name: record if isinstance(record, dict) else {} for name, record in records.items()}
    problems = []
    # Masks of a server are transparent where those of the command are white: only another file can say the same
    clear = known.pop("mask") if known.get("mask", {}).get("transparent") is True else None
    missing = [name for name in known if given.get(name) is None]
    if missing:
        names = " and ".join(str(known[name].get("file", f"another {name}")) for name in missing)
        options, pronoun = " and ".join(f"--{name}" for name in missing), "it" if len(missing) == 1 else "them"
        problems.append(f"was generated from {names}: give {pronoun} as {options}")
    if clear is not None and not _is_another(given.get("mask"), clear):
        name = clear.get("file", "mask")
        problems.append(f"was drawn where its {name} is transparent: give as --mask an image that is white there")
    if problems:
        raise ValueError(f"{file} {'; it '.join(problems)}")
    for name, record in known.items():
        if given[name].is_file() and _is_another(given[name], record):
            log.warning("%s is not the %s that %s was generated from", given[name], name, file)


def _is_another(given: Path | None, record: Mapping[str, Any]) -> bool:
    """Whether a file is given that is not the recorded one."""
    return given is not None and not (given.is_file() and sha256(given) == record.get("sha256"))
