"""Other projects' models of one shape: drawing by their own loops (sample_speed.py), and training (train_speed.py).

minDALL-E and LlamaGen are not packages: give checkouts of github.com/kakaobrain/minDALL-E and
github.com/FoundationVision/LlamaGen. Hugging Face's transformers and DALLE-pytorch are taken where they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Draw = Callable[[int], object]
"""Draws the image tokens of so many candidates."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""The loss of texts [B, T] and image tokens [B, N]."""
NOT_NEEDED: dict[str, dict[str, object]] = {
    "pkg_resources": {"get_distribution": metadata.distribution},
    "requests": {},
    "omegaconf": {"OmegaConf": object},
    "taming": {},
    "taming.models": {},
    "taming.models.vqgan": {"VQModel": object, "GumbelVQ": object},
}
"""What DALLE-pytorch imports for image tokenizers that are not made here, and for its version."""


def package(name: str, folder: Path | None = None) -> types.ModuleType:
    """A package whose own code is not run: only the modules in its folder that are asked for."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [] if folder is None else [str(folder)]
    return module


def mindalle_model(args: argparse.Namespace) -> torch.nn.Module:
    """kakaobrain/minDALL-E's Transformer1d."""
    package("omegaconf").OmegaConf = object  # type: ignore[attr-defined]
    package("stage2", args.mindalle / "dalle" / "models" / "stage2")
    cells = args.rows**2
    options = types.SimpleNamespace(
        embed_dim=args.width,
        n_layers=args.depth,
        n_dense_layers=args.depth,
        n_heads=args.heads,
        ctx_len_img=cells,
        ctx_len_txt=args.text,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        mlp_bias=True,
        attn_bias=True,
        gelu_use_approx=False,
    )
    return importlib.import_module("stage2.transformer").Transformer1d(args.codes, args.codes, options)


def mindalle(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Draw | None:
    """minDALL-E's Transformer1d and `sampling`."""
    if args.mindalle is None:
        return None
    package("mindalle_utils", args.mindalle / "dalle" / "utils")
    model = mindalle_model(args).to(device, dtype).eval()
    sampling = importlib.import_module("mindalle_utils.sampling")
    cells = args.rows**2
    text = torch.randint(1, args.codes, (1, args.text), device=device)
    return lambda batch: sampling.sampling(
        model, text.expand(batch, -1), top_k=256, use_fp16=False, is_tqdm=False, max_seq_len=cells
    )


def llamagen(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Draw | None:
    """FoundationVision/LlamaGen's GPT and `generate`; 120 features of text are its prefix."""
    if args.llamagen is None:
        return None
    sys.path.insert(0, str(args.llamagen))
    gpt = importlib.import_module("autoregressive.models.gpt")
    loop = importlib.import_module("autoregressive.models.generate")
    options = gpt.ModelArgs(
        dim=args.width, n_layer=args.depth, n_head=args.heads, vocab_size=args.codes, block_size=args.rows**2,
        model_type="t2i", cls_token_num=120, caption_dim=args.width,
    )  # fmt: skip
    model = gpt.Transformer(options).to(device, dtype).eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)

    def draw(batch: int) -> Tensor:
        features = torch.randn(batch, 120, args.width, device=device, dtype=dtype)
        with torch.device(device):
            ids: Tensor = loop.generate(model, features, args.rows**2, cfg_scale=1.0, top_k=256)
        return ids

    return draw


def transformers(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Draw | None:
    """Hugging Face's GPT-2 and `generate` with a static cache."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import GPT2Config, GPT2LMHeadModel

    cells = args.rows**2
    config = GPT2Config(
        vocab_size=args.codes, n_positions=args.text + cells, n_embd=args.width, n_layer=args.depth, n_head=args.heads,
        bos_token_id=0, eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).to(device, dtype).eval()
    text = torch.randint(1, args.codes, (1, args.text), device=device)
    return lambda batch: model.generate(
        text.expand(batch, -1), attention_mask=torch.ones(batch, args.text, device=device, dtype=torch.int64),
        max_new_tokens=cells, min_new_tokens=cells, do_sample=True, top_k=256, cache_implementation="static",
    )  # fmt: skip


def dalle_pytorch_model(args: argparse.Namespace) -> torch.nn.Module:
    """lucidrains' DALLE, with an image tokenizer as small as can be."""
    for name, wanted in NOT_NEEDED.items():
        vars(package(name)).update(wanted)
    from dalle_pytorch import DALLE, DiscreteVAE

    vae = DiscreteVAE(image_size=args.rows * 2, num_layers=1, num_tokens=args.codes, codebook_dim=8, hidden_dim=8)
    model: torch.nn.Module = DALLE(
        dim=args.width, vae=vae, num_text_tokens=args.codes, text_seq_len=args.text, depth=args.depth, heads=args.heads,
        dim_head=args.width // args.heads,
    )  # fmt: skip
    return model


def dalle_pytorch(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Draw | None:
    """lucidrains' DALLE and `generate_images`; the time of its image tokenizer, which it always runs, is in it."""
    if importlib.util.find_spec("dalle_pytorch") is None:
        return None
    model = dalle_pytorch_model(args).to(device, dtype).eval()
    text = torch.randint(1, args.codes, (1, args.text), device=device)
    # Without guidance it drops its cache (cond_scale 1): the cache works from a scale of 1.001 on, with twice the rows
    return lambda batch: model.generate_images(text.expand(batch, -1), cond_scale=1.0, use_cache=True)


PEERS = {"minDALL-E": mindalle, "LlamaGen": llamagen, "transformers": transformers, "DALLE-pytorch": dalle_pytorch}


def mindalle_loss(args: argparse.Namespace, device: torch.device) -> tuple[torch.nn.Module, Loss] | None:
    """minDALL-E's Transformer1d with the paper's weights of its two losses."""
    if args.mindalle is None:
        return None
    model = mindalle_model(args).to(device)
    cells, words = torch.arange(args.rows**2, device=device), torch.arange(args.text, device=device)

    def loss(text: Tensor, codes: Tensor) -> Tensor:
        places = (row.expand(len(text), -1) for row in (cells, words))
        of_image, of_text = model(codes, text, *places)
        image = F.cross_entropy(of_image.flatten(0, 1).float(), codes.flatten())
        return image * 7 / 8 + F.cross_entropy(of_text.flatten(0, 1).float(), text[:, 1:].flatten()) / 8

    return model, loss


def dalle_pytorch_loss(args: argparse.Namespace, device: torch.device) -> tuple[torch.nn.Module, Loss] | None:
    """lucidrains' DALLE with its own loss (its image tokenizer is not called: it is given codes)."""
    if importlib.util.find_spec("dalle_pytorch") is None:
        return None
    model = dalle_pytorch_model(args).to(device)
    return model, lambda text, codes: model(text, codes, return_loss=True)


LOSSES = {"minDALL-E": mindalle_loss, "DALLE-pytorch": dalle_pytorch_loss}
