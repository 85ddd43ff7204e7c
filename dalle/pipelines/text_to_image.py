"""TextToImage: prompts to ranked images, with all parts of a model. Knows nothing of command lines or image files.

Shapes: P prompts, B candidates of all prompts, H W pixels, h w codes of an image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.checkpoints.components import load_components
from dalle.device import pick_device
from dalle.generation.generate import Watch, generate
from dalle.generation.options import EngineOptions, SamplingConfig, split_options
from dalle.generation.progress import Progress
from dalle.generation.rolling import Candidate
from dalle.image_tokenizers import ImageTokenizer
from dalle.images.size import Size, read_size
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.pipelines.finished import finished
from dalle.pipelines.init_image import InitImage, encode_init_image
from dalle.pipelines.model_inputs import candidates_of, encode_requests
from dalle.pipelines.prompts import check_tokenizer, encode_negative, takes_negative
from dalle.pipelines.request import Request, as_texts, check_request
from dalle.pipelines.result import Result
from dalle.pipelines.sizes import draws, sized
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder


class TextToImage:
    """Generates images for prompts.

    Attributes:
        model: the transformer.
        text_tokenizer: encodes prompts to ids, or a T5 to features.
        image_tokenizer: decodes codes to pixels, and encodes initial images to codes.
        clip: ranks candidates; None if there is none.
        sampling: sampling options that a call does not give.
        model_hash: sha256 of the weights and of the components they were trained with, or of a published file; "" if
            not given.
        image_size: height and width of the images that the image tokenizer is meant for, in pixels.
        size: width and height of the images, in pixels.
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
                f"the model generates {model.config.grid} codes of {model.config.image_vocab}, its image tokenizer has "
                f"{image_tokenizer.grid} of {image_tokenizer.codebook_size}: use the one that it was trained with"
            )
        check_tokenizer(model, text_tokenizer)
        self.model, self.text_tokenizer, self.image_tokenizer = model, text_tokenizer, image_tokenizer
        self.clip, self.model_hash = clip, model_hash
        self.sampling = SamplingConfig() if sampling is None else sampling
        self.image_size: int = image_tokenizer.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of the images."""
        return self.model.config.grid

    @property
    def size(self) -> Size:
        """See the class."""
        rows, columns = self.grid
        return columns * self.image_tokenizer.factor, rows * self.image_tokenizer.factor

    def grid_of(self, size: Size | None) -> tuple[int, int]:
        """Rows and columns of codes of images of a size that the model draws; None: its own."""
        width, height = size or self.size
        return height // self.image_tokenizer.factor, width // self.image_tokenizer.factor

    def draws(self, size: str | Size) -> bool:
        """Whether the model draws images of a size, as for `sized`."""
        return draws(self.model, self.image_tokenizer.factor, read_size(size))

    def sized(self, size: str | Size) -> TextToImage:
        """The same pipeline for images of another size; all weights are shared.

        Args:
            size: "WIDTHxHEIGHT" in pixels, or width and height.

        Raises:
            ValueError: the model does not draw it; many draw one size only.
        """
        size = read_size(size)
        if size == self.size:
            return self
        view = copy.copy(self)
        view.model, view.text_tokenizer = sized(self.model, self.text_tokenizer, self.image_tokenizer.factor, size)
        return view

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
        """Load a model with its tokenizers and CLIP.

        Args:
            source: local file or folder, or hub id `owner/name[/file]`; ours, or as published (docs/checkpoints.md).
                None is the model that ships with the repository.
            device: "auto" takes an accelerator if there is one.
            dtype: precision of the transformer; None is float32. torch.int8 keeps its weights in 8 bits, to
                which each is rounded as it is read, and computes in float32, on a CPU. The image tokenizer and CLIP
                stay in float32.
            clip: source of a CLIP that ranks instead of the model's own.
            family: project of published files, as for `dalle.load_model`; None detects it.
            image_tokenizer: source of the image tokenizer, if the model does not include it.
            text_tokenizer: source of the text tokenizer, if the model does not include it.
            text_encoder: source of the T5 encoder of a model that reads its features.
            given: facts that a published file does not contain, as for `dalle.load_model`.

        Raises:
            ValueError: nothing is found, something does not fit together, or there is no such device.
        """
        parts = load_components(
            source,
            pick_device(device),
            dtype,
            family=family,
            image_tokenizer=image_tokenizer,
            text_tokenizer=text_tokenizer,
            text_encoder=text_encoder,
            clip=clip,
            given=given,
        )
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
        negative: str | None = None,
        size: str | Size | None = None,
        **options: Any,
    ) -> list[Result]:
        """Generate `n` candidates per prompt and return the best `keep`.

        Candidate i of every prompt has the seed `seed + i`, and is the same image if generated alone with that seed.

        Args:
            prompts: one or several; "" (or no visible character) generates images without a caption. Longer ones than
                the model reads are cut, with a warning.
            n: candidates per prompt.
            keep: number of candidates to return; None returns all. Fewer than `n` needs a CLIP, which chooses them.
            seed: seed of the first candidate, 0 or more.
            image: image to complete (`keep_rows`) or edit (`mask`). Its center is cropped and resized to the size;
                transparency becomes white.
            keep_rows: rows of codes to keep from the top of `image`: below 1 a fraction of them, else a whole number.
                Their pixels are decoded from the codes, so they are close to those of `image`, not equal.
            mask: of the size of `image`, white where new content is generated. A code is sampled if any of its pixels
                is white; where the mask is black, the pixels of `image` (at the model's size) are kept as they are.
            progress: called after each step.
            distinct: whether `keep` skips near-duplicates as long as there are other images.
            negative: negative prompt, which guidance leads away from, of a model that takes one (Emu3, Emu3.5,
                SimpleAR); None: its own.
            size: "WIDTHxHEIGHT" in pixels, or width and height, of a model that draws several (`sized`); None: its own.
            options: fields of `SamplingConfig`, None for the model's own (`sampling`); and of `EngineOptions`, which
                affect speed and memory only.

        Returns:
            One result per prompt.

        Raises:
            ValueError: an option is out of range, or options do not go together.
        """
        pipe = self if size is None else self.sized(size)
        prompts = as_texts(prompts)
        keep = check_request(prompts, n, keep, seed, self.clip is not None, negative)
        engine, sampled = split_options(options)
        sampling = self.sampling.updated(**sampled)
        init_image = pipe.encode_init_image(image, keep_rows, mask)
        seeds = tuple(range(seed, seed + n))
        requests = [Request(prompt, seeds, sampling, init_image, negative=negative) for prompt in prompts]
        return [result.best(keep, distinct) for result in pipe.draw(requests, engine, progress=progress)]

    @torch.no_grad()
    def draw(
        self,
        requests: Sequence[Request],
        engine: EngineOptions = EngineOptions(),
        *,
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> list[Result]:
        """Generate the images of requests with different options in one batch, each the same as it is alone.

        Args:
            requests: at least one, all of one size. It is fastest if all keep equally many tokens at the start of their
                images: the tokens that all of them know run in one pass.
            engine: options that affect speed and memory only.
            progress: called after each step.
            watch: called after each step with the codes so far; an exception in it ends the generation.

        Returns:
            One result per request, its candidates in the order of their seeds.

        Raises:
            ValueError: there is no request, one without seeds, or a negative prompt or size that the model does not
                take.
        """
        sizes = {request.size or self.size for request in requests}
        if len(sizes) > 1:
            raise ValueError(f"requests of one batch have one size, these {len(sizes)}: draw them one after the other")
        if sizes - {self.size}:
            return self.sized(*sizes).draw(requests, engine, progress=progress, watch=watch)
        inputs = encode_requests(self.model, self.text_tokenizer, requests)
        codes = generate(
            self.model,
            inputs.text,
            [request.seeds for request in requests],
            [request.sampling for request in requests],
            engine,
            negative=inputs.negative,
            known_codes=inputs.known_codes,
            known_mask=inputs.known_mask,
            progress=progress,
            watch=watch,
        )  # [B, h, w]
        return self.finish(codes, requests)

    @torch.no_grad()
    def candidates(self, requests: Sequence[Request]) -> list[Candidate]:
        """The candidates of requests for a `RollingBatch` of the model, whose codes `finish` makes images of.

        Raises:
            ValueError: a negative prompt that the model does not take.
        """
        return candidates_of(requests, encode_requests(self.model, self.text_tokenizer, requests))

    def text_tokens(self, prompt: str) -> int | None:
        """The number of a prompt's tokens before it is cut; None for a model that reads features of a T5."""
        tokenizer = self.text_tokenizer
        return None if isinstance(tokenizer, T5Encoder) else len(tokenizer.encode_ragged([prompt])[0])

    @property
    def takes_negative(self) -> bool:
        """Whether the model takes negative prompts."""
        return takes_negative(self.text_tokenizer)

    def check_negative(self, negative: str) -> None:
        """Check a negative prompt before anything is generated.

        Raises:
            ValueError: the model takes none, or it is too long.
        """
        encode_negative(self.text_tokenizer, negative, self.model.config.text_length)

    @torch.no_grad()
    def encode_init_image(
        self, image: Image.Image | None, keep_rows: float | None, mask: Image.Image | None
    ) -> InitImage | None:
        """Encode an image to complete or edit, with the arguments of a call; None without an image.

        Raises:
            ValueError: the arguments contradict each other.
        """
        return encode_init_image(self.image_tokenizer, self.size, image, keep_rows, mask)

    @torch.no_grad()
    def finish(self, codes: Tensor, requests: Sequence[Request]) -> list[Result]:
        """Decode and score the codes [B, h, w] of all requests' candidates."""
        return finished(self.image_tokenizer, self.clip, codes, requests)
