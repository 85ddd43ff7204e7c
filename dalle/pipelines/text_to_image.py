"""TextToImage: a folder of weights and a prompt to ranked images. Knows nothing of command lines or image files.

Letters: P prompts, B candidates of all prompts, H W pixels, h w codes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.checkpoints import model_folder
from dalle.checkpoints.components import load_components
from dalle.checkpoints.hub import SHIPPED
from dalle.device import pick_device
from dalle.generation.generate import Progress, Watch, generate
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.generation.rerank import score
from dalle.image_tokenizers import ImageTokenizer
from dalle.images.transforms import to_images
from dalle.kernels.linear import quantize
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.pipelines.init_image import InitImage, encode_init_image
from dalle.pipelines.prompts import check_text, encode_prompts
from dalle.pipelines.request import Request, check_request
from dalle.pipelines.result import Result
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

_DECODE_BATCH = 32  # images at a time through the image tokenizer and CLIP


class TextToImage:
    """Draws images for prompts.

    Attributes:
        model: the transformer.
        text_tokenizer: reads prompts.
        image_tokenizer: turns codes into pixels, and images to go on from into codes.
        clip: ranks candidates; None if there is none.
        sampling: the sampling options where a call does not give them.
        model_hash: sha256 of the weights and of the parts they stand on; "" if not from a folder.
        image_size: height and width of the images, in pixels.
    """

    def __init__(
        self,
        model: DALLE,
        text_tokenizer: TextTokenizer | T5Encoder,
        image_tokenizer: ImageTokenizer,
        clip: CLIP | None = None,
        sampling: SamplingConfig | None = None,
        model_hash: str = "",
    ):
        if model.config.image_vocab != image_tokenizer.codebook_size or model.config.grid != image_tokenizer.grid:
            raise ValueError(
                f"the model draws {model.config.grid} codes of {model.config.image_vocab}, its image tokenizer has "
                f"{image_tokenizer.grid} of {image_tokenizer.codebook_size}: use the one that it was trained with"
            )
        check_text(model, text_tokenizer)
        self.model, self.text_tokenizer, self.image_tokenizer = model, text_tokenizer, image_tokenizer
        self.clip, self.model_hash = clip, model_hash
        self.sampling = SamplingConfig() if sampling is None else sampling
        self.image_size: int = image_tokenizer.image_size

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        clip: str | Path | None = None,
        *,
        family: str | None = None,
        image_tokenizer: str | Path | None = None,
        text_tokenizer: str | Path | None = None,
        text_encoder: str | Path | None = None,
        **given: Any,
    ) -> TextToImage:
        """Load a model with all that it stands on.

        Args:
            source: local file or folder, or hub id `owner/name[/file]`; ours, or as published (docs/checkpoints.md).
                None is the model that ships with the repository.
            device: "auto" takes an accelerator if there is one.
            dtype: arithmetic of the transformer; None is float32. torch.int8 keeps its weights in 8 bits and computes
                in float32, on a CPU. The image tokenizer and CLIP stay in float32.
            clip: source of a CLIP that ranks instead of the model's own.
            family: of published files, as for `dalle.load_model`; None finds out.
            image_tokenizer: source of the image tokenizer, where it does not come with the model.
            text_tokenizer: source of the text tokenizer, where it does not come with the model.
            text_encoder: source of the T5 encoder of a model that reads its features.
            given: what a published file does not tell, as for `dalle.load_model`.

        Raises:
            ValueError: nothing is there, something does not fit, or there is no such device.
        """
        if source is None and not (SHIPPED / model_folder.WEIGHTS).is_file():
            raise ValueError(
                f"the model that ships with the repository is not at {SHIPPED}: give the folder of a model"
            )
        device = pick_device(device)
        if dtype == torch.int8 and device.type != "cpu":
            raise ValueError(f"int8 is for drawing on a CPU, the device is {device}: give bfloat16, or device cpu")
        parts = load_components(
            SHIPPED if source is None else source,
            device,
            None if dtype == torch.int8 else dtype,
            family=family,
            image_tokenizer=image_tokenizer,
            text_tokenizer=text_tokenizer,
            text_encoder=text_encoder,
            clip=clip,
            given=given,
        )
        # Loaded in float32 first: the scales of 8-bit weights come from exact ones
        if dtype == torch.int8:
            quantize(parts.model)
        return cls(
            parts.model, parts.text_tokenizer, parts.image_tokenizer, parts.clip, parts.sampling, parts.model_hash
        )

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        keep: int | None = None,
        seed: int = 0,
        image: Image.Image | None = None,
        keep_rows: float | None = None,
        mask: Image.Image | None = None,
        progress: Progress | None = None,
        distinct: bool = True,
        **options: Any,
    ) -> list[Result]:
        """Draw `n` candidates for each prompt and keep the best `keep`.

        Candidate i of every prompt has the seed `seed + i`: alone with that seed it is the same image.

        Args:
            prompts: one or several; "" (or white space) draws what comes without a caption. Too long ones are cut,
                with a warning.
            n: candidates of each prompt.
            keep: how many of them to return; None returns all. Fewer than `n` needs CLIP to choose them.
            seed: of the first candidate, 0 or more.
            image: an image to go on from, with `keep_rows` or `mask`. Its middle square is brought to the model's
                size; where it is transparent it becomes white.
            keep_rows: rows of codes to keep from the top of `image`: below 1 a fraction of them, else a whole number.
                Their pixels come from the codes, so they are close to those of `image`, not equal.
            mask: white where `image` is drawn anew, of the same size. A code is drawn if any of its pixels is white;
                where the mask is black, the pixels of `image` (at the model's size) are kept as they are.
            progress: called after each step.
            distinct: whether `keep` skips near-duplicates as long as there are other images.
            options: fields of `SamplingConfig` (guidance, temperature, top_k, top_p, guidance_until), where None is the
                model's own (`sampling`); and of `EngineOptions` (window, compiled, batch_size, max_memory), which
                change speed and memory, and no image.

        Returns:
            One result for each prompt.

        Raises:
            ValueError: an option is out of range, or options do not go together.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        keep = check_request(prompts, n, keep, seed, self.clip is not None)
        # Options of speed and memory are told apart from those that an image depends on
        engine = EngineOptions(
            **{field.name: options.pop(field.name) for field in fields(EngineOptions) if field.name in options}
        )
        sampling = self.sampling.updated(**options)
        init_image = self.encode_init_image(image, keep_rows, mask)
        seeds = tuple(range(seed, seed + n))
        requests = [Request(prompt, seeds, sampling, init_image) for prompt in prompts]
        return [result.best(keep, distinct) for result in self.draw(requests, engine, progress=progress)]

    @torch.no_grad()
    def draw(
        self,
        requests: Sequence[Request],
        engine: EngineOptions = EngineOptions(),
        *,
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> list[Result]:
        """Draw requests with different options together, each candidate as it is alone.

        Args:
            requests: at least one. Requests that keep equally many tokens at the start of their images are best drawn
                together: what all keep is run at once.
            engine: speed and memory, on which no image depends.
            progress: called after each step.
            watch: called after each step with the codes so far; what it raises ends the work.

        Returns:
            A result for each request, its candidates in the order of their seeds.

        Raises:
            ValueError: there is no request, or one without seeds.
        """
        known_codes, known_mask = self._known(requests)
        codes = generate(
            self.model,
            encode_prompts(self.model, self.text_tokenizer, [request.prompt for request in requests]),
            [request.seeds for request in requests],
            [request.sampling for request in requests],
            engine,
            known_codes=known_codes,
            known_mask=known_mask,
            progress=progress,
            watch=watch,
        )  # [B, h, w]
        return self._finish(codes, requests)

    def text_tokens(self, prompt: str) -> int | None:
        """How many text tokens a prompt has before it is cut; None where an encoder of features reads it."""
        tokenizer = self.text_tokenizer
        return None if isinstance(tokenizer, T5Encoder) else len(tokenizer.encode_ragged([prompt])[0])

    @torch.no_grad()
    def encode_init_image(
        self, image: Image.Image | None, keep_rows: float | None, mask: Image.Image | None
    ) -> InitImage | None:
        """Encode what candidates keep of `image`, given as for a call; None without an image.

        Raises:
            ValueError: the three do not go together.
        """
        return encode_init_image(self.image_tokenizer, image, keep_rows, mask)

    def _known(self, requests: Sequence[Request]) -> tuple[Tensor | None, Tensor | None]:
        """Known codes int64 [B, h, w] and their mask, on the CPU; None if no request has an image."""
        if all(request.init_image is None for request in requests):
            return None, None
        empty = torch.zeros(self.image_tokenizer.grid, dtype=torch.int64)
        codes, masks = [], []
        for request in requests:
            given = request.init_image or InitImage(empty, empty.bool())  # nothing is known
            codes.append(given.codes.cpu().expand(len(request.seeds), -1, -1))
            masks.append(given.known_mask.expand(len(request.seeds), -1, -1))
        return torch.cat(codes), torch.cat(masks)

    def _finish(self, codes: Tensor, requests: Sequence[Request]) -> list[Result]:
        """Codes [B, h, w] of all requests' candidates as images with scores."""
        owners = [request for request in requests for _ in request.seeds]  # [B]
        drawn: list[Image.Image] = []
        scores: list[float | None] = []
        for first in range(0, len(codes), _DECODE_BATCH):
            own = owners[first : first + _DECODE_BATCH]
            images = self.image_tokenizer.decode(codes[first : first + _DECODE_BATCH]).float()
            # Requests of one batch may start from different images, or from none
            for number, owner in enumerate(own):
                if owner.init_image is not None:
                    images[number] = owner.init_image.paste(images[number])
            drawn += to_images(images)
            scores.extend(self._scores(images, own))
        results, start = [], 0
        for request in requests:
            part = slice(start, start + len(request.seeds))
            start = part.stop
            known = [value for value in scores[part] if value is not None]
            results.append(Result(request.prompt, drawn[part], known or None, codes[part].cpu(), list(request.seeds)))
        return results

    def _scores(self, images: Tensor, owners: Sequence[Request]) -> list[float | None]:
        """CLIP's score of each image [B, 3, H, W] whose request asks for one, else None."""
        # Only these go through CLIP: a client that asks for one image needs no ranking
        rows = [i for i, owner in enumerate(owners) if owner.scored]
        found: list[float | None] = [None] * len(owners)
        if self.clip is None or not rows:
            return found
        cosines = score(self.clip, images[rows], [owners[i].prompt for i in rows])
        # A SigLIP's cosines are small even where image and text fit; its probabilities can be read
        values = self.clip.probabilities(cosines) if self.clip.config.sigmoid else cosines
        for i, value in zip(rows, values.tolist(), strict=True):
            found[i] = value
        return found
