#!/usr/bin/env python3
"""Set a validation split apart from the training images of both sets: python data/hold_out.py, once, after build.py.

Training is steered by `validation` (the best checkpoint, options that are compared), so that the `test_*` splits are
looked at once, at the end. A held-out pair is a concept in a style, chosen by a hash of their names, whose concept is
trained on in at least three other styles. What would give it away leaves `train` too, as `excluded`: the Fluent
styles share outlines (flat, high contrast and 3D are one drawing), and so do an icon set's variants of one icon.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from functools import cache
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

HERE = Path(__file__).parent
SHARE = {"emoji": 0.03, "icons": 0.02}  # of the pairs that may be chosen
STYLES_LEFT = 3  # in which a held-out pair's concept is trained on, at least
FLUENT = ("fluent-3d", "fluent-flat", "fluent-mono")
HELD_OUT = ("validation", "test_pair", "test_block", "test_concept")


def chance(*names: str) -> float:
    """A number in [0, 1) that depends on these names only."""
    return int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:8], "big") / 2**64


class Emoji:
    """Which drawings of the emoji set show one outline."""

    folder = HERE / "emoji" / "images"
    columns = ("codepoints", "style")

    @staticmethod
    def hand(row: dict[str, str]) -> str:
        return "fluent" if row["style"] in FLUENT else row["style"]


class Icons:
    """Which drawings of the icons show one outline."""

    folder = HERE / "icons" / "icons"
    columns = ("concept", "family")

    @staticmethod
    def hand(row: dict[str, str]) -> str:
        return row["set"]


@cache
def trained_emoji() -> set[str]:
    """Names of what the emoji set trains on."""
    tables = [parquet.read_table(file, columns=["name", "split"]) for file in Emoji.folder.glob("*.parquet")]
    return {row["name"].lower() for table in tables for row in table.to_pylist() if row["split"] == "train"}


def hold_out(kind: type[Emoji] | type[Icons], share: float) -> dict[str, int]:
    """Write the splits of a set anew; returns how many drawings each has."""
    files = sorted(kind.folder.glob("*.parquet"))
    tables = {file: parquet.read_table(file) for file in files}
    rows = [
        row
        for table in tables.values()
        for row in table.drop_columns(["image"] if "image" in table.column_names else ["body"]).to_pylist()
    ]
    if any(row["split"] == "validation" for row in rows):
        raise SystemExit(f"{kind.folder} has a validation split already: build.py writes its files without one")
    concept, style = kind.columns
    drawings = defaultdict(list)  # of a concept
    for row in rows:
        drawings[row[concept]].append(row)
    for name, own in drawings.items():
        styles = sorted({row[style] for row in own if row["split"] == "train"})
        for chosen in styles:
            if chance("validation", name, chosen) >= share:
                continue
            taken = [row for row in own if row["split"] == "train" and row[style] == chosen]
            hands = {kind.hand(row) for row in taken}
            twins = [row for row in own if row["split"] == "train" and kind.hand(row) in hands and row not in taken]
            kept = {row[style] for row in own if row["split"] == "train" and row not in taken and row not in twins}
            if len(kept) < STYLES_LEFT:
                continue
            for row in taken:
                row["split"] = "validation"
            for row in twins:
                row["split"] = "excluded"
        if kind is Emoji:  # a held-out drawing of one Fluent style is not to be solved by its twins
            fluent = [row for row in own if row[style] in FLUENT]
            if any(row["split"] in HELD_OUT for row in fluent):
                for row in fluent:
                    if row["split"] == "train":
                        row["split"] = "excluded"
    if kind is Icons:  # a concept that the emoji train on is not unseen
        for row in rows:
            if row["split"] == "test_concept" and row["name"].lower() in trained_emoji():
                row["split"] = "excluded"
    start = 0
    counts: dict[str, int] = defaultdict(int)
    for file, table in tables.items():
        splits = [row["split"] for row in rows[start : start + len(table)]]
        start += len(table)
        for split in splits:
            counts[split] += 1
        table = table.set_column(table.column_names.index("split"), "split", pyarrow.array(splits))
        parquet.write_table(table, file, compression="zstd", compression_level=19, row_group_size=4096)
    return dict(counts)


if __name__ == "__main__":
    for kind, name in ((Emoji, "emoji"), (Icons, "icons")):
        print(name, hold_out(kind, SHARE[name]))
