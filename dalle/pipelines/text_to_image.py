"""TextToImage: prompts to ranked images, with all parts of a model. Knows nothing of command lines or image files.

Shapes: P prompts, B candidates of all prompts, H W pixels, h w codes of an image.
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
from dalle.generation.generate import Watch, generate
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.generation.progress import Progress
from dalle.generation.rerank import score
from dalle.generation.rolling import Candidate
from dalle.image_tokenizers import ImageTokenizer
from dalle.images.transforms import to_images
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.pipelines.init_image import InitImage, encode_init_image
from dalle.pipelines.prompts import check_text, encode_negative, encode_negatives, encode_prompts, takes_negative
from dalle.pipelines.request import Request, check_request, known_codes_of
from dalle.pipelines.result import Result
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder

_DECODE_BATCH = 32  # images at a time through the image tokenizer and CLIP, whose activations outweigh the codes'


class TextToImage:
    """Generates images for prompts.

    Attributes:
        model: the transformer.
        text_tokenizer: encodes prompts to ids, or a T5 to features.
        image_tokenizer: decodes codes to pixels, and encodes initial images to codes.
        clip: ranks candidates; None if there is none.
        sampling: sampling options that a call does not give.
        model_hash: sha256 of the weights and of the components they were trained with; "" if not from a folder.
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
                f"the model generates {model.config.grid} codes of {model.config.image_vocab}, its image tokenizer has "
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
        if source is None and not (SHIPPED / model_folder.WEIGHTS).is_file():
            raise ValueError(
                f"the model that ships with the repository is not at {SHIPPED}: give the folder of a model"
            )
        device = pick_device(device)
        if dtype == torch.int8 and device.type != "cpu":
            raise ValueError(f"int8 is for sampling on a CPU, the device is {device}: give bfloat16, or device cpu")
        parts = load_components(
            SHIPPED if source is None else source,
            device,
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
        **options: Any,
    ) -> list[Result]:
        """Generate `n` candidates per prompt and return the best `keep`.

        Candidate i of every prompt has the seed `seed + i`, and is the same image if generated alone with that seed.

        Args:
            prompts: one or several; "" (or white space) generates images without a caption. Longer ones than the model
                reads are cut, with a warning.
            n: candidates per prompt.
            keep: number of candidates to return; None returns all. Fewer than `n` needs a CLIP, which chooses them.
            seed: seed of the first candidate, 0 or more.
            image: image to complete (`keep_rows`) or edit (`mask`). Its center square is resized to the model's size;
                transparency becomes white.
            keep_rows: rows of codes to keep from the top of `image`: below 1 a fraction of them, else a whole number.
                Their pixels are decoded from the codes, so they are close to those of `image`, not equal.
            mask: of the size of `image`, white where new content is generated. A code is sampled if any of its pixels
                is white; where the mask is black, the pixels of `image` (at the model's size) are kept as they are.
            progress: called after each step.
            distinct: whether `keep` skips near-duplicates as long as there are other images.
            negative: negative prompt, which guidance leads away from, of a model that takes one (Emu3); None: its own.
            options: fields of `SamplingConfig`, None for the model's own (`sampling`); and of `EngineOptions`, which
                affect speed and memory only.

        Returns:
            One result per prompt.

        Raises:
            ValueError: an option is out of range, or options do not go together.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        keep = check_request(prompts, n, keep, seed, self.clip is not None)
        # What is left after these affects the images, and `updated` refuses unknown names
        engine = EngineOptions(
            **{field.name: options.pop(field.name) for field in fields(EngineOptions) if field.name in options}
        )
        sampling = self.sampling.updated(**options)
        init_image = self.encode_init_image(image, keep_rows, mask)
        seeds = tuple(range(seed, seed + n))
        requests = [Request(prompt, seeds, sampling, init_image, negative=negative) for prompt in prompts]
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
        """Generate the images of requests with different options in one batch, each the same as it is alone.

        Args:
            requests: at least one. It is fastest if all keep equally many tokens at the start of their images: the
                tokens that all of them know run in one pass.
            engine: options that affect speed and memory only.
            progress: called after each step.
            watch: called after each step with the codes so far; an exception in it ends the generation.

        Returns:
            One result per request, its candidates in the order of their seeds.

        Raises:
            ValueError: there is no request, one without seeds, or a negative prompt that the model does not take.
        """
        known_codes, known_mask = known_codes_of(requests, self.image_tokenizer.grid)
        text = encode_prompts(self.model, self.text_tokenizer, [request.prompt for request in requests])
        negatives = [request.negative for request in requests]
        codes = generate(
            self.model,
            text,
            [request.seeds for request in requests],
            [request.sampling for request in requests],
            engine,
            negative=encode_negatives(self.model, self.text_tokenizer, text, negatives),
            known_codes=known_codes,
            known_mask=known_mask,
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
        known_codes, known_mask = known_codes_of(requests, self.image_tokenizer.grid)
        text = encode_prompts(self.model, self.text_tokenizer, [request.prompt for request in requests])
        negatives = [request.negative for request in requests]
        negative = encode_negatives(self.model, self.text_tokenizer, text, negatives)
        found: list[Candidate] = []
        for number, request in enumerate(requests):
            own = None if request.negative is None or negative is None else negative[number]
            for seed in request.seeds:
                candidate = Candidate(text[number], seed, request.sampling, own)
                if known_codes is not None and known_mask is not None:
                    candidate.known_codes, candidate.known_mask = known_codes[len(found)], known_mask[len(found)]
                found.append(candidate)
        return found

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
        return encode_init_image(self.image_tokenizer, image, keep_rows, mask)

    @torch.no_grad()
    def finish(self, codes: Tensor, requests: Sequence[Request]) -> list[Result]:
        """Decode and score the codes [B, h, w] of all requests' candidates."""
        owners = [request for request in requests for _ in request.seeds]  # [B], the request of each candidate
        decoded: list[Image.Image] = []
        scores: list[float | None] = []
        for first in range(0, len(codes), _DECODE_BATCH):
            own = owners[first : first + _DECODE_BATCH]
            images = self._decode(codes[first : first + _DECODE_BATCH])
            # Requests of one batch may start from different images, or from none
            for number, owner in enumerate(own):
                if owner.init_image is not None:
                    images[number] = owner.init_image.paste(images[number])
            decoded += to_images(images)
            scores.extend(self._scores(images, own))
        results, start = [], 0
        for request in requests:
            part = slice(start, start + len(request.seeds))
            start = part.stop
            # A request is scored as a whole or not at all
            own_scores = [value for value in scores[part] if value is not None] or None
            results.append(Result(request.prompt, decoded[part], own_scores, codes[part].cpu(), list(request.seeds)))
        return results

    def _decode(self, codes: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] of codes [B, h, w].

        On a CPU one by one: convolutions of a batch round otherwise, and an image of a batch must be the one that it is
        alone to the last bit.
        """
        parts = codes.split(1 if codes.device.type == "cpu" else len(codes))
        return torch.cat([self.image_tokenizer.decode(part).float() for part in parts])

    def _scores(self, images: Tensor, owners: Sequence[Request]) -> list[float | None]:
        """CLIP's score of each image [B, 3, H, W]; None where the request does not ask for one."""
        # Only images to be scored go through CLIP: a server's client that wants one image needs no ranking
        rows = [i for i, owner in enumerate(owners) if owner.scored]
        found: list[float | None] = [None] * len(owners)
        if self.clip is None or not rows:
            return found
        cosines = score(self.clip, images[rows], [owners[i].prompt for i in rows])
        # A SigLIP's cosines are small even for matching pairs; its sigmoid with the learned bias is a probability
        values = self.clip.probabilities(cosines) if self.clip.config.sigmoid else cosines
        for i, value in zip(rows, values.tolist(), strict=True):
            found[i] = value
        return found
