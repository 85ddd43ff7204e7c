"""python -m dalle encode: encode the images of a recipe to token or embedding shards, once for all training runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from dalle.data.token_shards.encode import Encoding
    from dalle.data.token_shards.encoders import ImageEncoder
    from dalle.training.recipe import DALLERecipe, DiffusionRecipe, PriorRecipe

_EPILOG = (
    "Several processes: torchrun --nproc_per_node N -m dalle encode CONFIG OUT. "
    "An interrupted encoding continues when the command is run again."
)


def add(commands: Any) -> None:
    """Add the command to the subparsers of `dalle`."""
    command = commands.add_parser("encode", help="encode images and captions to shards", epilog=_EPILOG)
    command.add_argument(
        "config", type=Path, metavar="CONFIG", help="recipe of stage dalle, of a prior or of a decoder"
    )
    command.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="folder of the shards; train with data.kind=tokens, embeddings or embedded_images",
    )
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the recipe to override")
    command.add_argument("--views", type=int, default=1, help="augmented views per image, as in epochs (%(default)s)")
    command.add_argument(
        "--mirror", action="store_true", help="also mirror each view; captions with 'left of' become wrong"
    )
    command.add_argument("--shard-images", type=int, default=8192, help="images per shard (%(default)s)")
    command.add_argument("--batch-size", type=int, default=64, help="images per batch (%(default)s)")
    command.add_argument("--workers", type=int, default=2, help="threads that read images (%(default)s)")
    command.add_argument("--device", default="auto", help="auto takes an accelerator if there is one (%(default)s)")
    command.set_defaults(run=_run, kept="complete shards are kept: the same command goes on")


def _run(args: argparse.Namespace) -> None:
    from dalle.data.token_shards.dataset import ShardsConfig
    from dalle.data.token_shards.encode import EncodeOptions, Encoding
    from dalle.files import check_folder
    from dalle.training.init_config import resolve_recipe
    from dalle.training.recipe import DALLERecipe, DiffusionRecipe, PriorRecipe

    check_folder(args.out, "OUT")
    recipe = resolve_recipe(args.config, args.overrides)
    if not isinstance(recipe, (DALLERecipe, PriorRecipe, DiffusionRecipe)):
        raise ValueError(f"{args.config} is of stage {recipe.stage}: give a recipe of stage dalle, prior or diffusion")
    if recipe.stage == "diffusion" and recipe.clip is None:
        raise ValueError(f"{args.config} trains an upsampler, which reads no embeddings: give a decoder's recipe")
    # Shards hold no pixels that could be encoded again
    if isinstance(recipe.data, ShardsConfig):
        raise ValueError(f"{args.config}: data.kind is {recipe.data.kind} already; give a recipe with images to encode")
    options = EncodeOptions(recipe.run.seed, args.views, args.mirror, args.shard_images, args.batch_size, args.workers)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # as torchrun sets them
    _encode(Encoding(recipe.data, _encoder(recipe, _device(args.device)), args.out, options), rank, world)


def _encoder(recipe: DALLERecipe | PriorRecipe | DiffusionRecipe, device: torch.device) -> ImageEncoder:
    """What the images of a recipe are encoded with: its image tokenizer, or its CLIP."""
    from functools import partial

    from dalle.checkpoints import model_folder
    from dalle.checkpoints.hub import resolve
    from dalle.checkpoints.load import load_clip, load_image_tokenizer
    from dalle.data.token_shards.encoders import embedded_image_encoder, embedding_encoder, token_encoder
    from dalle.training.recipe import DALLERecipe, DiffusionRecipe

    if isinstance(recipe, DALLERecipe):
        tokenizer = load_image_tokenizer(recipe.image_tokenizer, device)
        return token_encoder(tokenizer, model_folder.folder_hash(resolve(recipe.image_tokenizer)))
    assert recipe.clip is not None
    clip, sha256 = load_clip(recipe.clip, device), model_folder.folder_hash(resolve(recipe.clip))
    encode, dim = partial(clip.encode_image, normalize=False), clip.config.embed_dim
    if isinstance(recipe, DiffusionRecipe):
        side = recipe.model.image_size
        return embedded_image_encoder(encode, sha256, clip.config.image_size, dim, side, device)
    return embedding_encoder(encode, sha256, clip.config.image_size, dim, device)


def _encode(encoding: Encoding, rank: int, world: int) -> None:
    """Encode in all processes: each writes its shards; the first one writes the plan before and the index after."""
    from datetime import timedelta

    from torch import distributed
    from tqdm import tqdm

    if world > 1:  # a long timeout: the processes meet only at the end, and the first to finish may wait for days
        distributed.init_process_group("gloo", timeout=timedelta(days=30))
    if rank == 0:
        encoding.begin()
    if world > 1:
        distributed.barrier()  # it removes unfinished files, which must not be this run's
    bar = tqdm(
        total=encoding.images(rank, world),
        desc="encoding" if world == 1 else f"process 1 of {world}",
        disable=rank > 0,
        unit="image",
        dynamic_ncols=True,
    )

    def on_progress(images: int, there: bool) -> None:
        if there:  # written by an earlier run: must not count toward the rate
            bar.initial, bar.n = bar.initial + images, bar.n + images
            bar.refresh()
        else:
            bar.update(images)

    with bar:
        written = [encoding.run(rank, world, on_progress)]
    if world > 1:
        # The index, which the first process writes, lists the shards of all
        gathered: list[Any] = [None] * world
        distributed.all_gather_object(gathered, written[0])
        written = gathered
    if rank == 0:
        shards = encoding.finish(written).shards or {}
        rows = ", ".join(f"{sum(shard.rows for shard in files):,} rows of {split}" for split, files in shards.items())
        files = [shard for of_split in shards.values() for shard in of_split]
        left_out = len({name for shard in files for name in shard.bad})
        size = sum(shard.size for shard in files)
        print(
            f"{encoding.folder}: {rows} in {len(files)} shards, {size / 1e6:,.1f} MB; "
            f"broken records left out: {left_out}"
        )
    if world > 1:
        distributed.destroy_process_group()


def _device(name: str) -> torch.device:
    """Pick the device; several processes on a machine get one GPU each."""
    import torch

    from dalle.device import pick_device

    device = pick_device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device
