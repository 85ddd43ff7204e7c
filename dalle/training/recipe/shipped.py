"""Recipes that ship, by name: emoji/dalle is configs/emoji/dalle.yaml, emoji-bpe tokenizers/emoji-bpe/config.yaml."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from dalle.config import ConfigError
from dalle.files import ROOT


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship, in a checkout or in an installed wheel, by name."""
    configs, tokenizers = ROOT / "configs", ROOT / "tokenizers"
    found = {
        file.relative_to(configs).with_suffix("").as_posix(): file
        for file in sorted(configs.rglob("*.yaml"), key=lambda file: file.with_suffix(""))
        if file.parent.name != "accelerate"  # what its launcher reads
    }
    return found | {file.parent.name: file for file in sorted(tokenizers.glob("*/config.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The file that a recipe's path or name means; a file of the working folder comes first.

    Args:
        name: a YAML file; one that ships, by its path in the repository; or its name, without folder and `.yaml`.

    Raises:
        ConfigError: there is no such file, and no recipe of that name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if not path.is_absolute() and (ROOT / path).is_file():
        return ROOT / path
    recipes = shipped_recipes()
    if path.as_posix() in recipes:
        return recipes[path.as_posix()]
    if path.exists():  # what is wrong with it is for its reader to say
        return path
    if path.suffix:
        there = [file.as_posix() for file in sorted(path.parent.glob("*.y*ml"))]
        there += [file.relative_to(ROOT).as_posix() for file in recipes.values()]
        near = get_close_matches(path.as_posix(), there, 1)
        raise ConfigError(f"{name}: no such file" + (f"; did you mean {near[0]}?" if near else ""))
    near = get_close_matches(path.as_posix(), recipes, 1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{name}: no such file, and no recipe of that name; {meant}those that ship: {', '.join(recipes)}")
