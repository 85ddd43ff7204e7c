"""How near drawing comes to what the machine can do: python benchmarks/sample_speed.py [--batches 1 8]

A step of drawing reads every weight once and multiplies it with as many rows as there are candidates. The script
measures how fast this machine reads memory and multiplies matrices, says how many tokens a second these allow, and how
many are drawn, with an untrained transformer (by default of width 768, 12 layers, 64 + 256 tokens, 16,384 codes).

With --mindalle FOLDER or --llamagen FOLDER, checkouts of github.com/kakaobrain/minDALL-E and FoundationVision/LlamaGen,
their models of the same shape draw as many tokens by their own loops, in the same run (float32, without guidance).
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dalle.generate import generate
from dalle.model import DALLE, DALLEConfig
from dalle.transformer import TransformerConfig

READ = 400_000_000  # bytes that no cache holds


def seconds(work: Callable[[], object], rounds: int = 7) -> float:
    """The median time of some work, after one round that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def bandwidth(dtype: torch.dtype) -> float:
    """Bytes a second, the best of several ways to read."""
    flat = torch.ones(READ // dtype.itemsize, dtype=dtype)
    square = flat[: len(flat) // 4096 * 4096].view(-1, 4096)
    vector, column = torch.ones(4096, dtype=dtype), torch.ones(len(square), dtype=dtype)
    ways: list[Callable[[], object]] = [flat.sum, lambda: square @ vector, lambda: column @ square]
    return max(flat.nbytes / seconds(way) for way in ways)


def multiplication(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large product."""
    one, other = torch.ones(2048, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    return 2 * 2048**3 / seconds(lambda: one @ other)


def package(name: str, folder: Path | None = None) -> types.ModuleType:
    """A package whose own code is not run: only the modules in its folder that are asked for."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [] if folder is None else [str(folder)]
    return module


def ours(args: argparse.Namespace, dtype: torch.dtype) -> tuple[Callable[[int], object], int]:
    """What draws the image tokens of a batch, and how many weights a step reads."""
    config = DALLEConfig(
        transformer=TransformerConfig(width=args.width, depth=args.depth, heads=args.heads),
        text_vocab=args.codes,
        text_length=args.text,
        image_vocab=args.codes,
        grid=(args.rows, args.rows),
    )
    model = DALLE(config).to(dtype).eval()
    text = torch.randint(1, args.codes, (1, args.text))
    read = [*model.transformer.parameters(), *model.image_head.parameters()]
    weights = sum(parameter.numel() for parameter in read)
    return lambda batch: generate(model, text, [list(range(batch))], top_k=256, batch_size=batch), weights


def mindalle(args: argparse.Namespace, folder: Path) -> Callable[[int], object]:
    package("omegaconf").OmegaConf = object  # type: ignore[attr-defined]
    package("stage2", folder / "dalle" / "models" / "stage2")
    package("mindalle_utils", folder / "dalle" / "utils")
    transformer = importlib.import_module("stage2.transformer")
    sampling = importlib.import_module("mindalle_utils.sampling")
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
    model = transformer.Transformer1d(args.codes, args.codes, options).eval()
    text = torch.randint(1, args.codes, (1, args.text))
    return lambda batch: sampling.sampling(
        model, text.expand(batch, -1), top_k=256, use_fp16=False, is_tqdm=False, max_seq_len=cells
    )


def llamagen(args: argparse.Namespace, folder: Path) -> Callable[[int], object]:
    sys.path.insert(0, str(folder))
    gpt = importlib.import_module("autoregressive.models.gpt")
    loop = importlib.import_module("autoregressive.models.generate")
    options = gpt.ModelArgs(
        dim=args.width, n_layer=args.depth, n_head=args.heads, vocab_size=args.codes, block_size=args.rows**2,
        model_type="t2i", cls_token_num=120, caption_dim=args.width,
    )  # fmt: skip
    model = gpt.Transformer(options).eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)

    def draw(batch: int) -> Tensor:
        features = torch.randn(batch, 120, args.width)
        ids: Tensor = loop.generate(model, features, args.rows**2, cfg_scale=1.0, top_k=256)
        return ids

    return draw


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=1)
    for name, default in (("width", 768), ("depth", 12), ("heads", 12), ("text", 64), ("rows", 16), ("codes", 16_384)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--mindalle", type=Path)
    parser.add_argument("--llamagen", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    peers = {"minDALL-E": (mindalle, args.mindalle), "LlamaGen": (llamagen, args.llamagen)}
    drawers = {name: make(args, folder) for name, (make, folder) in peers.items() if folder is not None}
    tokens = args.rows**2
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in args.dtypes:
        dtype = getattr(torch, name)
        draw, weights = ours(args, dtype)
        bytes_a_second, operations = bandwidth(dtype), multiplication(dtype)
        print(f"{name}: reads {bytes_a_second / 1e9:.1f} GB/s, multiplies {operations / 1e9:.0f} GFLOP/s")
        for batch in args.batches:
            limit = min(batch * bytes_a_second / (weights * dtype.itemsize), operations / (2 * weights))
            rates = {"ours": draw} | (drawers if dtype == torch.float32 else {})
            found = {}
            for who, work in rates.items():
                times = []
                for _ in range(args.rounds):
                    start = time.perf_counter()
                    work(batch)
                    times.append(time.perf_counter() - start)
                found[who] = batch * tokens / statistics.median(times)
            told = ", ".join(f"{who} {rate:.1f}" for who, rate in found.items())
            share = found["ours"] / limit
            print(f"  batch {batch:>2}: limit {limit:6.1f} tokens/s; {told} ({share:.0%} of the limit)", flush=True)


if __name__ == "__main__":
    main()
