"""Emu3.5 of BAAI (arXiv 2510.26583): an Emu3 with norms on queries and keys, 131,072 image codes and another prompt.

Its row ends stand between the rows, and Emu3's behind each of them; as nothing is drawn behind the last row, both are
the same stream here.
"""

from __future__ import annotations

from dalle.checkpoints.published import emu3, llama
from dalle.checkpoints.published.image_tokenizers import find_ibq
from dalle.generation.options import SamplingConfig
from dalle.image_tokenizers import ImageCodes
from dalle.models.dalle_config import GridsConfig
from dalle.text_tokenizers import JSONTokenizer, JSONTokenizerConfig

FAMILY = "an Emu3.5"
LICENSE = "Apache-2.0 (huggingface.co/BAAI/Emu3.5-Image)"
SAMPLING = SamplingConfig(guidance=5.0, top_k=5120)
CODES = ImageCodes(
    network="vqgan", quantizer="dot", codes=131_072, channels=256, factor=16, source="BAAI/Emu3.5-VisionTokenizer"
)
_PLAIN_GUIDANCE = 2.0  # what the project recommends for Emu3.5 itself, which writes too
_ROWS, _CELL = 64, 16  # 1024 pixels
# Its configs/example_config_t2i.py: the null prompt has no task and no caption
_TASK, _PROMPT = " for t2i task", "You are a helpful assistant{task}. USER: {{}} ASSISTANT: <|extra_100|>"


def load(files: llama.Files) -> llama.LanguageModel:
    """Read an Emu3.5 with its text tokenizer, and its image tokenizer if that is in a folder of it.

    Raises:
        ValueError: it is of something else, or incomplete.
    """
    rows = llama.grid_rows(files.given, _ROWS)
    words = emu3.read_words(files.folder)
    tokenizer = _text_tokenizer(words, rows)
    model = emu3.read(files, words, tokenizer, GridsConfig(most=rows**2), FAMILY, LICENSE)
    name = str(files.source).lower()
    plain = "emu3.5" in name and "emu3.5-image" not in name
    sampling = SAMPLING.updated(guidance=_PLAIN_GUIDANCE) if plain else SAMPLING
    return llama.LanguageModel(model, tokenizer, sampling, CODES, find_ibq(files.folder))


def _text_tokenizer(words: emu3.Words, rows: int) -> JSONTokenizer:
    config = JSONTokenizerConfig(
        vocab_size=int(words.codes.min()),
        pad=emu3.PAD,
        begin=emu3.BEGIN,
        template=_PROMPT.format(task=_TASK) + emu3.SIZE,
        negative_template=_PROMPT.format(task="") + emu3.SIZE,
        grid=(rows, rows),
        cell=_CELL,
        negative="",
    )
    return JSONTokenizer(config, words.content)
