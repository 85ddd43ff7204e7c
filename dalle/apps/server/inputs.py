"""From the bytes of a request to checked values: JSON, forms, files, images."""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from dalle.apps.server.errors import ApiError, from_validation, printable
from dalle.files import RepeatedName, parse_json
from dalle.images.read import UnreadableImage, decode_image

B = TypeVar("B", bound=BaseModel)

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_CHARSET = re.compile(r""";\s*charset=("[^"]*"|[^;]*)""", re.IGNORECASE)
_CHARSETS = ("utf-8", "ascii", "iso8859-1")
_FIELDS, _FILES = 40, 20  # of a form
_TEXTS = ("prompt", "negative")  # may be empty; another empty field is what clients make of null: not given


@dataclass
class Form:
    """A multipart form: text fields, and files by the name of their field (`image[]` is `image`)."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


async def read_json(request: Request, schema: type[B]) -> B:
    """The body of a request as a `schema`.

    Raises:
        ApiError: it is no JSON, or not what the schema wants.
    """
    _content_type(request, "application/json")
    body = await request.body()
    try:
        text = body.decode("utf-8-sig")  # json.loads would take bytes for UTF-16, too
        values = parse_json(text)
        if _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode()  # fails at half of a pair
        return validated(schema, values)
    except RepeatedName as error:
        name = printable(error.name[:100])
        raise ApiError(f"the field {name} is there twice", name) from None
    except ValueError as error:
        raise ApiError(f"the body is no JSON: {_reason(error)}", code="invalid_json") from None


class _Parser(MultiPartParser):
    ended = False  # the last boundary has come: starlette drops a part that has no end, and says nothing

    def on_end(self) -> None:
        self.ended = True


async def read_form(request: Request) -> Form:
    """The body of a request as a form.

    Raises:
        ApiError: it is none, or has too many fields, or one of them twice.
    """
    _content_type(request, "multipart/form-data")
    given = request.headers["content-type"]
    charset = _charset(given)
    # starlette takes for Latin-1 what is no UTF-8; as Latin-1, which any bytes are, it comes here as it was sent
    headers = Headers({"content-type": f"{_CHARSET.sub('', given)}; charset=latin-1"})
    parser = _Parser(headers, request.stream(), max_files=_FILES, max_fields=_FIELDS, max_part_size=2**20)
    try:
        content = await parser.parse()
    except MultiPartException as error:
        raise ApiError(f"the form cannot be read: {error.message}") from None
    try:
        if not parser.ended:
            raise ApiError("the form is cut off: its last boundary is missing", code="invalid_form")
        return await _form(content, charset)
    finally:
        await content.close()


def _charset(content_type: str) -> str:
    named = _CHARSET.search(content_type)
    given = "utf-8" if named is None else named[1].strip('" ')
    try:
        charset = codecs.lookup(given).name
    except (LookupError, ValueError):  # ValueError: a NUL
        charset = ""
    if charset not in _CHARSETS:
        raise ApiError(f"the form's charset is {printable(given[:40])}: send it in UTF-8", status=415)
    return charset


async def _form(content: FormData, charset: str) -> Form:
    """A form of what was sent in Latin-1's disguise."""
    form = Form()
    for sent, value in content.multi_items():
        name = _decoded(sent, charset, "the name of a field", None)
        if isinstance(value, UploadFile):
            # OpenAI's client names a field with several files image[]
            form.files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            continue
        if value and name.removesuffix("[]") in ("image", "mask"):
            raise ApiError(f"{name} is a text: send it as a file of the form (curl -F {name}=@FILE)", name)
        shown = printable(name[:100])
        text = _decoded(value, charset, shown, shown)
        if name in form.fields:
            raise ApiError(f"the field {shown} is there twice", shown)
        if text or name in _TEXTS:
            form.fields[name] = text
    return form


def _decoded(text: str, charset: str, what: str, param: str | None) -> str:
    try:
        return text.encode("latin-1").decode(charset)
    except UnicodeDecodeError:
        raise ApiError(f"{what} is not in {charset.upper()}: send forms in UTF-8", param) from None


def validated(schema: type[B], values: object) -> B:
    """Values as a `schema`.

    Raises:
        ApiError: they are not what it wants.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise from_validation(error) from None


def read_image(data: bytes, param: str, max_pixels: int) -> Image.Image:
    """An image that a client sent.

    Raises:
        ApiError: it is none, or has too many pixels.
    """
    try:
        return decode_image(data, max_pixels)
    except UnreadableImage as error:
        raise ApiError(f"{param}: {error}", param, code="invalid_image") from None


def read_images(texts: Sequence[str], param: str, max_pixels: int) -> list[Image.Image]:
    """Images in base64, or as data: URLs; small files may hold many pixels, so these are counted together.

    Raises:
        ApiError: one is none, or they have too many pixels.
    """
    images, pixels = [], 0
    for text in texts:
        images.append(read_image(from_base64(text, param), param, max_pixels))
        pixels += images[-1].width * images[-1].height
        if pixels > max_pixels:
            raise ApiError(f"{param}: the images have more than {max_pixels:,} pixels together", param)
    return images


def from_base64(text: str, param: str) -> bytes:
    """The bytes of a file in base64, or of a data: URL.

    Raises:
        ApiError: they are none.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ApiError(f"{param}: the data: URL is not in base64", param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(f"{param}: neither base64 nor a data: URL in base64", param) from None


def transparent_mask(image: Image.Image, param: str) -> Image.Image:
    """A mask of the pipeline, white where `image` is transparent, as OpenAI's masks say what is drawn anew.

    Raises:
        ApiError: nothing of it is transparent.
    """
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    # A code is kept or not: half-transparent edges of a brush need a threshold
    mask = None if alpha is None else alpha.point(lambda value: 255 if value < 128 else 0)
    if mask is None or mask.getbbox() is None:
        other = ", or send a mask, or keep_rows" if param == "image" else ""
        raise ApiError(f"{param} has no transparent pixel: make transparent what is to be drawn anew{other}", param)
    return mask


def _content_type(request: Request, wanted: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise ApiError(f"the content encoding is {packed[:100]}: send the body as it is", status=415)
    if given != wanted:
        raise ApiError(f"the content type is {given or 'not given'}: send {wanted}", status=415)


def _reason(error: ValueError) -> str:
    """Why JSON cannot be read."""
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair is no character"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not in UTF-8 (byte {error.start})"
    return str(error)
