"""What token shards save: python benchmarks/token_shards.py [RECIPE] [--steps 10]

Encodes a small set of shapes with the recipe's image tokenizer, then trains the recipe's transformer by turns from the
images and from the shards, in the same run. Last, how many rows a second are read from shards of 256 codes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("token_shards.py")

import numpy as np
import torch

from dalle import load_image_tokenizer
from dalle.checkpoints import model_folder
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.data import AnyDataConfig, ShapesConfig, open_data
from dalle.data.batch import Batch
from dalle.data.loader import batches
from dalle.data.token_shards.dataset import ShardsDataset, TokenShardsConfig
from dalle.data.token_shards.encode import EncodeOptions, Encoding
from dalle.data.token_shards.encoders import token_encoder
from dalle.data.token_shards.files import GROUP_ROWS, ShardIndex, write_index, write_shard
from dalle.data.token_shards.provenance import TokenProvenance
from dalle.training.optim import build_optimizer
from dalle.training.recipe import DALLERecipe, load_recipe
from dalle.training.tasks.dalle import DALLETask

IMAGES = 256
ROWS = 65_536


def encoded(recipe: DALLERecipe, folder: Path) -> float:
    """Encode the shapes; returns images a second."""
    tokenizer = load_image_tokenizer(recipe.image_tokenizer)
    sha256 = model_folder.folder_hash(Path(recipe.image_tokenizer))
    encoding = Encoding(ShapesConfig(size=IMAGES), token_encoder(tokenizer, sha256), folder, EncodeOptions())
    encoding.begin()
    start = time.perf_counter()
    found = encoding.run(0, 1, lambda *_: None)
    taken = time.perf_counter() - start
    index = encoding.finish([found])
    return sum(shard.rows for own in (index.shards or {}).values() for shard in own) / taken


def training_step(task: DALLETask, optimizer: torch.optim.Optimizer, data: Iterator[Batch]) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    inputs = task.inputs(next(data))
    with torch.autocast("cpu", torch.bfloat16, enabled=task.recipe.run.precision == "bf16"):
        loss, _ = task.loss(task.phases[0], inputs, 0)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def read_rate(folder: Path) -> float:
    """Rows a second from shards of 256 codes of 8,192, in the order of an epoch."""
    provenance = TokenProvenance(
        image_tokenizer="random",
        codebook_size=8192,
        grid=(16, 16),
        data={},
        records="",
        seed=0,
        views=1,
        mirror=False,
        shard_images=ROWS,
    )
    rng = np.random.default_rng(0)
    columns = {
        "key": [f"part-{row // 1000:05}.tar/{row:09}" for row in range(ROWS)],
        "view": [0] * ROWS,
        "mirrored": [False] * ROWS,
        "captions": [[f"a caption of the usual length, and number {row}"] for row in range(ROWS)],
    }
    shard = write_shard(folder / "train-00000.parquet", columns, rng.integers(0, 8192, (ROWS, 256)), provenance, [])
    write_index(folder, ShardIndex(provenance, {"train": [shard], "validation": []}))
    print(f"a row of 256 codes and a caption: {shard.size / ROWS:.0f} bytes on disk")
    data = ShardsDataset(TokenShardsConfig(path=folder, shuffle_buffer=ROWS // 4), "train")
    start = time.perf_counter()
    for group in range(ROWS // GROUP_ROWS):
        data.pair(group * GROUP_ROWS, 0)
    return ROWS / (time.perf_counter() - start)


def main() -> None:
    parser = CommandLine(description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("configs/emoji/dalle.yaml"))
    parser.add_argument("--steps", type=int, default=10, help="of each kind (default: %(default)s)")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    assert isinstance(recipe, DALLERecipe)
    with tempfile.TemporaryDirectory() as scratch:
        shards, random = Path(scratch) / "shards", Path(scratch) / "random"
        random.mkdir()
        print(f"encoding: {encoded(recipe, shards):.0f} images a second, {torch.get_num_threads()} threads")
        task = DALLETask(recipe, torch.device("cpu"))
        optimizer = build_optimizer(task.model, recipe.optim)
        configs: dict[str, AnyDataConfig] = {
            "images": ShapesConfig(size=IMAGES),
            "shards": TokenShardsConfig(path=shards),
        }
        size = recipe.run.batch_size
        data = {
            name: batches(open_data(config, "train", task.image_size), batch_size=size, seed=0)
            for name, config in configs.items()
        }
        times: dict[str, list[float]] = {name: [] for name in data}
        for _ in range(args.steps + 1):
            for name, stream in data.items():
                times[name].append(training_step(task, optimizer, stream))
        taken = {name: statistics.median(own[1:]) for name, own in times.items()}
        for name, own in taken.items():
            print(f"training from {name}: {own:.3f} s a step of {size}")
        print(f"shards against images: {taken['images'] / taken['shards']:.2f} times as fast")
        print(f"reading: {read_rate(random):,.0f} rows a second")


if __name__ == "__main__":
    sys.exit(run_tool(main))
