"""Small SigLIPs with random weights, in folders as transformers and open_clip write them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from support.published import REFERENCES
from support.published.references import siglip_open_clip

SIDE, PATCH, LENGTH, WIDTH, TEXT_WIDTH = 32, 8, 16, 32, 32
with safe_open(REFERENCES / "siglip_open_clip.safetensors", framework="pt") as _reference:
    SHAPES: dict[str, dict[str, list[int]]] = json.loads(_reference.metadata()["shapes"])
    EXPECTED = {name: _reference.get_tensor(name) for name in _reference.keys()}  # noqa: SIM118, not a dict
LINES = [f"A {c} {t}, on (white) paper!" for c in ("red", "blue", "green") for t in ("heart", "star", "lion", "गुलाबी")]


def words(version: int, size: int, lines: list[str] = LINES) -> bytes:
    """A small SentencePiece model of the kind that C4's, or Gemma's, is."""
    model = io.BytesIO()
    common: dict[str, Any] = {
        "sentence_iterator": iter([line.lower() for line in lines] * 4),
        "model_writer": model,
        "vocab_size": size,
        "minloglevel": 2,
        "num_threads": 1,
        "hard_vocab_limit": False,
    }
    if version == 1:  # T5's: pad 0, end 1, unknown 2
        own: dict[str, Any] = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    else:  # Gemma's: pad 0, end 1, begin 2, unknown 3; text as it is
        own = {"model_type": "bpe", "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True}
        own |= {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
        own |= {"vocab_size": 256 + size}
    sentencepiece.SentencePieceTrainer.train(**common | own)
    return model.getvalue()


def piece_count(content: bytes) -> int:
    """The number of pieces of a SentencePiece model."""
    count: int = sentencepiece.SentencePieceProcessor(model_proto=content).get_piece_size()
    return count


def model_of(vocab: int) -> Any:
    """A SigLIP of transformers."""
    import transformers

    torch.manual_seed(0)
    text = {"hidden_size": TEXT_WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"vocab_size": vocab, "max_position_embeddings": LENGTH, "projection_size": WIDTH}
    vision = {"hidden_size": WIDTH, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": PATCH}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and norms are trivial at first
            parameter.add_(0.1 * torch.randn_like(parameter))
            if name in ("logit_scale", "logit_bias"):
                parameter.fill_(2.0 if name == "logit_scale" else -3.0)
    return model


def hub_folder(folder: Path, content: bytes, version: int = 1) -> Any:
    """Write a folder as transformers does, with the pieces of its text tokenizer; returns the model."""
    (folder / ("spiece.model" if version == 1 else "tokenizer.model")).write_bytes(content)
    model = model_of(piece_count(content))
    model.save_pretrained(folder)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return model


def open_clip_folder(folder: Path, activation: str = "exact", content: bytes | None = None, **text: Any) -> Path:
    """A folder as open_clip writes it, with weights drawn by their names; given its pieces, with a text tokenizer."""
    shapes = dict(SHAPES["small"])
    if content is not None:
        (folder / "spiece.model").write_bytes(content)
        table = "text.token_embedding.weight"
        shapes[table] = [piece_count(content), *shapes[table][1:]]
        text |= {"vocab_size": piece_count(content)}
    config = json.loads(json.dumps(siglip_open_clip.CONFIG))
    if activation == "tanh":
        config["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
        config["vision_cfg"]["timm_model_name"] = "vit_so400m_patch16_siglip_256"
    config["text_cfg"] |= text
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pixels}))
    state = {name: siglip_open_clip.drawn(name, shape) for name, shape in shapes.items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder
