"""A small SimpleAR with random weights: a Qwen2 of transformers, in the layout of its repositories."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from support.published import cosmos
from support.published.language_models import LINES, randomize

ROWS, LEVELS, CODES, WIDTH = 4, (4, 3, 2), 24, 224
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
OWN = ["<|t2i|>", "<|i2t|>", "<|soi|>", "<|vtokens|>", "<|t2v|>", "<|v2t|>", "<|sov|>"]
NEGATIVE = (
    "aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, bad eyes, "
    "bad limbs, distortion"
)


@cache
def tokenizer() -> Any:
    """Qwen2.5's kind: NFC, its cut, a byte-level BPE, and words that are added behind it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    cut = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    cut += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    one = Tokenizer(models.BPE())
    one.normalizer = normalizers.NFC()
    one.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(cut), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    one.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    one.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    one.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in [*WORDS, *OWN]])
    return one


def prompt(caption: str) -> list[int]:
    text = f"<|t2i|>A highly realistic image of {caption}<|soi|>"
    ids: list[int] = tokenizer().encode(text, add_special_tokens=False).ids
    return ids


def null(negative: str = NEGATIVE) -> list[int]:
    ids: list[int] = tokenizer().encode(f"<|t2i|>An image of {negative}<|soi|>", add_special_tokens=False).ids
    return ids


def model_of(tied: bool = True, layers: int = 2) -> Any:
    """7 heads of 32 channels and one for keys and values, as the 0.5B has 14 and 2."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=tokenizer().get_vocab_size() + CODES, hidden_size=WIDTH, intermediate_size=96,
        num_hidden_layers=layers, num_attention_heads=7, num_key_value_heads=1, rms_norm_eps=1e-6,
        rope_theta=1000000.0, tie_word_embeddings=tied, max_position_embeddings=2048,
    )  # fmt: skip
    return randomize(transformers.Qwen2ForCausalLM(config), scale=3.0)


def write(model: Any, folder: Path, shards: int = 1) -> Path:
    """As Daniel0724/SimpleAR-*, with the image tokenizer's repository in a folder `DV8x16x16` in it."""
    folder.mkdir(parents=True)
    state: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    names = list(state)
    parts = [names[number::shards] for number in range(shards)]
    files = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    if shards == 1:
        save_file(state, folder / "model.safetensors")
    else:
        for file, part in zip(files, parts, strict=True):
            save_file({name: state[name] for name in part}, folder / file)
        places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    settings = {
        "architectures": ["SimpARForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": WIDTH,
        "num_attention_heads": 7, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": model.config.tie_word_embeddings, "use_sliding_window": False,
        "vocab_size": model.config.vocab_size,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    cosmos.write(cosmos.parts(LEVELS), folder / "DV8x16x16", cells=ROWS)
    return folder
