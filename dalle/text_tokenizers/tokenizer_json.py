"""Text tokenizers that Hugging Face's `tokenizers` reads from a tokenizer.json, with the prompt that a model expects.

What such a file declares (normalizer, pre-tokenizer, merges, added tokens) differs from model to model, and a small
difference gives other ids in silence: so the library that defines the format reads it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from dalle.config import config
from dalle.config.ranges import NonNegativeInt, Size
from dalle.files import install_command
from dalle.text_tokenizers.base import TextTokenizer, check_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL_FILE = "tokenizer.json"
_CAPTION = "{}"
# What no caption means by its characters, whether or not a file calls it special: names in angle brackets other than
# the tags of HTML that Gemma's words have, and those of Chameleon's image codes
_CONTROL_NAME = re.compile(r"<(?!/?[a-z]+[1-6]?>)\S.*>|IMGIMG[A-J]+Z")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@config
class JSONTokenizerConfig:
    """Config of a tokenizer.json and the prompt around a caption."""

    kind: Literal["tokenizer_json"] = "tokenizer_json"
    """A tokenizer.json of Hugging Face's library `tokenizers`."""
    vocab_size: Size = 2**17
    """Number of ids that the model knows, at least as many as the file has tokens."""
    pad: str = "<pad>"
    """Token that fills rows up to their length."""
    begin: str = ""
    """Token at the start of every row, for which the caption's own text is not searched; empty: none."""
    template: str = _CAPTION
    """The prompt, with {} for the caption; may have tokens of the vocabulary in it."""
    negative_template: str = ""
    """The prompt around a caption that guidance leads away from; empty: the model takes none."""
    end: tuple[str, ...] = ()
    """Tokens at the end of every row."""
    grid: tuple[Size, Size] | None = None
    """Rows and columns of the image's codes, where the prompt says its size. Templates and names of tokens then have
    {rows}, {columns}, {height} and {width} (pixels), {row_number} and {column_number} in them; null: they do not."""
    cell: Size = 16
    """Pixels of a code's side."""
    first_number: NonNegativeInt = 0
    """{row_number} is this number and the rows divided by `rows_per_number`; columns likewise."""
    rows_per_number: Size = 1
    """Rows for each number."""
    negative: str | None = None
    """Caption of the null prompt, in `negative_template`; null: none."""
    null_tokens: tuple[str, ...] = ()
    """All tokens of the null prompt, in place of `negative`."""
    strip: bool = False
    """Remove white space around the caption."""

    def __post_init__(self) -> None:
        if self.template.count(_CAPTION) != 1:
            raise ValueError(f"template is {self.template!r}; it must have {_CAPTION} once, where the caption goes")
        if self.negative_template and self.negative_template.count(_CAPTION) != 1:
            raise ValueError(f"negative_template is {self.negative_template!r}; it must have {_CAPTION} once")
        for text in (*self.template.split(_CAPTION), *self.negative_template.split(_CAPTION), *self.end):
            self.written(text)

    def written(self, text: str) -> str:
        """A part of a template, or a token's name, with the size of the image in it.

        Raises:
            ValueError: it has something else in braces.
        """
        if self.grid is None:
            return text
        (rows, columns), per = self.grid, self.rows_per_number
        numbers = {"row_number": self.first_number + rows // per, "column_number": self.first_number + columns // per}
        pixels = {"height": rows * self.cell, "width": columns * self.cell}
        try:
            return text.format(rows=rows, columns=columns, **pixels, **numbers)
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"{text!r} has something in braces that is not the size of an image") from None


