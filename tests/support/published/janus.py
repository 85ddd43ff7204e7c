"""A small Janus of transformers with random weights, its files in both published layouts; needs transformers."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

ROWS, CODES, WORDS, WIDTH = 4, 48, 640, 64
BEGIN, PAD, IMAGE = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
LINES = ["a red fox in the snow", "two cats, 12 dogs", "лиса в лесу", "雪中的狐狸", "हिउँमा स्याल"] * 3
TEXTS = [*LINES[:5], "", "  \t a fox \n", "🦊🏔️ e\u0301", "word " * 300, "it's\n\nnew: {} lines"]


@cache
def tokenizer_json(pad: str = PAD) -> bytes:
    """A byte-level BPE whose pre-tokenizer is of the kind that DeepSeek's declares."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cuts = (r"[\r\n]", r"\s?\p{L}+", r"\s?[\p{P}\p{S}]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BEGIN, "<｜end▁of▁sentence｜>", pad, IMAGE, "<end_of_image>", "<|User|>", "<|Assistant|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return str(tokenizer.to_str()).encode()


def model_of(seed: int = 0, layers: int = 2) -> Any:
    """The model of transformers, its weights large enough that codes differ."""
    import transformers

    torch.manual_seed(seed)
    text = {"model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": layers}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": WORDS, "rms_norm_eps": 1e-6}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    vision |= {"projection_dim": WIDTH, "num_image_tokens": ROWS**2}
    vq = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32, "base_channels": 32, "num_res_blocks": 1}
    vq |= {"channel_multiplier": [1, 2], "projection_dim": WIDTH, "image_token_embed_dim": WIDTH}
    config = transformers.JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False, image_token_id=5
    )
    model = transformers.JanusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            matrix = parameter.ndim > 1 and "vqmodel" not in name and "embed" not in name
            parameter.add_(torch.randn_like(parameter) * (1.5 * parameter.shape[-1] ** -0.5 if matrix else 0.1))
    return model


def write_transformers(model: Any, folder: Path) -> Path:
    """The layout of deepseek-community."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    return folder


def deepseek_state(model: Any) -> dict[str, Tensor]:
    """The tensors by the names of DeepSeek's own repositories."""
    names = (
        (r"model\.language_model\.", "language_model.model."),
        (r"lm_head\.", "language_model.lm_head."),
        (r"model\.generation_embeddings\.", "gen_embed."),
        (r"model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
        (r"model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
        (r"model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
        (r"model\.generation_head\.", "gen_head."),
        (r"model\.vqmodel\.(.+)\.mid\.block_1\.", r"gen_vision_model.\1.mid.0."),
        (r"model\.vqmodel\.(.+)\.mid\.attn_1\.", r"gen_vision_model.\1.mid.1."),
        (r"model\.vqmodel\.(.+)\.mid\.block_2\.", r"gen_vision_model.\1.mid.2."),
        (r"model\.vqmodel\.(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.", r"gen_vision_model.\1.conv_blocks.\2.res."),
        (r"model\.vqmodel\.(encoder|decoder)\.(?:down|up)\.(\d+)\.", r"gen_vision_model.\1.conv_blocks.\2."),
        (r"model\.vqmodel\.", "gen_vision_model."),
        (r"model\.(vision_model|aligner)\.", r"\1."),
    )
    state = {"gen_vision_model.quantize.codebook_used": torch.zeros(65536)}
    for name, value in model.state_dict().items():
        pattern, replacement = next(pair for pair in names if re.match(pair[0], name))
        state[re.sub(pattern, replacement, name)] = value
    return state


def write_deepseek(model: Any, folder: Path, kind: str = "bin") -> Path:
    """The layout of deepseek-ai: a pickle, two pickles with an index, or safetensors."""
    folder.mkdir(parents=True)
    state = deepseek_state(model)
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        names = list(state)
        shards = [names[: len(names) // 2], names[len(names) // 2 :]]
        files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        for file, own in zip(files, shards, strict=True):
            torch.save({name: state[name] for name in own}, folder / file)
        index = {name: file for file, own in zip(files, shards, strict=True) for name in own}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    text = {"hidden_size": WIDTH, "num_attention_heads": 4, "model_type": "llama"}
    config = {"model_type": "multi_modality", "language_config": text, "gen_head_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    return folder
