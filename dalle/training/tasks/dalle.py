"""Training the transformer over captions and the codes of their pictures."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from dalle import artifact
from dalle.config import to_dict
from dalle.data.loader import Batch
from dalle.evaluate import dalle_figures, unit_images
from dalle.generate import generate
from dalle.hub import resolve
from dalle.loading import load_image_tokenizer, load_text_tokenizer
from dalle.model import DALLE
from dalle.training.recipe import DALLERecipe
from dalle.training.tasks.task import Phase, Task, image_grid


@dataclass
class Inputs:
    text: Tensor  # [B, T]
    codes: Tensor  # [B, h * w]


class DALLETask(Task):
    model: DALLE

    def __init__(self, recipe: DALLERecipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.text_tokenizer = load_text_tokenizer(recipe.text_tokenizer)
        self.image_tokenizer = load_image_tokenizer(recipe.image_tokenizer).to(device)
        self._check_tokenizers()
        self.model = DALLE(recipe.model).to(device)
        self.state = nn.ModuleDict({"model": self.model})
        self.phases = [Phase("dalle", self.model, recipe.optim)]
        self.image_size = self.image_tokenizer.image_size
        height, width = recipe.model.grid
        self.tokens_per_image = recipe.model.text_length + height * width

    def _check_tokenizers(self) -> None:
        model = self.recipe.model
        for key, have, want, owner in (
            ("text_vocab", model.text_vocab, self.text_tokenizer.vocab_size, self.recipe.text_tokenizer),
            ("image_vocab", model.image_vocab, self.image_tokenizer.codebook_size, self.recipe.image_tokenizer),
            ("grid", list(model.grid), list(self.image_tokenizer.grid), self.recipe.image_tokenizer),
        ):
            if have != want:
                raise ValueError(f"model.{key} is {have}, but {owner} needs {want}: set model.{key}={want}")

    def inputs(self, batch: Batch) -> Inputs:
        """Captions become ids with BPE dropout, some become padding; pictures become codes."""
        recipe = self.recipe
        text = self._encode(batch.captions, dropout=recipe.bpe_dropout, seed=batch.seeds)
        dropped = [random.Random(f"caption dropout/{seed}").random() < recipe.caption_dropout for seed in batch.seeds]
        text[torch.tensor(dropped)] = self.text_tokenizer.pad_id
        return Inputs(text.to(self.device), self._codes(batch))

    def _encode(self, captions: list[str], dropout: float = 0.0, seed: list[int] | None = None) -> Tensor:
        return self.text_tokenizer.encode(captions, self.recipe.model.text_length, dropout=dropout, seed=seed)

    def _codes(self, batch: Batch) -> Tensor:
        return self.image_tokenizer.encode(unit_images(batch, self.device)).flatten(1)

    def loss(self, phase: Phase, inputs: Inputs, update: int) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.model.losses(inputs.text, inputs.codes)
        return self.recipe.text_weight * losses["text"] + self.recipe.image_weight * losses["image"], losses

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        assert isinstance(model, DALLE)
        return dalle_figures(model, self.text_tokenizer, self.image_tokenizer, batches)

    @torch.no_grad()
    def pictures(self, model: nn.Module, batch: Batch) -> Image.Image | None:
        """One row for each prompt of the recipe, 8 candidates each."""
        assert isinstance(model, DALLE)
        prompts = list(self.recipe.prompts)
        if not prompts:
            return None
        seeds = [list(range(8)) for _ in prompts]
        text = self._encode(prompts).to(self.device)
        codes = generate(model, text, seeds, **to_dict(self.recipe.sampling))
        return image_grid(list(self.image_tokenizer.decode(codes).split(8)))

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        config = {"stage": self.recipe.stage, "model": to_dict(self.recipe.model)}
        config["sampling"] = to_dict(self.recipe.sampling)
        sources = {
            "text_tokenizer": self.recipe.text_tokenizer,
            "image_tokenizer": self.recipe.image_tokenizer,
            "clip": self.recipe.clip,
        }
        parts = {name: resolve(source) for name, source in sources.items() if source is not None}
        artifact.save(folder, config, weights, parts=parts)
