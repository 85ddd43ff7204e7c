"""UnCLIP (DALL-E 2): text to embedding to image, and images changed through their embedding and their noise.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125).

Letters: P prompts, B candidates of all prompts, D embedding, H W pixels. An image is told by its embedding z, which
says what CLIP sees in it, and the noise x_T, which says the rest (section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.checkpoints.unclip import UnCLIPParts, load_unclip
from dalle.device import pick_device
from dalle.generation.generate import Progress
from dalle.generation.prior import sample_embeddings
from dalle.generation.rerank import score
from dalle.generation.slerp import blend, check_weights, slerp, text_difference
from dalle.images.transforms import check_mask, inpaint_pixels, square_tensor, to_images
from dalle.pipelines.request import check_request
from dalle.pipelines.result import Result
from dalle.pipelines.unclip.base import BATCH, INVERSION, ITERATIONS, EmbeddingDecoder
from dalle.pipelines.unclip.sampling import Meter, Start, stage_seeds


class UnCLIP(EmbeddingDecoder):
    """Text to image by a prior and diffusions, and changes of given images.

    Attributes:
        judge: the CLIP that ranks candidates.
        model_hash: sha256 of the folder.
    """

    def __init__(self, parts: UnCLIPParts):
        super().__init__(parts)
        self.judge, self.model_hash = parts.judge, parts.model_hash

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        prior: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        clip: str | Path | None = None,
    ) -> UnCLIP:
        """Load an unCLIP with all its parts.

        Args:
            source: folder that `python -m dalle assemble` wrote, or its hub id.
            prior: another prior, of the same CLIP.
            device: "auto" takes an accelerator if there is one.
            dtype: arithmetic of decoder and upsampler; None is float32. Prior and CLIP stay in float32.
            clip: source of a CLIP that ranks instead of the model's own.

        Raises:
            ValueError: nothing is there, something does not fit, or there is no such device.
        """
        return cls(load_unclip(source, prior, pick_device(device), dtype, clip))

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        keep: int | None = None,
        seed: int = 0,
        image: Image.Image | None = None,
        mask: Image.Image | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Result]:
        """Sample `n` candidates for each prompt and keep the best `keep`, as `TextToImage` does.

        Args:
            prompts: one or several.
            n: candidates of each prompt. Candidate i has the seed `seed + i`: alone with it, it is the same image.
            keep: how many to return; None returns all.
            seed: of the first candidate, 0 or more.
            image: an image of which a part is made anew; its middle square is brought to the model's size.
            mask: white where it is new, of the size of `image`. Elsewhere the pixels of `image` are returned as they
                are; what is new sees all of them, on all sides.
            progress: called after each step.
            options: fields of `UnCLIPOptions`, and of `SamplingConfig` guidance (of the decoder) and, for an
                autoregressive prior, temperature and top_k.

        Returns:
            One result for each prompt.

        Raises:
            ValueError: an option is out of range, or options do not go together.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        keep = check_request(prompts, n, keep, seed, True)
        sampling = self.sampling.updated(options)
        start = self._start(image, mask, options.get("resample"))
        rows = [(prompt, seed + i) for prompt in prompts for i in range(n)]
        meter = Meter(progress, len(rows), sampling.passes(self.upsampler is not None))
        drawn: list[Image.Image] = []
        scores: list[Tensor] = []
        for first in range(0, len(rows), BATCH):
            part = rows[first : first + BATCH]
            names, seeds = [name for name, _ in part], [own for _, own in part]
            meter.rows = len(part)
            text = self.clip.text_states(names)
            z = sample_embeddings(self.prior, text, stage_seeds(seeds, "prior"), sampling.prior)
            images = self._images(z, text, seeds, sampling, start, meter)
            drawn += to_images(images)
            scores.append(score(self.judge, images, names))
        ranks = torch.cat(scores)
        parts = [slice(i * n, (i + 1) * n) for i in range(len(prompts))]
        return [
            Result(
                prompt=prompt,
                images=drawn[part],
                scores=ranks[part].tolist(),
                codes=None,
                seeds=list(range(seed, seed + n)),
            ).best(keep)
            for prompt, part in zip(prompts, parts, strict=True)
        ]

    @torch.no_grad()
    def vary(
        self, image: Image.Image, n: int = 4, eta: float = 0.5, seed: int = 0, steps: int = 50
    ) -> list[Image.Image]:
        """Other images that say the same (section 3.1): z and x_T stay, and noise is added on the way.

        Args:
            image: to be varied; its middle square is used.
            n: how many.
            eta: 0 gives the image back, 1 makes new all that its embedding does not say.
            seed: of the first; the others follow.
            steps: of inversion and sampling.
        """
        if n < 1:
            raise ValueError(f"n is {n}: sample at least 1")
        options = replace(INVERSION, steps=steps, eta=eta)
        given = self._tensors(image)
        z = self._embedded(given)
        start = self._inverted(given, z, replace(INVERSION, steps=steps), ITERATIONS)
        seeds = list(range(seed, seed + n))
        each, starts = z.expand(n, -1), start.expand(n, -1, -1, -1)
        return self._walked(each, starts, options, seeds, upsampler_seeds=seeds)

    @torch.no_grad()
    def blend(
        self,
        items: Sequence[Image.Image | str],
        weights: Sequence[float] | None = None,
        frames: int = 9,
        seed: int = 0,
        steps: int = 50,
    ) -> list[Image.Image]:
        """What lies between images and texts (section 3.2), by slerp of both z and x_T.

        Args:
            items: images, or texts that the prior embeds; x_T of a text is drawn.
            weights: of each item, for one image of all of them; None: `frames` images from the first of two to the
                other, whose ends give both back.
            frames: how many images without weights, at least 2.
            seed: of what is drawn.
            steps: of inversion and sampling.
        """
        if len(items) < 2:
            raise ValueError(f"a blend is of 2 or more images and texts, got {len(items)}")
        if weights is None and len(items) > 2:
            raise ValueError(f"{len(items)} images and texts need weights: frames lie between two")
        if weights is None and frames < 2:
            raise ValueError(f"frames is {frames}; a blend has at least 2")
        if weights is not None and len(weights) != len(items):
            raise ValueError(f"{len(items)} images and texts with {len(weights)} weights: give each one")
        if weights is not None:
            check_weights(weights)
        options = replace(INVERSION, steps=steps)
        found = [self._located(item, seed + number, options) for number, item in enumerate(items)]
        vectors, noises = [z for z, _ in found], [start for _, start in found]
        if weights is not None:
            z, starts = blend(vectors, weights), blend(noises, weights)
        else:
            shares = [frame / (frames - 1) for frame in range(frames)]
            z = torch.cat([slerp(vectors[0], vectors[1], share) for share in shares])
            starts = torch.cat([slerp(noises[0], noises[1], share) for share in shares])
        return self._walked(z, starts, options, [seed] * len(z), upsampler_seeds=[seed] * len(z))

    @torch.no_grad()
    def edit(
        self, image: Image.Image, before: str, after: str, theta: float = 0.35, frames: int = 1, steps: int = 50
    ) -> list[Image.Image]:
        """An image turned the way from one text to another (section 3.3); x_T stays.

        Args:
            image: to be changed; its middle square is used.
            before: what it shows, or any caption such as "a photo".
            after: what it is to show.
            theta: how far; the paper goes to 0.25 to 0.5.
            frames: images from 0 to theta, the last at theta; 1 is the last alone.
            steps: of inversion and sampling.
        """
        if frames < 1:
            raise ValueError(f"frames is {frames}: sample at least 1")
        options, given = replace(INVERSION, steps=steps), self._tensors(image)
        z = self._embedded(given)
        old, new = self.clip.encode_text([before, after], normalize=False)
        shares = [theta * frame / (frames - 1) for frame in range(frames)] if frames > 1 else [theta]
        turned = torch.cat([text_difference(z, old, new, share) for share in shares])
        start = self._inverted(given, z, options, ITERATIONS)
        return self._walked(turned, start.expand(frames, -1, -1, -1), options, [0] * frames, [0] * frames)

    def _start(self, image: Image.Image | None, mask: Image.Image | None, resample: int | None) -> Start | None:
        """What is kept of a given image."""
        if image is None and mask is None:
            if resample is not None:
                raise ValueError("resample is for a mask: give an image and a mask, or leave it out")
            return None
        if image is None or mask is None:
            raise ValueError("image and mask go together: the mask is white where the image is made anew")
        check_mask(mask, image)
        new = inpaint_pixels(mask, self.image_size).to(self.device)
        return Start(square_tensor(image, self.image_size).to(self.device), new, 1 if resample is None else resample)
