"""The model that `sample.py` samples from, and the options of its calls: tokens and an unCLIP have different ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dalle.cli.parser import parse_size
from dalle.cli.sample import SampleConfig
from dalle.config import apply_overrides, from_dict, to_dict
from dalle.generation.options import SamplingConfig

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    from dalle.pipelines.text_to_image import TextToImage
    from dalle.pipelines.unclip import UnCLIP

# Facts that --given may state, of which some published files say nothing (docs/checkpoints.md)
_GIVEN = ("family", "heads", "convention", "grid", "roles")


def load_pipeline(settings: SampleConfig) -> tuple[TextToImage | UnCLIP, dict[str, Any]]:
    """Load the model that the options ask for; returns it with the options of its calls.

    Raises:
        ValueError: the model does not exist or is damaged, or an option is for another kind of model.
    """
    import torch

    from dalle.checkpoints.unclip import is_unclip
    from dalle.pipelines.text_to_image import TextToImage
    from dalle.pipelines.unclip import UnCLIP

    dtype = getattr(torch, settings.dtype)
    if settings.model is not None and is_unclip(settings.model):
        _check_unclip(settings)
        unclip = UnCLIP.from_pretrained(settings.model, settings.prior, settings.device, dtype, settings.clip)
        return unclip, settings.sampling | settings.diffusion
    engine = _engine_options(settings)
    names = ("clip", "image_tokenizer", "text_tokenizer", "text_encoder")
    sources = {name: getattr(settings, name) for name in names}
    pipe = TextToImage.from_pretrained(
        settings.model, settings.device, dtype, **sources, **_published_options(settings)
    )
    # Not pipe.sampling.updated: that takes None as not given, and --top-k null is all codes, whatever the model's own
    pipe.sampling = from_dict(SamplingConfig, to_dict(pipe.sampling) | settings.sampling, "command line")
    if settings.size is not None:
        pipe = pipe.sized(settings.size)
    sampling = to_dict(pipe.sampling)
    return pipe, sampling | engine


def _published_options(settings: SampleConfig) -> dict[str, Any]:
    """Parse --given, the facts that published files do not contain.

    Raises:
        ValueError: an unknown name.
    """
    given = apply_overrides({}, list(settings.given))
    for name in given:
        if name not in _GIVEN:
            raise ValueError(f"--given {name}: unknown name; expected one of {', '.join(_GIVEN)}")
    return given


def _engine_options(settings: SampleConfig) -> dict[str, Any]:
    """Collect the options of a call that only a model that samples tokens has.

    Raises:
        ValueError: an option is for an unCLIP, or --max-memory is no size.
    """
    others = [*settings.diffusion, *([] if settings.prior is None else ["prior"])]
    if others:
        flag = others[0].replace("_", "-")
        raise ValueError(f"--{flag} is for an unCLIP, and this model samples tokens: leave it out")
    limit = None if settings.max_memory is None else int(parse_size(settings.max_memory, "B", "max-memory"))
    names = ("negative", "keep_rows", "window", "compiled", "batch_size")
    return {name: getattr(settings, name) for name in names} | {"max_memory": limit}


def _check_unclip(settings: SampleConfig) -> None:
    """Refuse options that are for models that sample tokens."""
    if settings.given:
        raise ValueError("--given is for published models that sample tokens, not for an unCLIP: leave it out")
    sources = ("image_tokenizer", "text_tokenizer", "text_encoder")
    for name in ("negative", "size", "keep_rows", *sources, "max_memory", "batch_size"):
        if getattr(settings, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for models that sample tokens, not for an unCLIP")
    if settings.window != 1 or settings.compiled:
        raise ValueError("--window and --compiled are for models that sample tokens, not for an unCLIP")
    if settings.dtype == "int8":
        raise ValueError("--dtype int8 is for models that sample tokens: give float32 or bfloat16")
