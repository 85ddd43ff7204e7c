"""Training a prior of unCLIP: from captions to the embeddings that a frozen CLIP gives their images."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoints import model_folder
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.load import load_clip, prior_of
from dalle.checkpoints.tensors import Tensors
from dalle.config import to_dict
from dalle.data import open_data
from dalle.data.loader import Batch, evaluation_batches
from dalle.device import to_device
from dalle.evaluation.priors import prior_figures
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig, components_for
from dalle.models.clip import TextStates
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.noise_schedule import make_schedule
from dalle.training.recipe import PriorRecipe, tokens_per_image
from dalle.training.tasks.base import Phase, Task

log = logging.getLogger(__name__)

_CHANCE = 2  # so that a pair's seed gives its noise other numbers than its composition


@dataclass
class Inputs:
    embeds: Tensor  # [B, D], of the images, raw
    text: TextStates
    dropped: Tensor  # bool [B]
    place: Tensor  # [B] in [0, 1), where among the steps of diffusion
    noise: Tensor  # [B, D]


class PriorTask(Task):
    model: DiffusionPrior | AutoregressivePrior

    def __init__(self, recipe: PriorRecipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.clip = load_clip(recipe.clip, device).requires_grad_(False)
        self._check_clip()
        images, texts = self._embeddings()
        config = recipe.model
        if isinstance(config, AutoregressivePriorConfig) and config.components is None:
            standard = (images - images.mean(0)) / images.std(0)
            config = replace(config, components=components_for(standard, config.variance))
            log.info("%d components keep %g of the variance", config.components, config.variance)
        self.model = prior_of(config).to(device)
        self.model.fit(images, texts)
        if isinstance(self.model, DiffusionPrior):
            self.schedule = make_schedule(self.model.config.schedule)
        self.state = nn.ModuleDict({"model": self.model})
        self.phases = [Phase("prior", self.model, recipe.optim)]
        self.image_size = self.clip.config.image_size
        self.tokens_per_image = tokens_per_image(replace(recipe, model=config))

    def _check_clip(self) -> None:
        model, clip = self.recipe.model, self.clip.config
        if self.clip.tokenizer is None:
            raise ValueError(f"{self.recipe.clip} has no text tokenizer: a prior is trained on captions")
        for key, have, want in (
            ("embed_dim", model.embed_dim, clip.embed_dim),
            ("text_width", model.text_width, clip.text.width),
            ("text_length", model.text_length, clip.text_length),
        ):
            if have != want:
                raise ValueError(f"model.{key} is {have}, but {self.recipe.clip} needs {want}: set model.{key}={want}")

    @torch.no_grad()
    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """Raw embeddings of images and captions of the training set, [N, D] each, for its statistics."""
        data = open_data(self.recipe.data, "train", self.clip.config.image_size)
        images: list[Tensor] = []
        texts: list[Tensor] = []
        for batch in evaluation_batches(data, 64, limit=self.recipe.statistics_images):
            images.append(self.clip.encode_image(batch.unit_images(self.device), normalize=False))
            texts.append(self.clip.encode_text(batch.captions, normalize=False))
        return torch.cat(images), torch.cat(texts)

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """CLIP's embeddings of both; what is left to chance comes from each pair's seed, whatever process has it."""
        recipe, tokenizer = self.recipe, self.clip.tokenizer
        assert tokenizer is not None
        ids = tokenizer.encode(batch.captions, recipe.model.text_length, dropout=recipe.bpe_dropout, seed=batch.seeds)
        random = [np.random.default_rng((seed, _CHANCE)) for seed in batch.seeds]
        chance = torch.from_numpy(np.stack([one.random(2, dtype=np.float32) for one in random]))
        noise = np.stack([one.standard_normal(recipe.model.embed_dim, dtype=np.float32) for one in random])
        dropped, place = to_device(self.device, chance).unbind(1)
        return Inputs(
            self.clip.encode_image(batch.unit_images(self.device), normalize=False),
            self.clip.text_states(to_device(self.device, ids)),
            dropped < recipe.caption_dropout,
            place,
            to_device(self.device, torch.from_numpy(noise)),
        )

    def loss(self, phase: Phase, inputs: Inputs, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the clean embedding, standardized; or cross-entropy of the components' buckets, in nats."""
        if isinstance(self.model, AutoregressivePrior):
            ids = self.model.encode(inputs.embeds)
            dots = self.model.encode_dots(inputs.embeds, inputs.text.embeds)
            logits = self.model(ids, dots, inputs.text, inputs.dropped)
            hits = (logits.argmax(-1) == ids).float().mean()
            return F.cross_entropy(logits.flatten(0, 1), ids.flatten()), {"bucket_accuracy": hits}
        x0 = self.model.standardize(inputs.embeds)
        steps = (inputs.place * len(self.schedule)).long()
        noised = self.schedule.add_noise(x0, inputs.noise, steps)
        predicted = self.model(noised, steps, inputs.text, inputs.dropped)
        return F.mse_loss(predicted, x0), {"cos": F.cosine_similarity(predicted, x0, dim=-1).mean()}

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        assert isinstance(model, (DiffusionPrior, AutoregressivePrior))
        return prior_figures(model, self.clip, batches, self.recipe.sampling)

    def sample_images(self, model: nn.Module, batch: Batch) -> None:
        return None

    def export(self, folder: Path, weights: Tensors) -> None:
        recipe = self.recipe
        config = {"stage": recipe.stage, "model": to_dict(self.model.config), "sampling": to_dict(recipe.sampling)}
        model_folder.save(folder, config, weights, parts={"clip": resolve(recipe.clip)})
