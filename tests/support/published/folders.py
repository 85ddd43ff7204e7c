"""Small published models as their projects write them, with all their parts, for tests that use them as a user does."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.image_tokenizers import GumbelConfig, VQConfig, VQGANConfig, build
from support.published.references.transformers import CASES, CODES, ROWS, WORDS
from support.published.references.weights import weight
from support.published.transformers import reference

CHARACTERS = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4, "a</w>": 5, "b</w>": 6, "c</w>": 7, "ab": 8, "ab</w>": 9}
# Six ids of single characters, two merges
YTTM = "5 2\n9601 4\n1083 5\n1080 6\n1089 7\n1072 8\n4 5 9\n9 6 10\n1 0 2 3\n"
T5_WIDTH = 24


def vqgan(quantizer: VQConfig | GumbelConfig, llamagen: bool = False, blocks: int = 1) -> dict[str, Tensor]:
    """The state of a VQGAN of factor 2 under the names of taming-transformers, or LlamaGen."""
    config = VQGANConfig(
        image_size=2 * ROWS,
        channels=32,
        channel_multipliers=[1, 1],
        blocks=blocks,
        attention_resolutions=[],
        latent_channels=8,
        quantizer=quantizer,
    )
    state: dict[str, Tensor] = {}
    for ours, value in build(config).state_dict().items():
        if ours in ("quantize.age", "quantize.updates"):
            continue
        name = ours.replace("quantize.codebook", "quantize.embedding.weight")
        if llamagen:
            name = re.sub(r"encoder\.down\.(\d)", r"encoder.conv_blocks.\1", name)
            name = re.sub(r"decoder\.up\.(\d)", lambda m: f"decoder.conv_blocks.{1 - int(m[1])}", name)
            name = name.replace(".block.", ".res.")
        for number, theirs in enumerate(("block_1", "attn_1", "block_2") if not llamagen else "012"):
            name = name.replace(f"mid.{number}.", f"mid.{theirs}.")
        name = name.replace("resample", "downsample" if name.startswith("encoder") else "upsample")
        state[name] = weight(name, list(value.shape), 2.0)
    return state


def mindalle(folder: Path) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    vocab = CHARACTERS | {"bc": 10}
    assert len(vocab) == WORDS
    (folder / "tokenizer" / "bpe-16k-vocab.json").write_text(json.dumps(vocab))
    (folder / "tokenizer" / "bpe-16k-merges.txt").write_text("#version: 0.2\na b\na b</w>\nb c\n")
    quantizer = VQConfig(codebook_size=CODES, code_channels=8, distance="euclidean", update="gradient")
    torch.save({"state_dict": vqgan(quantizer)}, folder / "stage1_last.ckpt")
    torch.save({"state_dict": reference("mindalle")[0]}, folder / "stage2_last.ckpt")
    (folder / "config.yaml").write_text("dataset: {context_length: 64}\nstage2: {hparams: {n_heads: 2}}\n")
    return folder


def rudalle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in reference("rudalle-v3")[0].items()
    }
    torch.save(state, folder / "pytorch_model_v3.bin")
    quantizer = GumbelConfig(codebook_size=CODES, code_channels=8)
    loss = {"loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": vqgan(quantizer) | loss}, folder / "vqgan.gumbelf8-sber.model.ckpt")
    (folder / "bpe.model").write_text(YTTM)
    return folder


def dalle_pytorch(folder: Path, version: str = "1.6.6") -> Path:
    folder.mkdir(parents=True)
    state, _ = reference(f"dalle-pytorch-{version}")
    options = {"image_size": 2 * ROWS, "num_tokens": CODES, "codebook_dim": 8, "num_layers": 1, "hidden_dim": 8}
    tree = {"hparams": CASES[f"dalle-pytorch-{version}"], "vae_params": options, "weights": state, "epoch": 3}
    torch.save(tree | {"version": version, "vae_class_name": "DiscreteVAE"}, folder / "dalle.pt")
    (folder / "bpe.model").write_text(YTTM)
    return folder


def llamagen(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    options: Any = Namespace(image_size=16 * ROWS, downsample_size=16, lr=1e-4)
    torch.save({"model": reference(f"llamagen-{kind}")[0], "args": options, "steps": 3}, folder / f"{kind}_XL.pt")
    quantizer = VQConfig(codebook_size=CODES, code_channels=8, distance="cosine", update="gradient")
    torch.save({"model": vqgan(quantizer, llamagen=True)}, folder / f"vq_ds16_{kind}.pt")
    return folder


def t5(folder: Path) -> Path:
    """A tiny T5 with random weights; needs transformers."""
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel  # type: ignore[import-not-found]

    config = T5Config(vocab_size=300, d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    torch.manual_seed(0)
    T5EncoderModel(config).save_pretrained(folder)
    from tokenizers import Tokenizer, models, pre_tokenizers, processors  # type: ignore[import-not-found]

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "fox", "red", "in", "the", "forest"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder
