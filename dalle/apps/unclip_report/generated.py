"""Images of an unCLIP judged: by the source of their embedding, beside an autoregressive model, and inpainted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.apps.judging.drawings import Drawings, load_images
from dalle.apps.judging.sheets import write_sheet
from dalle.apps.unclip_report.held_out import Advance, Judges, Metrics, Pairs, Rows, drawing_target
from dalle.data import AnyDataConfig
from dalle.images.transforms import resize, square_tensor, to_images, to_rgb
from dalle.pipelines.result import Result
from dalle.pipelines.unclip import UnCLIP

_BATCH = 32


class Pipeline(Protocol):
    """What both pipelines have: prompts to results, perhaps with an image of which a part is kept."""

    image_size: int

    def __call__(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        *,
        seed: int = 0,
        image: Image.Image | None = None,
        mask: Image.Image | None = None,
    ) -> list[Result]:
        """One result per prompt."""
        ...


@torch.no_grad()
def decoder_table(
    pipe: UnCLIP, pairs: Pairs, judges: Judges, data: AnyDataConfig, out: Path | None, progress: Advance
) -> Rows:
    """Images from true embeddings, from the prior's, and from the caption's in place of an image's (section 5).

    The last has the direction of the text and the length of the image's, as lengths differ between CLIP's towers.

    Args:
        pipe: the model, with its default options.
        pairs: N held-out pairs.
        judges: judge the finished images.
        data: the training images, for the nearest one of each image.
        out: folder for decoder.png, a sheet of the first pairs; None: no sheet.
        progress: called with the number of images made.

    Returns:
        For the images themselves and each source, the metrics of `Judges.metrics` and `Judges.nearest_training`, and
        "cos": the cosine of true and decoded image in the model's own CLIP, both less the training mean.
    """
    mean = getattr(pipe.decoder, "image_mean", torch.zeros(()))
    made: dict[str, list[Tensor]] = {}
    for first in range(0, len(pairs), _BATCH):
        part = pairs.some(range(first, min(first + _BATCH, len(pairs))))
        true, text = pipe.embed_images(part.pil_images()), pipe.clip.encode_text(part.captions, normalize=False)
        sources = {"true embedding": true}
        if pipe.prior is not None:
            sources["prior's embedding"] = pipe.embed(part.captions, seed=first)
        sources["caption's embedding"] = F.normalize(text, dim=-1) * true.norm(dim=-1, keepdim=True)
        for source, z in sources.items():
            made.setdefault(source, []).append(pipe.decode(z, part.captions, seed=first).cpu())
            progress(len(part))
    columns = {"real image": pairs.images} | {source: torch.cat(parts) for source, parts in made.items()}
    own = pipe.embed_images(pairs.pil_images()) - mean
    rows: Rows = {}
    for source, images in columns.items():
        decoded = torch.cat([_own_embeds(pipe, part) for part in images.split(_BATCH)]) - mean
        rows[source] = {"cos": F.cosine_similarity(own, decoded, dim=-1).mean().item()}
        rows[source] |= judges.metrics(images, pairs) | judges.nearest_training(images, data)
    if out is not None:
        write_sheet(out / "decoder.png", pairs.captions, columns)
    return rows


def _own_embeds(pipe: UnCLIP, images: Tensor) -> Tensor:
    return pipe.embed_images(to_images(images))


def systems_table(
    pipes: dict[str, Pipeline],
    drawings: Drawings,
    judges: Judges,
    languages: Sequence[str],
    limit: int | None,
    out: Path | None,
    progress: Advance,
) -> Rows:
    """The first candidate of each model for the captions of drawings, in each language, with its default options.

    Returns:
        Metrics of `Judges.metrics`, and "seconds": time per image.
    """
    rows: Rows = {}
    for language in languages:
        indices = [index for index in range(len(drawings)) if drawings.caption_in(index, language)]
        if limit is not None:
            indices = [indices[number * len(indices) // limit] for number in range(min(limit, len(indices)))]
        targets = [drawing_target(drawings, index) for index in indices]
        pairs = Pairs(load_images(drawings, indices), [target.caption for target in targets], targets)
        prompts = [drawings.caption_in(index, language) or "" for index in indices]
        columns = {"real": pairs.images}
        for name, pipe in pipes.items():
            start, images = time.perf_counter(), []
            for first in range(0, len(prompts), _BATCH):
                images += [result.images[0] for result in pipe(prompts[first : first + _BATCH], seed=0)]
                progress(len(prompts[first : first + _BATCH]))
            seconds = (time.perf_counter() - start) / len(prompts)
            columns[name] = _stacked(images)
            rows[f"{name}, {language}"] = judges.metrics(columns[name], pairs) | {"seconds": seconds}
        if out is not None:
            write_sheet(out / f"systems-{language}.png", prompts, columns)
    return rows


def inpainting_table(
    pipes: dict[str, Pipeline], pairs: Pairs, judges: Judges, out: Path | None, progress: Advance
) -> Rows:
    """The right half of each image is generated anew for its caption.

    Returns:
        Metrics of `Judges.metrics` for the images themselves, with the half white, and of each model; "changed_bytes":
        bytes outside the mask that differ, of all images.
    """
    side = pairs.images.shape[-1]
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 2, 0, side, side))
    half = pairs.images.clone()
    half[..., side // 2 :] = 1
    columns = {"real": pairs.images, "half": half}
    rows: Rows = {title: judges.metrics(images, pairs) for title, images in columns.items()}
    for name, pipe in pipes.items():
        changed, images = 0, []
        for number, (image, caption) in enumerate(zip(pairs.pil_images(), pairs.captions, strict=True)):
            (result,) = pipe(caption, seed=number, image=image, mask=mask)
            images.append(result.images[0])
            known = np.asarray(resize(to_rgb(image), pipe.image_size, pipe.image_size))
            kept = slice(0, pipe.image_size // 2)
            changed += int((np.asarray(images[-1])[:, kept] != known[:, kept]).sum())
            progress(1)
        columns[name] = _stacked(images)
        metrics: Metrics = judges.metrics(columns[name], pairs)
        rows[name] = metrics | {"changed_bytes": changed}
    if out is not None:
        write_sheet(out / "inpainting.png", pairs.captions, columns)
    return rows


def _stacked(images: Sequence[Image.Image]) -> Tensor:
    return torch.stack([square_tensor(image, image.width) for image in images])
