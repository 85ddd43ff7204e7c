"""Request bodies: their fields and ranges. A field that is not declared here is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, create_model, field_validator, model_validator

from dalle.config import descriptions
from dalle.generation.options import SamplingConfig

MAX_SEED = 2**63 - 1

_SIZE = re.compile("^(auto|[0-9]{1,5}x[0-9]{1,5})$")


class Body(BaseModel):
    """A JSON request body; unknown fields are errors."""

    # A misspelled option that is ignored gives an image that nobody asked for
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    model: str | None = None
    """Id of the model, one of /v1/models; the server's own if not given."""
    user: str | None = Field(None, max_length=1000)
    """The client's own name for its user, for the log."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """OpenAI's client sends null for an option that is None, which means: not given."""
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object: send {...} with the fields of the endpoint")
        return {name: value for name, value in values.items() if value is not None}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for 1, as Python does; forms send numbers as text, so that `strict` is too strict."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are no value of it")
        if isinstance(value, float) and info.field_name == "seed" and abs(value) > 2**53:
            raise ValueError("a number with a point or an exponent is not exact above 2^53: write all digits")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        """Other programs end a text at a NUL: metadata would say less than what was drawn."""
        if any("\0" in text for text in _texts(value)):
            raise ValueError("it has a NUL character: remove it")
        return value


