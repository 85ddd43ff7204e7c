"""Whether painting works on the models that ship: python benchmarks/paint_quality.py --judge FOLDER

20 held-out captions (of test_pair, drawn by a fixed seed) are painted with the shipped CLIP. Another CLIP, which had no
part in it, ranks 400 held-out captions by how well they fit each painting; the rank of a painting's own caption
is the figure, and the same for the real images of the 20 captions. The judge is trained by

    python train.py configs/emoji/clip.yaml run.dir=runs/emoji-clip-judge run.seed=1

and is then in runs/emoji-clip-judge/model. Paintings are kept in --out and not painted again, so that another judge
costs nothing. Options of painting may follow as key=value, for example steps=80 start=white.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("paint_quality.py")

import torch
from PIL import Image
from torch import Tensor

import dalle
from dalle.apps.vqgan_clip.api import CLIP_FOLDER
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.config import apply_overrides
from dalle.data.drawings import DrawingsConfig, DrawingsDataset
from dalle.files import check_folder
from dalle.images.grid import labeled_columns
from dalle.images.png import write_png
from dalle.images.transforms import to_tensor
from dalle.models.clip import CLIP

CAPTIONS = 400


def held_out(count: int, seed: int) -> tuple[list[str], list[Image.Image], list[str]]:
    """Captions to paint, their real images, and the captions that they are told from (theirs among them)."""
    pairs = DrawingsDataset(DrawingsConfig(sets=("emoji",)), "test_pair", 128)
    others = DrawingsDataset(DrawingsConfig(sets=("emoji",)), "test_block", 128)
    first = {pairs.canonical_caption(index): index for index in reversed(range(len(pairs)))}
    rest = [others.canonical_caption(index) for index in range(len(others))]
    captions = list(dict.fromkeys([*sorted(first, key=lambda caption: first[caption]), *rest]))[:CAPTIONS]
    chosen = random.Random(seed).sample([caption for caption in captions if caption in first], count)
    images = [Image.fromarray(pairs.pair(first[caption], 0).image) for caption in chosen]
    return chosen, images, captions


@torch.inference_mode()
def ranks(judge: CLIP, images: list[Image.Image], own: list[str], captions: list[str]) -> list[int]:
    """The place of each image's own caption among all, 1 for the best."""
    side = judge.config.image_size
    seen = judge.encode_image(torch.cat([to_tensor(image, side, side) for image in images]))
    scores: Tensor = seen @ judge.encode_text(captions).T  # [images, captions]
    places = torch.tensor([captions.index(caption) for caption in own])
    mine = scores.gather(1, places[:, None])
    better: list[int] = (scores > mine).sum(1).tolist()
    return [1 + count for count in better]


def told(name: str, found: list[int]) -> str:
    share = sum(rank <= 10 for rank in found)
    return f"{name}: own caption in the top 10 for {share} of {len(found)}, median rank {statistics.median(found):g}"


def _check_options(file: Path, options: dict[str, Any]) -> None:
    """Refuse a folder of paintings of other options, which would be measured as if they were of these."""
    if not file.is_file():
        if any(file.parent.glob("*.png")):
            raise ValueError(f"{file.parent} has paintings, and {file.name} is missing: give another --out")
        file.write_text(json.dumps(options), encoding="utf-8")
    elif file.read_text(encoding="utf-8") != json.dumps(options):
        raise ValueError(f"{file.parent} has paintings of other options, see {file.name}: give another --out")


def main() -> None:
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--judge", help="folder of a CLIP other than the shipped one; none: only paint")
    parser.add_argument("--count", type=int, default=20, help="captions to paint (%(default)s)")
    parser.add_argument("--choice", type=int, default=0, help="seed of the choice of captions (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/paint-quality"), help="where paintings are kept")
    parser.add_argument("--sheet", type=Path, help="write an image of all paintings, real ones beside them")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of painting")
    args = parser.parse_args()
    options = apply_overrides({}, args.options)
    chosen, real, captions = held_out(args.count, args.choice)
    check_folder(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    _check_options(args.out / "options.json", options)
    painted = []
    for number, caption in enumerate(chosen):
        file = args.out / f"{args.choice}-{number:02d}.png"
        if not file.is_file():
            start = time.perf_counter()
            made = dalle.paint(caption, **options)
            write_png(made.image, file, {"prompt": caption})
            print(f"{caption}: {time.perf_counter() - start:.0f} s, distance {made.losses[-1]['clip']:.3f}", flush=True)
        image = Image.open(file)
        if image.info.get("prompt") != caption:  # of another --count, whose choice differs
            raise ValueError(f"{file} is of another caption than {caption!r}: give another --out")
        painted.append(image.convert("RGB"))
    if args.judge is None:
        return
    judge, own = dalle.load_clip(args.judge), dalle.load_clip(CLIP_FOLDER)
    found, of_real = (ranks(judge, images, chosen, captions) for images in (painted, real))
    for caption, rank, beside in zip(chosen, found, of_real, strict=True):
        print(f"{rank:4d}  (real image {beside:3d})  {caption}")
    print(told("painted", found))
    print(told("real images", of_real))
    print(told("painted, by the CLIP that was optimized", ranks(own, painted, chosen, captions)))
    if args.sheet is not None:
        rows = [
            (caption, [painting, image], [f"painted: {rank}", f"real: {beside}"])
            for caption, painting, image, rank, beside in zip(chosen, painted, real, found, of_real, strict=True)
        ]
        labeled_columns(rows).convert("P", palette=Image.Palette.ADAPTIVE).save(args.sheet, optimize=True)


if __name__ == "__main__":
    sys.exit(run_tool(main))
