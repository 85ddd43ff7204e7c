"""Detects which family of language models that draw a file is of, and reads it with its tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoints.published import chameleon, emu3, emu35, janus, liquid, llama, lumina2, simplear
from dalle.checkpoints.published.files import reject_packed
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
_TYPES: dict[str, set[str]] = {  # what config.json calls them
    "janus": set(janus.MODEL_TYPES),
    "chameleon": {chameleon.MODEL_TYPE},
    "lumina": {chameleon.MODEL_TYPE},
    "lumina2": {chameleon.MODEL_TYPE},
    "liquid": {liquid.MODEL_TYPE},
    "emu3": set(emu3.MODEL_TYPES),
    "emu35": set(emu3.MODEL_TYPES),
    "simplear": {simplear.MODEL_TYPE},
}


def family_of(tensors: Iterable[str], folder: Path) -> str | None:
    """The family of a language model, by the names in its files and its config.json; None if it is none of them.

    Raises:
        ValueError: config.json is damaged, or another library has packed the weights.
    """
    names = set(tensors)
    reject_packed(names)
    if janus.is_of(names):
        return "janus"
    if chameleon.is_of(names):
        return "lumina2" if lumina2.is_of(folder) else "chameleon"
    if emu3.is_of(names):
        return "emu3"
    # All models in Hugging Face's layout have this name: config.json tells which
    if "model.embed_tokens.weight" in names:
        kind = llama.read_settings(folder / llama.SETTINGS).get("model_type")
        # What the tensors say comes first: the config.json beside them may be another model's
        if simplear.is_of(names):
            return "simplear" if kind == simplear.MODEL_TYPE else None
        if kind in emu3.MODEL_TYPES and "lm_head.weight" in names:
            normed = any(name.endswith("self_attn.q_norm.weight") for name in names)
            return "emu35" if normed else "emu3"
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
        known = f"it is none of the language models that draw ({', '.join(LANGUAGE_MODELS)}): give another file"
        named = f"it is no language model that draws of the family {family}: give another file, or omit family"
        raise ValueError(named if family else known)
    settings = llama.read_settings(file.parent / llama.SETTINGS)
    kind = settings.get("model_type")
    if kind in set().union(*_TYPES.values()) - _TYPES[found]:
        raise ValueError(
            f"its tensors are those of the family {found}, and the config.json beside them says {kind}: put that of "
            "the model's repository there"
        )
    return _LOADERS[found](llama.Files(source, file.parent, tensors, settings, given))
