"""Detects which family of language models that draw a file is of, and reads it with its tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoints.published import chameleon, emu3, emu35, janus, liquid, llama, lumina2, simplear
from dalle.checkpoints.published.others import reject_unsupported

_LOADERS = {
    "janus": janus.load,
    "chameleon": chameleon.load,
    "lumina": chameleon.load_lumina,
    "lumina2": lumina2.load,
    "liquid": liquid.load,
    "emu3": emu3.load,
    "emu35": emu35.load,
    "simplear": simplear.load,
}
LANGUAGE_MODELS = tuple(_LOADERS)


def family_of(tensors: Iterable[str], folder: Path) -> str | None:
    """The family of a language model, by the names in its files and its config.json; None if it is none of them.

    Raises:
        ValueError: config.json is damaged.
    """
    names = set(tensors)
    if janus.is_of(names):
        return "janus"
    if chameleon.is_of(names):
        return "lumina2" if lumina2.is_of(folder) else "chameleon"
    if emu3.is_of(names):
        return "emu3"
    # All models in Hugging Face's layout have this name: config.json tells which
    if "model.embed_tokens.weight" in names:
        kind = llama.read_settings(folder / llama.SETTINGS).get("model_type")
        if kind in emu3.MODEL_TYPES:
            normed = any(name.endswith("self_attn.q_norm.weight") for name in names)
            return "emu35" if normed else "emu3"
        if kind == simplear.MODEL_TYPE and simplear.is_of(names):
            return "simplear"
        return "liquid" if kind == liquid.MODEL_TYPE else None
    return None


def read_language_model(
    source: Path, file: Path, tensors: dict[str, Tensor], family: str | None, given: dict[str, Any]
) -> llama.LanguageModel:
    """Read a language model that draws.

    Args:
        source: what the user gave.
        file: its weight file, or the index of several; config.json and tokenizer.json are beside it.
        tensors: tensors by their published names.
        family: one of `LANGUAGE_MODELS`; None detects it.
        given: the user's options.

    Raises:
        ValueError: it is of no known family, damaged, or an option has to be given.
    """
    found = family_of(tensors, file.parent)
    if found == "chameleon" and (family == "lumina" or (family is None and "lumina" in str(source).lower())):
        found = "lumina"  # the same tensors as an Anole: only its name tells
    if found is None:
        reject_unsupported(tensors)
    if found is None or family not in (None, found):
        expected = f"of the family {family}" if family else f"({', '.join(LANGUAGE_MODELS)})"
        raise ValueError(f"it is no language model that draws {expected}: give another file, or omit family")
    settings = llama.read_settings(file.parent / llama.SETTINGS)
    return _LOADERS[found](llama.Files(source, file.parent, tensors, settings, given))
