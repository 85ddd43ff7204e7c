"""The unCLIP pipeline (DALL-E 2): text to image, inpainting, and variations, blends and edits of images.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125).

An image is represented by its embedding z, which holds what CLIP recognizes in it, and the noise x_T, which holds what
the decoder needs besides to reconstruct it (section 3). Shapes: B candidates of all prompts, D embedding.
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
from dalle.generation.progress import Progress
from dalle.generation.rerank import match
from dalle.generation.slerp import blend, check_theta, check_weights, slerp, text_difference
from dalle.images.transforms import check_images, check_mask, inpaint_pixels, square_tensor, to_images
from dalle.pipelines.request import as_list, as_texts, check_count, check_number, check_request, check_seed, check_text
from dalle.pipelines.result import Result
from dalle.pipelines.unclip.base import INVERSION, EmbeddingDecoder, Finished
from dalle.pipelines.unclip.sampling import Inpainting, ProgressMeter, stage_seeds


class UnCLIP(EmbeddingDecoder):
    """Text to image by a prior, a diffusion decoder and an upsampler; variations, blends and edits of images.

    Attributes:
        judge: the CLIP that scores candidates; None: there is none.
        model_hash: sha256 of the model folder; "" for published files.
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
        """Load an unCLIP with all its components.

        Args:
            source: folder that `python -m dalle assemble` or `convert` wrote, folder of Karlo or of Kandinsky 2.2's
                decoder, or a hub id.
            prior: source of another prior, trained with the same CLIP; of Kandinsky 2.2, the folder of its prior.
            device: "auto" takes an accelerator if there is one.
            dtype: compute dtype of decoder and upsampler; None: float32. Prior and CLIP are always float32.
            clip: source of a CLIP that scores candidates in place of the model's own.

        Raises:
            ValueError: a source does not exist, components do not fit each other, or there is no such device.
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
        distinct: bool = True,
        **options: Any,
    ) -> list[Result]:
        """Sample `n` candidates for each prompt and keep the best `keep`, as `TextToImage` does.

        Args:
            prompts: one or several.
            n: candidates per prompt. Candidate i has the seed `seed + i`, with which it is the same image alone.
            keep: number of images to return per prompt; None: all.
            seed: of the first candidate, 0 or more.
            image: an image to inpaint; its central square is resized to the model's size.
            mask: white where it is generated anew, of the size of `image`. Elsewhere the pixels of `image` are kept
                exactly; the new part is conditioned on all of them.
            progress: called after each diffusion step.
            distinct: whether `keep` skips near-duplicates as long as there are other images.
            options: fields of `UnCLIPOptions`; guidance, of the decoder; for an autoregressive prior also temperature
                and top_k. Those of a part that the model does not have are an error.

        Returns:
            One result for each prompt.

        Raises:
            ValueError: an option is out of range, or options conflict.
        """
        prompts = as_texts(prompts)
        keep = check_request(prompts, n, keep, seed, self.judge is not None)
        sampling = self._sampling(options)
        inpainting = self._inpainting(image, mask, options.get("resample"))
        rows = [(prompt, seed + i) for prompt in prompts for i in range(n)]
        meter = ProgressMeter(progress, len(rows) * sampling.image_steps(self.upsampler is not None))
        images: list[Image.Image] = []
        scores: list[Tensor] = []
        at_once = self._rows_that_fit(guided=sampling.decoder.guidance != 1)  # guidance runs two rows for each
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            captions, seeds = [prompt for prompt, _ in part], [row_seed for _, row_seed in part]
            meter.rows = len(part)
            text = self.clip.text_states(captions)
            z = self._sample_embeds(text, stage_seeds(seeds, "prior"), sampling.prior)
            decoded = self._decode(z, text, seeds, sampling, inpainting, meter)
            images += to_images(decoded)
            if self.judge is not None:
                scores.append(match(self.judge, decoded, captions))
        all_scores = torch.cat(scores) if scores else None
        parts = [slice(i * n, (i + 1) * n) for i in range(len(prompts))]
        return [
            Result(
                prompt=prompt,
                images=images[part],
                scores=None if all_scores is None else all_scores[part].tolist(),
                codes=None,
                seeds=list(range(seed, seed + n)),
            ).best(keep, distinct)
            for prompt, part in zip(prompts, parts, strict=True)
        ]

    @torch.no_grad()
    def vary(
        self,
        image: Image.Image,
        n: int = 4,
        eta: float = 0.5,
        seed: int = 0,
        steps: int = 50,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[Image.Image]:
        """Variations of an image (section 3.1): decodes its z and x_T by DDIM with eta above 0, which adds noise.

        Args:
            image: the image; its central square is used.
            n: number of variations.
            eta: from 0, which reconstructs the image, to 1, which keeps only what its embedding holds.
            seed: of the first variation; the next ones have the next seeds.
            steps: of inversion and sampling.
            progress: called after each diffusion step.
            finished: called with the images of each batch.
        """
        check_images(image=image)  # a text has latents, too
        check_count("n", n)
        check_seed(seed, n)
        options = replace(INVERSION, steps=steps, eta=eta)
        meter = self._meter(progress, 1, n, steps)
        # Inversion is deterministic (eta 0); only sampling adds noise
        z, x_t = self._latents(image, seed, replace(INVERSION, steps=steps), meter)
        z, x_t, seeds = z.expand(n, -1), x_t.expand(n, -1, -1, -1), list(range(seed, seed + n))
        return self._decode_latents(z, x_t, options, seeds, seeds, meter, finished)

    @torch.no_grad()
    def blend(
        self,
        items: Sequence[Image.Image | str],
        weights: Sequence[float] | None = None,
        frames: int = 9,
        seed: int = 0,
        steps: int = 50,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[Image.Image]:
        """Interpolations between images and texts (section 3.2), by slerp of both z and x_T.

        Args:
            items: images, or texts, whose z comes from the prior and whose x_T is random.
            weights: of each item, for a single image of all of them; None: `frames` images from the first of two items
                to the second, both included.
            frames: number of images without weights, at least 2.
            seed: of x_T and the prior for texts, and of the upsampler.
            steps: of inversion and sampling.
            progress: called after each diffusion step.
            finished: called with the images of each batch.
        """
        items = as_list("items", items, "2 or more images and texts")
        for number, item in enumerate(items, 1):
            if not isinstance(item, (str, Image.Image)):
                raise ValueError(f"item {number} is of type {type(item).__name__}: give a PIL.Image or a text")
        if len(items) < 2:
            raise ValueError(f"a blend is of 2 or more images and texts, got {len(items)}")
        if weights is None and len(items) > 2:
            raise ValueError(f"{len(items)} images and texts need weights: frames lie between two")
        if weights is None:
            check_count("frames", frames, least=2)
        if weights is not None:
            weights = as_list("weights", weights, "numbers")
            for weight in weights:
                check_number("a weight", weight)
            if len(weights) != len(items):
                raise ValueError(f"{len(items)} images and texts with {len(weights)} weights: give each one")
            check_weights(weights)
        check_seed(seed, len(items))
        texts = [item for item in items if isinstance(item, str)]
        for text in texts:
            check_text(text, "text")
        options = replace(INVERSION, steps=steps)
        meter = self._meter(progress, len(items) - len(texts), frames if weights is None else 1, steps)
        latents = [self._latents(item, seed + number, options, meter) for number, item in enumerate(items)]
        embeds, noises = [z for z, _ in latents], [x_t for _, x_t in latents]
        if weights is not None:
            z, x_t = blend(embeds, weights), blend(noises, weights)
        else:
            # Slerp and not a straight line: x_T must keep the norm of Gaussian noise
            fractions = [frame / (frames - 1) for frame in range(frames)]
            z = torch.cat([slerp(embeds[0], embeds[1], fraction) for fraction in fractions])
            x_t = torch.cat([slerp(noises[0], noises[1], fraction) for fraction in fractions])
        # The same noise in the upsampler for all frames, so that a video does not flicker
        seeds = [seed] * len(z)
        return self._decode_latents(z, x_t, options, seeds, seeds, meter, finished)

    @torch.no_grad()
    def edit(
        self,
        image: Image.Image,
        before: str,
        after: str,
        theta: float | Sequence[float] = 0.35,
        frames: int = 1,
        seed: int = 0,
        steps: int = 50,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[Image.Image]:
        """A text diff (section 3.3): rotates z of an image toward the difference of two texts; x_T stays.

        Args:
            image: the image; its central square is used.
            before: a caption of the image, or a generic one such as "a photo".
            after: a caption of the result.
            theta: strength; the paper uses maxima from 0.25 to 0.5. Several: an image of each.
            frames: number of images of one theta, evenly spaced from 0 to it; 1: only that of theta.
            seed: of the upsampler, the same for all images; nothing else is random.
            steps: of inversion and sampling.
            progress: called after each diffusion step.
            finished: called with the images of each batch.
        """
        check_images(image=image)
        check_count("frames", frames)
        check_seed(seed)
        for text in (before, after):
            check_text(text, "text")
        thetas = list(theta) if isinstance(theta, Sequence) and not isinstance(theta, str) else [theta]
        check_count("the number of thetas", len(thetas))
        if frames > 1 and len(thetas) > 1:
            raise ValueError(f"frames is {frames} with {len(thetas)} thetas: frames lie between 0 and one theta")
        for strength in thetas:
            check_number("theta", strength)
            check_theta(strength)  # before the work, and not a fraction of it that belongs to a frame
        if frames > 1:
            thetas = [thetas[0] * frame / (frames - 1) for frame in range(frames)]
        options = replace(INVERSION, steps=steps)
        images = self._to_tensors(image)
        z = self._clip_embeds(images)
        before_embeds, after_embeds = self.clip.encode_text([before, after], normalize=False)  # [D] each
        rotated = torch.cat([text_difference(z, before_embeds, after_embeds, angle) for angle in thetas])
        meter = self._meter(progress, 1, len(thetas), steps)
        x_t = self._invert(images, z, options, meter).expand(len(thetas), -1, -1, -1)
        seeds = [seed] * len(thetas)  # without eta only the upsampler uses them, the same for all
        return self._decode_latents(rotated, x_t, options, seeds, seeds, meter, finished)

    def _inpainting(
        self, image: Image.Image | None, mask: Image.Image | None, resample: int | None
    ) -> Inpainting | None:
        """Check and convert the image and the mask of a call; None if there are none."""
        if image is None and mask is None:
            if resample is not None:
                raise ValueError("resample is for a mask: give an image and a mask, or leave it out")
            return None
        if image is None or mask is None:
            raise ValueError("image and mask go together: the mask is white where the image is made anew")
        check_mask(mask, image)
        pixels = square_tensor(image, self.image_size).to(self.device)
        white = inpaint_pixels(mask, self.image_size).to(self.device)
        return Inpainting(pixels, white, 1 if resample is None else resample)
