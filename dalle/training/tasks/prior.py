"""Stage prior: trains a prior of unCLIP, from captions to the image embeddings of a frozen CLIP (arXiv 2204.06125)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoints import model_folder
from dalle.checkpoints.build import build_prior
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.lazy_tensor import Tensors
from dalle.checkpoints.load import load_clip
from dalle.config import to_dict
from dalle.data.batch import Batch
from dalle.data.token_shards.dataset import EmbeddedImageShardsConfig, EmbeddingShardsConfig
from dalle.device import to_device
from dalle.evaluation.priors import prior_metrics
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig, components_for
from dalle.models.clip import TextStates
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.noise_schedule import make_schedule
from dalle.models.prior import MIN_DEVIATION
from dalle.training.init_from import load_initial_unclip
from dalle.training.recipe import PriorRecipe, tokens_per_image
from dalle.training.tasks.base import Phase, Task
from dalle.training.tasks.clip_space import check_clip, training_embeddings
from dalle.training.tasks.pair_random import PairRandom

log = logging.getLogger(__name__)

_NOISE_STREAM = 2  # separates the random numbers of the noise from others with the same seed


@dataclass
class Inputs:
    """A micro-batch. Shapes: B pairs, D width of the embeddings."""

    embeds: Tensor  # [B, D], image embeddings before normalization
    text: TextStates
    dropped: Tensor  # bool [B], captions to drop for guidance
    time: Tensor  # [B] in [0, 1), diffusion time as a fraction of the schedule
    noise: Tensor  # [B, D]


class PriorTask(Task):
    """Trains a diffusion prior or an autoregressive prior."""

    model: DiffusionPrior | AutoregressivePrior

    def __init__(self, recipe: PriorRecipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.clip = load_clip(recipe.clip, device).requires_grad_(False)
        check_clip(recipe.model, self.clip, recipe.clip)
        if isinstance(recipe.data, (EmbeddingShardsConfig, EmbeddedImageShardsConfig)):
            recipe.data.check_clip(model_folder.folder_hash(resolve(recipe.clip)), recipe.clip)
        # A new prior needs data before it is built: how many components it predicts depends on it (section 2.2)
        self.model = self._fitted() if recipe.init_from is None else self._initial()
        config = self.model.config
        if isinstance(self.model, DiffusionPrior):
            self.schedule = make_schedule(self.model.config.schedule)
        self.state = nn.ModuleDict({"model": self.model})
        self.phases = [Phase("prior", self.model, recipe.optim)]
        self.image_size = self.clip.config.image_size
        self.tokens_per_image = tokens_per_image(replace(recipe, model=config))

    def _fitted(self) -> DiffusionPrior | AutoregressivePrior:
        """A new prior with the statistics of the training set."""
        images, texts = self._embeddings()
        config = self.recipe.model
        if isinstance(config, AutoregressivePriorConfig):
            standard = (images - images.mean(0)) / images.std(0).clamp(min=MIN_DEVIATION)  # as `fit` will
            needed = components_for(standard, config.variance)
            if config.components is None:
                config = replace(config, components=needed)
                log.info("%d components keep %g of the variance", needed, config.variance)
            elif config.components < needed:
                log.warning(
                    "%d components keep less than %g of the variance, which takes %d: set model.components=null",
                    *(config.components, config.variance, needed),
                )
        model = build_prior(config).to(self.device)
        model.fit(images, texts)
        return model

    def _initial(self) -> DiffusionPrior | AutoregressivePrior:
        """The prior of `init_from`, whose statistics its weights know."""
        model = build_prior(self.recipe.model)
        load_initial_unclip(model, self.recipe)
        return model.to(self.device)

    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """Unnormalized embeddings of training images and captions, [N, D] each, for their statistics."""
        return training_embeddings(self.clip, self.recipe.data, self.recipe.statistics_images, self.device)

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """Embed images and captions; randomness comes from each pair's seed, whichever process has the pair."""
        recipe, tokenizer = self.recipe, self.clip.tokenizer
        assert tokenizer is not None
        # The CLIP is frozen, yet its embeddings are not stored: crops, templates and BPE dropout differ each epoch
        random = PairRandom(batch.seeds, _NOISE_STREAM, self.device)
        number, time = random.uniform(2).unbind(1)
        dropped, captions = number < recipe.caption_dropout, batch.captions
        if recipe.model.null_caption == "empty":
            captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
        ids = tokenizer.encode(captions, recipe.model.text_length, dropout=recipe.bpe_dropout, seed=batch.seeds)
        return Inputs(
            batch.embeddings(partial(self.clip.encode_image, normalize=False), self.device),
            self.clip.text_states(to_device(self.device, ids)),
            dropped,
            time,
            random.normal(recipe.model.embed_dim),
        )

    def loss(self, phase: Phase, inputs: Inputs, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the prior.

        Diffusion: squared error of the predicted clean embedding, standardized. Autoregressive: cross-entropy of the
        buckets of principal components, in nats.
        """
        if isinstance(self.model, AutoregressivePrior):
            ids = self.model.encode(inputs.embeds)
            dots = self.model.encode_dots(inputs.embeds, inputs.text.embeds)
            logits = self.model(ids, dots, inputs.text, inputs.dropped)
            accuracy = (logits.argmax(-1) == ids).float().mean()
            return F.cross_entropy(logits.flatten(0, 1), ids.flatten()), {"bucket_accuracy": accuracy}
        # Predicts the clean embedding and not the noise, which the paper found better (section 2.2)
        x0 = self.model.standardize(inputs.embeds)
        steps = (inputs.time * len(self.schedule)).long()
        noised = self.schedule.add_noise(x0, inputs.noise, steps)
        predicted = self.model(noised, steps, inputs.text, inputs.dropped)
        return F.mse_loss(predicted, x0), {"cos": F.cosine_similarity(predicted, x0, dim=-1).mean()}

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Cosine similarity and Fréchet distance between predicted and true embeddings."""
        assert isinstance(model, (DiffusionPrior, AutoregressivePrior))
        return prior_metrics(model, self.clip, batches, self.recipe.sampling)

    def sample_images(self, model: nn.Module, batch: Batch) -> None:
        """A prior alone has no images."""
        return None

    def export(self, folder: Path, weights: Tensors) -> None:
        """Write a model folder with the CLIP in it."""
        recipe = self.recipe
        config = {"stage": recipe.stage, "model": to_dict(self.model.config), "sampling": to_dict(recipe.sampling)}
        model_folder.save(folder, config, weights, parts={"clip": resolve(recipe.clip)})