def _texts(value: object) -> Iterator[str]:
    """All texts of a field, names of objects among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(one)


_SAMPLING = tuple(one.name for one in fields(SamplingConfig))


def _sampling_fields() -> dict[str, Any]:
    """A field for each sampling option, not given by default.

    Their ranges are not repeated here: `SamplingConfig` checks them when a request is turned into one.
    """
    hints, texts = get_type_hints(SamplingConfig), descriptions(SamplingConfig)
    return {name: (hints[name] | None, Field(None, description=texts[name])) for name in _SAMPLING}


if TYPE_CHECKING:  # type checkers do not follow fields that are made
    _SamplingBody = Body
else:
    _SamplingBody = create_model("_SamplingBody", __base__=Body, **_sampling_fields())


class ImagesBody(_SamplingBody):
    """What the three image endpoints have in common: sampling options, OpenAI's fields, then our own."""

    n: int = Field(1, ge=1, le=MAX_SEED)
    """Number of images in the answer."""
    size: str | None = Field(None, json_schema_extra={"pattern": _SIZE.pattern})
    """WIDTHxHEIGHT: images are drawn in it by a model that draws several sizes, else resized from the model's size at
    the end; auto is the model's size."""
    response_format: Literal["b64_json", "url"] | None = None
    """b64_json, or url: a data: URL, as the server keeps no files."""
    output_format: Literal["png", "webp", "jpeg"] = "png"
    output_compression: int = Field(100, ge=0, le=100)
    """Quality of webp and jpeg."""
    stream: bool = False
    """Answer with server-sent events."""
    partial_images: int = Field(0, ge=0, le=64)
    """With stream: previews of each image, at most one for each row of codes."""

    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of the first image; image i has seed + i. Random if not given; the answer says it."""
    candidates: int | None = Field(None, ge=1, le=MAX_SEED)
    """Images to generate, of which n are chosen by CLIP and `agreement`, best first."""
    negative: str | None = None
    """Negative prompt, which guidance leads away from, of a model that takes one; its own if not given."""

    # Options of OpenAI's own models: accepted so that its clients work, and without effect
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    style: Literal["vivid", "natural"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    safety_identifier: str | None = Field(None, max_length=1000)
    input_fidelity: Literal["high", "low"] | None = None

    @field_validator("size")
    @classmethod
    def _width_and_height(cls, value: str | None) -> str | None:
        if value is not None and not _SIZE.fullmatch(value):
            raise ValueError("give WIDTHxHEIGHT, such as 256x256, or auto")
        return value

    def sampling(self) -> dict[str, Any]:
        """Options of SamplingConfig that are given."""
        return self.model_dump(include=set(_SAMPLING), exclude_none=True)


class GenerationBody(ImagesBody):
    """Body of /v1/images/generations."""

    prompt: str
    """Prompt, in any language that the model was trained on; "" generates images without a caption."""


class EditBody(ImagesBody):
    """Fields beside the files image and mask."""

    prompt: str
    keep_rows: float | None = None
    """Instead of a mask: rows of codes to keep from the top; below 1 a fraction of them."""


class VariationBody(ImagesBody):
    """Fields beside the file image."""

    prompt: str = ""
    keep_rows: float = 0.5
    """Rows of codes to keep from the top; below 1 a fraction of them."""


class PaintBody(Body):
    """Body of /v1/paint; see `PaintOptions` for the fields."""

    prompt: str = ""
    """TEXT:WEIGHT | TEXT:WEIGHT ^ TEXT."""
    image: str | None = None
    """Image to start from, in base64 or as a data: URL."""
    preset: Literal["draft", "good", "best"] = "draft"
    steps: int | None = Field(None, ge=1, le=MAX_SEED)
    cutouts: int | None = Field(None, ge=1, le=64)
    seed: int = Field(0, ge=0, le=2**62 - 1)
    size: str | None = None
    start: Literal["codes", "noise", "gradient", "gray", "white"] = "white"
    init_weight: float | None = None
    tv: float | None = None
    saturation: float | None = None
    stream: bool = False
    """Answer with server-sent events: paint.partial_image and paint.completed."""
    preview_every: int = Field(5, ge=1, le=MAX_SEED)
    """With stream: steps from one preview to the next."""

    def options(self) -> dict[str, Any]:
        """Options of `PaintOptions` that are given."""
        own = self.model_dump(exclude_none=True, exclude={"model", "user", "image", "stream", "preview_every"})
        return dict(own)


class VaryBody(Body):
    """Body of /v1/vary."""

    image: str
    """Image to vary, in base64 or as a data: URL."""
    n: int = Field(4, ge=1, le=MAX_SEED)
    eta: float = Field(0.5, ge=0, le=1)
    """0 reproduces the image; 1 keeps only what its CLIP embedding says."""
    seed: int = Field(0, ge=0, le=2**62 - 1)
    """Seed of the first image; image i has seed + i."""
    steps: int = Field(50, ge=1, le=MAX_SEED)
    """Steps of the DDIM inversion, and of sampling."""


class BlendBody(Body):
    """Body of /v1/blend."""

    items: Annotated[list[str], Field(min_length=2, max_length=8)]
    """Texts, and images as data: URLs."""
    weights: list[float] | None = None
    """Weight of each item, for one image of all; without them, `frames` images interpolate between two items."""
    frames: int = Field(5, ge=2, le=MAX_SEED)
    seed: int = Field(0, ge=0, le=2**62 - 1)
    steps: int = Field(50, ge=1, le=MAX_SEED)


Texts = str | Annotated[list[str], Field(max_length=64)]
Images = str | Annotated[list[str], Field(max_length=64)]


def several(given: str | list[str]) -> list[str]:
    """One or several as a list."""
    return [given] if isinstance(given, str) else given


class SearchBody(Body):
    """Body of /v1/search; see `ImageIndex.search` for the fields."""

    text: Texts = []
    """What the images should show."""
    image: Images = []
    """Images in base64, or as data: URLs."""
    minus: Texts = []
    minus_image: Images = []
    where: Texts = []
    """Conditions that must hold, such as "width>=512" or "caption~dog"."""
    top: int = Field(20, ge=1, le=200)
    min_score: float | None = Field(None, ge=-1, le=1)
    distinct: float | None = Field(None, gt=0, le=1)


class ClassifyBody(Body):
    """Body of /v1/classify."""

    image: Images
    """Images in base64, or as data: URLs."""
    labels: Annotated[list[str], Field(min_length=2, max_length=1000)] | dict[str, list[str]]
    """Names, or name -> its synonyms."""
    templates: Texts | None = None
    """Name of a set of sentences, or sentences with {} for the label."""
    top: int | None = Field(None, ge=1, le=MAX_SEED)
    threshold: float | None = Field(None, ge=0, le=1)


class EmbeddingBody(Body):
    """OpenAI's embeddings; an input that is a data: URL of an image is embedded as an image."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: str | list[str]) -> str | list[str]:
        if not all(one.strip() for one in several(value)):
            raise ValueError("an input is empty: say something")
        return value
