"""A small Liquid with random weights: a Gemma of transformers, in the layout of its repository."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from support.published.chameleon import CODES, write_images
from support.published.language_models import LINES, randomize

ROWS, WIDTH, HEADS, HEAD = 4, 64, 4, 32  # heads wider than width / heads, as Gemma 7B's


@cache
def tokenizer() -> Any:
    """A BPE of Gemma's kind: spaces written as U+2581, characters with byte fallback, nothing put in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    one = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    one.normalizer = normalizers.Replace(" ", "\u2581")
    one.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<boi>", "<unconditional>", *(f"<0x{i:02X}>" for i in range(256))]
    one.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False))
    return one


def model_of() -> Any:
    """The model of transformers."""
    import transformers

    config = transformers.GemmaConfig(
        vocab_size=tokenizer().get_vocab_size() + CODES, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    return randomize(transformers.GemmaForCausalLM(config), scale=2.0)


def write(model: Any, folder: Path) -> Path:
    """As Junfeng5/Liquid_V1_7B, with the image tokenizer of its demonstration."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # As published: both mean the tanh approximation
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu", "hidden_activation": None}))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    write_images(folder / "vqgan.ckpt")
    return folder


def prompt(caption: str) -> list[int]:
    one = tokenizer()
    text = f"{caption} Generate an image based on this description."
    ids = one.encode(text, add_special_tokens=False).ids
    return [one.token_to_id("<bos>"), *ids, one.token_to_id("<boi>")]
