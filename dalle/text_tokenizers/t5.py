"""T5 encoder features instead of text tokens, as in LlamaGen (arXiv 2406.06525, section 2.3).

Captions are cleaned like LlamaGen's training captions (its language/t5.py, which comes from DeepFloyd IF): URLs, file
names, article numbers and the like are removed.
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
from dalle.files import install_command
from dalle.text_tokenizers.base import check_characters

LENGTH = 120  # tokens per caption

_ADDRESS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_ENDINGS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58"
    "\ufe63\uff0d"
)
# (pattern, replacement), applied in this order; the first two tables before mojibake is fixed ...
_FIRST = (
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS}))", ""),
)
_THEN = (
    (r"@[\w\d]+\b", ""),
    # CJK characters
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
# ... and the last one after.
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
_MISSING = f"the T5 text encoder needs transformers, ftfy and beautifulsoup4: {install_command('t5')}"


class T5Encoder:
    """Captions to features: a T5 encoder and its tokenizer, both from Hugging Face's transformers.

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
            device: device to run on.
            dtype: floating-point type of the weights; None: float32.

        Raises:
            ValueError: the folder is missing or holds another model, or a library is not installed.
        """
        try:
            import bs4  # noqa: F401
            import ftfy  # noqa: F401
            from transformers import AutoTokenizer, PretrainedConfig, T5EncoderModel
        except ImportError as error:
            raise ValueError(f"{_MISSING} ({error.name} is missing)") from None
        loaded: Any
        try:
            kind = PretrainedConfig.get_config_dict(source)[0].get("model_type")
            if kind != "t5":
                raise ValueError(f"its config.json says model_type: {kind!r}, expected 't5'")
            # The default would ask the user interactively whether to run code from the folder
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            loaded = T5EncoderModel.from_pretrained(
                source,
                dtype=dtype or torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by _check_loaded
            )
            model, loading_info = loaded
            _check_loaded(model, tokenizer, loading_info)
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
        """Encode captions.

        Args:
            texts: B captions; tokens beyond `length` are cut off.
            length: T.

        Returns:
            float32 [B, T, C], right-aligned: the positions before the caption are 0.

        Raises:
            ValueError: a single string instead of a list, a length below 1, or a caption with a lone surrogate.
        """
        if isinstance(texts, str):
            raise ValueError(f"encode takes a list of captions, got the string {texts[:40]!r}: put it in a list")
        if length < 1:
            raise ValueError(f"length is {length}; it must be at least 1 token")
        for text in texts:
            check_characters(text)
        rows = self.tokenizer(
            [clean(clean(text)) for text in texts],  # twice, as LlamaGen does
            max_length=length,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        mask = rows["attention_mask"]
        ids = to_device(device, rows["input_ids"])
        features = self.model(input_ids=ids, attention_mask=to_device(device, mask))["last_hidden_state"].float()
        # LlamaGen puts the padding first, so that the caption is next to the image tokens.
        aligned = torch.zeros_like(features)
        for row, count in enumerate(mask.sum(1).tolist()):
            aligned[row, length - count :] = features[row, :count]
        return aligned


def _check_loaded(model: Any, tokenizer: Any, loading_info: dict[str, Any]) -> None:
    """Reject what transformers only warns about: random weights where none fit, a tokenizer without a vocabulary."""
    if missing := sorted(loading_info["missing_keys"]):
        raise ValueError(f"its weights have no {missing[0]} ({len(missing)} missing)")
    if misshapen := sorted(loading_info["mismatched_keys"]):
        name, found, wanted = misshapen[0]
        raise ValueError(f"{name} is {list(found)}, its config.json says {list(wanted)} ({len(misshapen)} misshapen)")
    words = [word for word in tokenizer.get_vocab() if not re.fullmatch(r"<.*>|\u2581", word)]
    if not words:
        raise ValueError("it has no tokenizer: expected tokenizer.json or spiece.model beside the weights")
    last = max(tokenizer.get_vocab().values())
    if last >= model.config.vocab_size:
        raise ValueError(f"its tokenizer has ids up to {last}, but its model only {model.config.vocab_size} embeddings")


def clean(caption: str) -> str:
    """Clean a caption like LlamaGen's training captions, and lower-case it."""
    import ftfy
    from bs4 import BeautifulSoup

    text = urllib.parse.unquote_plus(caption).strip().lower().replace("<person>", "person")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BeautifulSoup warns if a caption looks like a file name
        text = BeautifulSoup(_replaced(text, _FIRST), features="html.parser").text
    text = _replaced(text, _THEN)
    if len(re.findall(r"[-_]", text)) > 3:  # such as this-is-my-cute-cat
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _replaced(text, _LAST).strip()


def _replaced(text: str, table: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        text = re.sub(pattern, replacement, text)
    return text
