"""Given images through an unCLIP's latents: how exactly they come back, how blends go, what edits change.

Shapes: N images, h height and width of the decoder's images in pixels.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from dalle.apps.judging.judge import Judge, Target
from dalle.apps.judging.sheets import write_sheet
from dalle.apps.unclip_report.held_out import Advance, Judges, Metrics, Pairs, Rows, cosine_distances
from dalle.data.drawings.captions import STYLES, canonical_caption
from dalle.data.drawings.dataset import DrawingsDataset
from dalle.evaluation.metrics import psnr
from dalle.images.transforms import resize_batch, square_tensor
from dalle.pipelines.unclip import UnCLIP

INVERSION_STEPS = (25, 50, 100, 200)
ITERATIONS = (1, 2)
THETAS = (0.25, 0.35, 0.5)
FRAMES = 9
_BATCH = 32


@torch.no_grad()
def inversion_table(pipe: UnCLIP, pairs: Pairs, progress: Advance) -> Rows:
    """DDIM inversion and back, without guidance, at the decoder's size.

    Returns:
        For each number of steps and of network passes per step ("iterations" of `UnCLIP.invert`), "psnr": mean over the
        images in dB, and "worst": the least of them.
    """
    rows: Rows = {}
    for iterations in ITERATIONS:
        for count in INVERSION_STEPS:
            errors = []
            for part in _parts(pairs):
                images = part.pil_images()
                z = pipe.embed_images(images)
                back = pipe.reconstruct(z, pipe.invert(images, z, count, iterations), count)
                errors.append(psnr(back.cpu(), small_images(part, back.shape[-1])))
                progress(len(part))
            found = torch.cat(errors)
            rows[f"{count} steps, {iterations} pass{'es' * (iterations > 1)} each"] = {
                "images": len(pairs),
                "psnr": found.mean().item(),
                "worst": found.min().item(),
            }
    return rows


@torch.no_grad()
def blend_table(pipe: UnCLIP, pairs: Pairs, judges: Judges, out: Path | None, progress: Advance, steps: int) -> Rows:
    """Blends of neighboring images, first with second, third with fourth, ... at the decoder's size.

    Returns:
        "pairs": number of blends; "ends_psnr": the two ends against the images themselves, in dB; "violations": how
        often in all the CLIP distance to the first image falls from one frame to the next; "worst": most in one blend;
        "good": fraction of blends with at most 2.

    Raises:
        ValueError: there are fewer than 2 images.
    """
    if len(pairs) < 2:
        raise ValueError(f"the table blend is of 2 images or more, and the split has {len(pairs)}: leave it out")
    base = without_upsampler(pipe)
    ends, counts, shown = [], [], []
    images, small = pairs.pil_images(), small_images(pairs, base.image_size)
    for first in range(0, len(pairs) - 1, 2):
        frames = torch.stack(
            [square_tensor(one, one.width) for one in base.blend(images[first : first + 2], frames=FRAMES, steps=steps)]
        )
        ends.append(psnr(frames[[0, -1]], small[first : first + 2]))
        embeds = judges.embeds(frames)
        counts.append(violations(cosine_distances(embeds, embeds[:1])))
        shown.append(frames)
        progress(1)
    if out is not None:
        titles = [f"{one} to {other}" for one, other in zip(pairs.captions[::2], pairs.captions[1::2], strict=False)]
        write_sheet(out / "blends.png", titles, {str(n): torch.stack([row[n] for row in shown]) for n in range(FRAMES)})
    return {
        f"{FRAMES} frames, {steps} steps": {
            "pairs": len(counts),
            "ends_psnr": torch.cat(ends).mean().item(),
            "violations": sum(counts),
            "worst": max(counts),
            "good": sum(count <= 2 for count in counts) / len(counts),
        }
    }


def violations(distances: Tensor) -> int:
    """How often a sequence [N] falls."""
    return int((distances[1:] < distances[:-1]).sum())


@torch.no_grad()
def edit_table(
    pipe: UnCLIP,
    dataset: DrawingsDataset,
    judge: Judge,
    styles: tuple[str, str],
    count: int,
    out: Path | None,
    progress: Advance,
    steps: int,
) -> Rows:
    """Images of one style turned to another by the difference of two captions that name the styles.

    Args:
        pipe: the model.
        dataset: held-out drawings.
        judge: a classifier of concepts and styles.
        styles: from, to.
        count: number of images at most.
        out: folder for edits.png; None: no sheet.
        progress: called with 1 after each image.
        steps: of inversion and sampling.

    Returns:
        For theta 0, which is the reconstruction, and each of `THETAS`: "new_style" and "old_style", how often the judge
        ranks that style first; "concept_top10", how often the concept is among its first ten.

    Raises:
        ValueError: a style is unknown, or no drawing has it.
    """
    before, after = styles
    if unknown := [style for style in styles if style not in STYLES]:
        raise ValueError(f"style is {unknown[0]!r}: choose from {', '.join(STYLES)}")
    indices = [index for index, style in enumerate(dataset.styles) if style == before][:count]
    if not indices:
        raise ValueError(f"no drawing of split {dataset.split} has the style {before}: choose another split or style")
    made: dict[float, list[Tensor]] = {theta: [] for theta in (0.0, *THETAS)}
    for index in indices:
        image = Pairs(_image(dataset, index), [""], None).pil_images()[0]
        old, new = (canonical_caption(dataset.concepts[index], STYLES[style]) for style in styles)
        # At once: each is decoded from the same inversion
        edited = pipe.edit(image, old, new, theta=list(made), steps=steps)
        for images, one in zip(made.values(), edited, strict=True):
            images.append(square_tensor(one, one.width))
        progress(1)
    rows: Rows = {}
    for theta, images in made.items():
        found: Metrics = {"images": len(indices)}
        for name, style in (("new_style", after), ("old_style", before)):
            targets = [
                Target(dataset.concepts[index].phrase, style, dataset.canonical_caption(index)) for index in indices
            ]
            ranks = judge.ranks(torch.stack(images), targets)
            found[name] = sum(rank.style_rank == 1 for rank in ranks) / len(ranks)
            found["concept_top10"] = sum(rank.concept_rank <= 10 for rank in ranks) / len(ranks)
        rows[f"theta {theta:g}"] = found
    if out is not None:
        captions = [dataset.canonical_caption(index) for index in indices]
        given = torch.cat([resize_batch(_image(dataset, index), pipe.image_size).clamp(0, 1) for index in indices])
        write_sheet(out / "edits.png", captions, {"given": given} | {f"{t:g}": torch.stack(made[t]) for t in made})
    return rows


def without_upsampler(pipe: UnCLIP) -> UnCLIP:
    """The same model in the decoder's size: what it is given comes back, which the upsampler would redraw."""
    base = copy.copy(pipe)
    if base.upsampler is not None:
        base.upsampler = base.upsampler_last = None
        base.image_size = base.base_size
    return base


def small_images(pairs: Pairs, size: int) -> Tensor:
    """The images [N, 3, size, size] in [0, 1] as the decoder has them."""
    return resize_batch(pairs.images, size).clamp(0, 1)


def _parts(pairs: Pairs) -> list[Pairs]:
    return [pairs.some(range(n, min(n + _BATCH, len(pairs)))) for n in range(0, len(pairs), _BATCH)]


def _image(dataset: DrawingsDataset, index: int) -> Tensor:
    pixels = torch.from_numpy(dataset.pair(index, 0).image)
    return pixels.permute(2, 0, 1)[None].float().div_(255)
