"""A small Chameleon of transformers with random weights, its files in both layouts of Anole and Lumina-mGPT."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.image_tokenizers import VQConfig
from support.published.folders import vqgan
from support.published.language_models import byte_level, randomize

ROWS, CODES, WORDS, WIDTH, HEADS = 4, 24, 420, 64, 4


def letters(code: int) -> str:
    return f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z"


@cache
def tokenizer() -> Any:
    names = [letters(code) for code in range(CODES)]
    random.Random(0).shuffle(names)  # ids need not sort as codes
    special = ["<s>", "<pad>", "</s>", "<unk>", *names, "<eoss>", "<racm3:break>", "<reserved08706>"]
    special += ["<reserved08799>", *(f"<reserved{8800 + number:05d}>" for number in range(20))]
    return byte_level(special, 400)


def model_of(same_norms: bool, layers: int = 2, kv_heads: int = HEADS) -> Any:
    """The model of transformers; `same_norms`: with those of the 7B, which are the same for each head."""
    import transformers

    config = transformers.ChameleonConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=kv_heads, rms_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        vocabulary_map=tokenizer().get_vocab() | {"<image>": 28},
        vq_config={"base_channels": 32, "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8,
                   "resolution": 16, "channel_multiplier": [1, 1], "num_res_blocks": 1},
    )  # fmt: skip
    model = randomize(transformers.ChameleonForConditionalGeneration(config), scale=3.0)
    if same_norms:
        with torch.no_grad():
            for layer in model.model.layers:
                for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                    norm.weight.copy_(norm.weight[:1].expand_as(norm.weight))
                    norm.bias.copy_(norm.bias[:1].expand_as(norm.bias))
    return model


@cache
def code_ids() -> Tensor:
    return torch.tensor([tokenizer().token_to_id(letters(code)) for code in range(CODES)])


def write_transformers(model: Any, folder: Path) -> Path:
    """As leloy/Anole-7b-v0.1-hf, without an image tokenizer."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    return folder


def interleaved(value: Tensor) -> Tensor:
    """Rows (or norm weights) of heads in the order in which neighbors turn together."""
    width = WIDTH // HEADS
    parts = value.unflatten(0, (-1, 2, width // 2))  # [heads, halves, D / 2, ...]
    return parts.transpose(1, 2).flatten(0, 2)


def write_images(file: Path) -> None:
    """The image tokenizer, a VQGAN of taming-transformers."""
    quantizer = VQConfig(codebook_size=CODES, code_channels=8, distance="euclidean", update="gradient")
    torch.save({"state_dict": vqgan(quantizer)}, file)


def write_meta(model: Any, folder: Path) -> Path:
    """As GAIR/Anole-7b-v0.1, with the image tokenizer."""
    names = (
        (r"model\.embed_tokens\.", "tok_embeddings."),
        (r"lm_head\.", "output."),
        (r"(.+)self_attn\.([qkvo])_proj\.", r"\1attention.w\2."),
        (r"(.+)self_attn\.([qk])_norm\.", r"\1attention.\2_normalization."),
        (r"(.+)mlp\.gate_proj\.", r"\1feed_forward.w1."),
        (r"(.+)mlp\.down_proj\.", r"\1feed_forward.w2."),
        (r"(.+)mlp\.up_proj\.", r"\1feed_forward.w3."),
        (r"(.+)input_layernorm\.", r"\1attention_norm."),
        (r"(.+)post_attention_layernorm\.", r"\1ffn_norm."),
        (r"model\.norm\.", "norm."),
    )
    state = {"rope.freqs": torch.zeros(8)}
    for name, value in model.state_dict().items():
        if name.startswith("model.vqmodel."):
            continue
        pattern, replacement = next(pair for pair in names if re.match(pair[0], name))
        if "_norm." in name and "self_attn" in name:
            value = interleaved(value[0])
        elif "q_proj" in name or "k_proj" in name:
            value = interleaved(value)
        state[re.sub(pattern, replacement, name).removeprefix("model.")] = value.clone()
    (folder / "models/7b").mkdir(parents=True)
    torch.save(state, folder / "models/7b/consolidated.pth")
    params = {"dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "norm_eps": 1e-5, "swin_norm": False, "rope_theta": 10000}
    (folder / "models/7b/params.json").write_text(json.dumps(params))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/text_tokenizer.json").write_text(tokenizer().to_str())
    write_images(folder / "tokenizer/vqgan.ckpt")
    # Whatever its class is called
    yaml = {
        "model": {
            "target": "inference.vqgan.VQModel",
            "params": {"embed_dim": 8, "n_embed": CODES, "ddconfig": {"resolution": 2 * ROWS}},
        }
    }
    (folder / "tokenizer/vqgan.yaml").write_text(json.dumps(yaml))
    return folder


def prompt(caption: str) -> list[int]:
    one = tokenizer()
    ends = [one.token_to_id(name) for name in ("<reserved08706>", "<racm3:break>")]
    return [0, *one.encode(caption, add_special_tokens=False).ids, *ends]
