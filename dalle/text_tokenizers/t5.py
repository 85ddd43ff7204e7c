"""Features of a T5 encoder in place of text tokens, as LlamaGen (arXiv 2406.06525, section 2.3) reads captions.

Captions are cleaned as its training captions were (language/t5.py of LlamaGen, which has it from DeepFloyd IF): web
addresses, file names, article numbers and the like go.
"""

from __future__ import annotations

import html
import re
import urllib.parse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dalle.device import to_device
from dalle.text_tokenizers.base import check_characters

LENGTH = 120  # tokens of a caption

_ADDRESS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_ENDINGS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58"
    "\ufe63\uff0d"
)
# What goes, and what it becomes, in this order; before the encoding is mended ...
_FIRST = (
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS}))", ""),
)
_THEN = (
    (r"@[\w\d]+\b", ""),
    ("[\u31c0-\u31ef]+|[\u31f0-\u31ff]+|[\u3200-\u32ff]+|[\u3300-\u33ff]+|[\u3400-\u4dbf]+|[\u4dc0-\u9fff]+", ""),
    (f"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_ENDINGS})", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    ("[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~)(\\]\\[}{|\\\\/*]{1,}", " "),
    (r"\s+\.\s+", " "),
)
# ... and after.
_LAST = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_ENDINGS})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)
_NEEDED = 'the text encoder needs transformers, ftfy and beautifulsoup4: pip install "dalle[t5]"'


class T5Encoder:
    """Captions to features; a T5 encoder and its tokenizer, of Hugging Face's transformers.

    Attributes:
        width: channels of the features.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.width: int = model.config.d_model

    @classmethod
    def load(
        cls, source: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> T5Encoder:
        """Load an encoder from a local folder.

        Args:
            source: the folder of, for example, google/flan-t5-xl; its weights must be safetensors.
            device: where it computes.
            dtype: floating type of its weights; None: float32.

        Raises:
            ValueError: nothing is there, it is something else, or a library is missing.
        """
        try:
            import bs4  # noqa: F401
            import ftfy  # noqa: F401
            from transformers import AutoTokenizer, PretrainedConfig, T5EncoderModel
        except ImportError as error:
            raise ValueError(f"{_NEEDED} ({error.name} is missing)") from None
        loaded: Any
        try:
            kind = PretrainedConfig.get_config_dict(source)[0].get("model_type")
            if kind != "t5":
                raise ValueError(f"its config.json says model_type: {kind!r}, expected 't5'")
            # False, not the default, which asks the user whether to run what the repository holds
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            loaded = T5EncoderModel.from_pretrained(
                source,
                dtype=dtype or torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # said below
            )
            model, told = loaded
            _check(model, tokenizer, told)
        except (
            *(OSError, ValueError, KeyError, AttributeError, TypeError, ImportError, RuntimeError),
            SafetensorError,
        ) as error:
            first = str(error).strip().split("\n")[0]
            raise ValueError(f"{source} cannot be loaded as a T5 encoder: {first}") from error
        model.eval().to(device=device)
        return cls(model, tokenizer)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], length: int = LENGTH) -> Tensor:
        """Features of captions.

        Args:
            texts: B captions; what goes beyond `length` tokens is cut.
            length: T.

        Returns:
            float32 [B, T, C], the caption at the right end; what is in front of it is 0.

        Raises:
            ValueError: a single string instead of a list, a length below 1, or a caption with a lone surrogate.
        """
        if isinstance(texts, str):
            raise ValueError(f"encode takes a list of captions, got the string {texts[:40]!r}: put it into a list")
        if length < 1:
            raise ValueError(f"the length of encoded captions is at least 1, got {length}")
        for text in texts:
            check_characters(text)
        rows = self.tokenizer(
            [clean(clean(text)) for text in texts],
            max_length=length,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        real = rows["attention_mask"]
        ids = to_device(device, rows["input_ids"])
        features = self.model(input_ids=ids, attention_mask=to_device(device, real))["last_hidden_state"].float()
        made = torch.zeros_like(features)
        for row, count in enumerate(real.sum(1).tolist()):
            made[row, length - count :] = features[row, :count]
        return made


def _check(model: Any, tokenizer: Any, told: dict[str, Any]) -> None:
    """Refuse what transformers makes up: random numbers for weights that do not fit, a tokenizer without words."""
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"its weights have no {missing[0]} ({len(missing)} missing)")
    if misshapen := sorted(told["mismatched_keys"]):
        name, found, wanted = misshapen[0]
        raise ValueError(f"{name} is {list(found)}, its config.json says {list(wanted)} ({len(misshapen)} misshapen)")
    words = [word for word in tokenizer.get_vocab() if not re.fullmatch(r"<.*>|\u2581", word)]
    if not words:
        raise ValueError("it has no tokenizer: expected tokenizer.json or spiece.model beside the weights")
    last = max(tokenizer.get_vocab().values())
    if last >= model.config.vocab_size:
        raise ValueError(f"its tokenizer has ids up to {last}, its model only {model.config.vocab_size} of them")


def clean(caption: str) -> str:
    """A caption without what its kind of training captions were freed of, in lower case."""
    import ftfy
    from bs4 import BeautifulSoup

    text = urllib.parse.unquote_plus(caption).strip().lower().replace("<person>", "person")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a caption that looks like the name of a file
        text = BeautifulSoup(_replaced(text, _FIRST), features="html.parser").text
    text = _replaced(text, _THEN)
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _replaced(text, _LAST).strip()


def _replaced(text: str, table: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        text = re.sub(pattern, replacement, text)
    return text
