"""Draw the sheets of docs/gallery.md: python docs/gallery.py [MODEL] [--out docs/images/gallery] [--only NAME ...]

Every sheet shows the best of --n candidates as CLIP and agreement rank them, in that order, of the prompts below and
the seeds from --seed on: nothing is picked by hand. The prompts were chosen before anything was drawn.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("gallery.py")

from PIL import Image, ImageDraw

import dalle
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool
from dalle.data import open_data
from dalle.data.drawings.config import DrawingsConfig
from dalle.files import check_folder
from dalle.images.grid import Row, labeled_columns, labeled_grid
from dalle.pipelines.request import check_request

KNOWN = (
    "a red heart, 3d style", "a cat, noto style", "a rocket, 3d style", "a slice of pizza, twemoji style",
    "an umbrella, noto style", "a bicycle, twemoji style", "a palm tree, blob style", "a house, noto style",
)  # fmt: skip
STYLES = ("noto", "blob", "twemoji", "3d", "flat", "black and white", "emojione", "outline", "solid", "pixel art")
LANGUAGES = ("a red heart", "लाल मुटु", "लाल दिल", "a cat", "बिरालो", "बिल्ली", "a tree", "रूख", "पेड़")
COLORS = (
    "a teal wolf head, solid style, on a pale pink background", "a purple anchor, solid style",
    "a white house, solid style, on a dark blue background", "an orange bell, solid style, on a black background",
    "a green key, solid style, on a pale yellow background",
)  # fmt: skip
SCENES = (
    "a cat to the left of a red car", "a star above a house", "a tree to the right of a dog", "a heart below a key",
)  # fmt: skip
UNSEEN = (
    "an astronaut riding a horse", "a blue banana", "a cat made of cheese", "a dragon playing the guitar",
    "the word hello", "seven red circles",
)  # fmt: skip


@dataclass(frozen=True)
class Studio:
    """What every sheet is drawn with."""

    pipe: dalle.TextToImage
    n: int
    keep: int
    seed: int

    def best(self, prompts: Sequence[str]) -> list[Row]:
        """The best of n candidates of each prompt, with CLIP's scores."""
        found = self.pipe(list(prompts), n=self.n, keep=self.keep, seed=self.seed)
        return [(one.prompt, one.images, [f"{score:.2f}" for score in one.scores or []]) for one in found]

    def known(self) -> list[Row]:
        return self.best(KNOWN)

    def styles(self) -> list[Row]:
        """The best of each style, two things."""
        rows = []
        for thing in ("a dog", "a rocket"):
            found = self.pipe([f"{thing}, {style} style" for style in STYLES], n=self.n, keep=1, seed=self.seed)
            rows.append((f"{thing}, ... style", [one.images[0] for one in found], STYLES))
        return rows

    def languages(self) -> list[Row]:
        return self.best(LANGUAGES)

    def colors(self) -> list[Row]:
        return self.best(COLORS)

    def scenes(self) -> list[Row]:
        return self.best(SCENES)

    def unseen(self) -> list[Row]:
        return self.best(UNSEEN)

    def seeds(self) -> list[Row]:
        """Candidates as they come, in the order of their seeds."""
        rows = []
        for one in self.pipe(list(KNOWN[:4]), n=8, seed=self.seed):  # each ordered by its scores
            by_seed = sorted(zip(one.seeds, one.images, strict=True), key=lambda pair: pair[0])
            rows.append((one.prompt, [image for _, image in by_seed], [f"seed {seed}" for seed, _ in by_seed]))
        return rows

    def guidance(self) -> list[Row]:
        """One seed at several scales of guidance."""
        scales = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
        rows = []
        for prompt in KNOWN[:4]:
            images = [self.pipe(prompt, seed=self.seed, guidance=scale)[0].images[0] for scale in scales]
            rows.append((prompt, images, [f"guidance {scale:g}" for scale in scales]))
        return rows

    def held_out(self) -> list[Row]:
        """Pairs of a thing and a style that training never saw, with the real image first."""
        pairs = self._pairs("test_pair", 8)
        found = self.pipe([caption for caption, _ in pairs], n=self.n, keep=self.keep, seed=self.seed)
        return [
            (one.prompt, [image, *one.images], ["real", *(f"{score:.2f}" for score in one.scores or [])])
            for one, (_, image) in zip(found, pairs, strict=True)
        ]

    def _pairs(self, split: str, count: int) -> list[tuple[str, Image.Image]]:
        """Images of a split of the emoji, evenly spread, with their captions."""
        data = open_data(DrawingsConfig(kind="drawings", sets=("emoji",)), split, self.pipe.image_size)
        pairs = [data.pair(index, 0) for index in range(0, len(data), max(1, len(data) // count))][:count]
        return [(pair.caption, Image.fromarray(pair.image)) for pair in pairs]

    def completions(self) -> list[Row]:
        """The lower half of held-out images is drawn anew."""
        rows = []
        for caption, image in self._pairs("validation", 5):
            (found,) = self.pipe(caption, n=self.n, keep=self.keep, seed=self.seed, image=image, keep_rows=0.5)
            half = image.copy()
            half.paste("gray", (0, image.height // 2, image.width, image.height))
            rows.append((caption, [image, half, *found.images], ["whole", "kept", *["best"] * len(found.images)]))
        return rows

    def masks(self) -> list[Row]:
        """The middle of held-out images is drawn anew."""
        rows = []
        for caption, image in self._pairs("validation", 5):
            side = image.width
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).rectangle((side // 4, side // 4, side * 3 // 4 - 1, side * 3 // 4 - 1), fill=255)
            (found,) = self.pipe(caption, n=self.n, keep=self.keep, seed=self.seed, image=image, mask=mask)
            shown = Image.composite(Image.new("RGB", image.size, "gray"), image, mask)
            rows.append((caption, [image, shown, *found.images], ["whole", "kept", *["best"] * len(found.images)]))
        return rows


SHEETS: dict[str, Callable[[Studio], list[Row]]] = {
    "known": Studio.known,
    "held_out": Studio.held_out,
    "styles": Studio.styles,
    "languages": Studio.languages,
    "colors": Studio.colors,
    "scenes": Studio.scenes,
    "completions": Studio.completions,
    "masks": Studio.masks,
    "guidance": Studio.guidance,
    "seeds": Studio.seeds,
    "unseen": Studio.unseen,
}


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    parser = CommandLine(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="models/emoji", help="model folder (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images/gallery"), help="folder of the sheets (%(default)s)"
    )
    parser.add_argument("--only", nargs="+", choices=SHEETS, default=list(SHEETS), metavar="NAME", help="default: all")
    parser.add_argument("--n", type=int, default=16, help="candidates (%(default)s)")
    parser.add_argument("--keep", type=int, default=4, help="shown of them (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first candidate (%(default)s)")
    args = parser.parse_args()
    check_folder(args.out)
    check_request(list(KNOWN), args.n, args.keep, args.seed, ranks=True)  # before the model is loaded
    studio = Studio(dalle.TextToImage.from_pretrained(args.model), args.n, args.keep, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        rows = SHEETS[name](studio)
        narrow = max(len(images) for _, images, _ in rows) <= 5
        (labeled_columns if narrow else labeled_grid)(rows).save(args.out / f"{name}.png", optimize=True)
        print(args.out / f"{name}.png", flush=True)


if __name__ == "__main__":
    sys.exit(run_tool(main))