class JSONTokenizer(TextTokenizer):
    """Rows are the begin token and the prompt's tokens; where a row is cut, what follows the caption is kept.

    The name of a control token in a caption is read as its characters: only the prompt around it has such tokens.
    """

    config: JSONTokenizerConfig

    def __init__(self, config: JSONTokenizerConfig, content: bytes) -> None:
        """Build from the bytes of a tokenizer.json.

        Raises:
            ValueError: it is no such file, has no token of a name that the config has, or has too many; or the library
                is not installed.
        """
        super().__init__(config)
        self._content = content
        self._tokenizer = _read(content)
        self.vocab_size = config.vocab_size
        last = max(self.vocabulary.values(), default=-1)
        if last >= config.vocab_size:
            raise ValueError(
                f"this tokenizer.json has tokens up to id {last}, the model knows {config.vocab_size}: it is another's"
            )
        self.pad_id = self.id_of(config.pad)
        self.begin = (self.id_of(config.begin),) if config.begin else ()
        self._set_prompt()
        self._control = self._controls()

    def sized(self, grid: tuple[int, int]) -> JSONTokenizer:
        """The same tokenizer with the prompt for images of another grid of codes; this one, if the prompt has no size.

        Raises:
            ValueError: there is no token for such a size.
        """
        if self.config.grid is None:
            return self
        # Not copy.copy, which would read the file again (`__reduce__`)
        found = object.__new__(JSONTokenizer)
        found.__dict__.update(self.__dict__)
        found.config = replace(self.config, grid=grid)
        found._set_prompt()
        return found

    def _set_prompt(self) -> None:
        config = self.config
        self.end = tuple(self.id_of(config.written(name)) for name in config.end)
        self._before, self._after = map(config.written, config.template.split(_CAPTION))
        self._kept = len(self._ids(self._after)) + len(self.end)  # at the end of a row that is cut

    def __reduce__(self) -> tuple[type[JSONTokenizer], tuple[JSONTokenizerConfig, bytes]]:
        return JSONTokenizer, (self.config, self._content)

    def id_of(self, token: str) -> int:
        """The id of a token by its name.

        Raises:
            ValueError: there is none.
        """
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"this tokenizer.json has no token {token!r}: it is another model's, or an early version")
        return found

    def encode_negative(self, caption: str) -> list[int]:
        """The ids of a negative prompt, which guidance leads away from.

        Raises:
            ValueError: the model takes none.
        """
        if not self.config.negative_template:
            raise ValueError("this model takes no negative prompt: leave it out")
        check_characters(caption)
        before, after = map(self.config.written, self.config.negative_template.split(_CAPTION))
        return [*self.begin, *self._prompt_ids(before, caption, after), *self.end]

    def null_ids(self) -> tuple[int, ...]:
        """The ids of the null prompt; () if the config has none."""
        if self.config.null_tokens:
            return tuple(self.id_of(self.config.written(name)) for name in self.config.null_tokens)
        return () if self.config.negative is None else tuple(self.encode_negative(self.config.negative))

    def files(self) -> Mapping[str, bytes]:
        """tokenizer.json, unchanged."""
        return {MODEL_FILE: self._content}

    @property
    def vocabulary(self) -> dict[str, int]:
        """All tokens and their ids."""
        found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return found

    def pad(self, rows: Sequence[Sequence[int]], width: int) -> Tensor:
        """Pad or truncate rows of ids to int64 [B, width]; of a truncated row the prompt's end is kept."""
        if width <= self._kept:
            raise ValueError(f"length is {width}; the prompt alone ends with {self._kept} tokens: give more")
        end = [len(row) - self._kept for row in rows]
        cut = [
            row if len(row) <= width else [*row[: width - self._kept], *row[at:]]
            for row, at in zip(rows, end, strict=True)
        ]
        return super().pad(cut, width)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _controls(self) -> dict[int, str]:
        """The names of control tokens by id."""
        config, model = self.config, self._tokenizer.model
        templates = f"{config.template}{config.negative_template}".split(_CAPTION)
        names = (config.pad, config.begin, *config.end, *config.null_tokens)
        used = {number for text in (*templates, *names) for number in self._ids(config.written(text))}
        unknown = getattr(model, "unk_token", None)
        falls_back = bool(getattr(model, "byte_fallback", False))
        return {
            number: token.content
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if (token.special or number in used or _CONTROL_NAME.fullmatch(token.content))
            # These stand for characters, and not only for their names
            and token.content != unknown
            and not (falls_back and _BYTE.fullmatch(token.content))
        }

    def _prompt_ids(self, before: str, caption: str, after: str) -> list[int]:
        """The ids of a prompt, with no control token from the caption."""
        caption = caption.strip() if self.config.strip else caption
        text, start, stop = f"{before}{caption}{after}", len(before), len(before) + len(caption)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for number, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            name = self._control.get(number)
            # A token may take white space around its name too
            at = first if name is None else first + max(text[first:last].find(name), 0)
            ids += [number] if name is None or not start <= at < stop else self._plain_ids(text[first:last])
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """The ids of a text that a control token would be found in, which is cut in two so often that none is."""
        ids = self._ids(text)
        if len(text) < 2 or self._control.keys().isdisjoint(ids):
            return ids
        at = min(len(text) - len(text.lstrip()), len(text) - 2) + 1  # behind the first character of the name
        return [*self._plain_ids(text[:at]), *self._plain_ids(text[at:])]

    def _tokenize(self, texts: Sequence[str], dropout: float, rngs: Sequence[random.Random]) -> list[list[int]]:
        if dropout:
            raise ValueError("a tokenizer.json has no BPE dropout here: set bpe_dropout=0")
        return [self._prompt_ids(self._before, caption, self._after) for caption in texts]

    def _detokenize(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text.removeprefix(self._before).removesuffix(self._after)


def _read(content: bytes) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(
            f"a tokenizer.json is read by the library tokenizers: {install_command('tokenizers')}"
        ) from None
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises plain Exceptions
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"these {len(content)} bytes are not a tokenizer.json ({reason:.100})") from None
    # A file may say how rows are cut and padded, which is decided here
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
