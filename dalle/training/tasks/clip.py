"""Stage clip: contrastive training over all pairs of a batch, gathered from all processes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle.checkpoints import model_folder
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.lazy_tensor import Tensors
from dalle.checkpoints.load import load_image_tokenizer, load_text_tokenizer
from dalle.checkpoints.modules import skip_init
from dalle.checkpoints.source import is_model_folder
from dalle.config import to_dict
from dalle.data.batch import Batch
from dalle.device import to_device
from dalle.evaluation.evaluate import retrieval_metrics
from dalle.image_tokenizers import ImageTokenizer
from dalle.images.augment import augment
from dalle.models.clip import CLIP
from dalle.models.contrastive import contrastive_loss, gather_with_gradient, sigmoid_loss
from dalle.training.distributed.fsdp import Sharding, build
from dalle.training.frozen_towers import freeze
from dalle.training.init_from import initial_weights, load_initial
from dalle.training.lora import add_lora, changes, merged
from dalle.training.recipe import CLIPRecipe, tokens_per_image
from dalle.training.tasks.base import ContrastiveTask, Phase
from dalle.training.zero_shot import ZeroShot


@dataclass
class Inputs:
    """A micro-batch."""

    images: Tensor  # [B, 3, H, W] in [0, 1]
    text: Tensor  # int64 [B, T], token ids


class CLIPTask(ContrastiveTask):
    """Trains or fine-tunes a CLIP with the softmax or sigmoid loss."""

    model: CLIP

    def __init__(self, recipe: CLIPRecipe, device: torch.device, sharding: Sharding | None = None):
        self.recipe, self.device, self.sharding = recipe, device, sharding
        self.tokenizer = load_text_tokenizer(recipe.text_tokenizer)
        if recipe.model.text_vocab != self.tokenizer.vocab_size:
            raise ValueError(
                f"model.text_vocab is {recipe.model.text_vocab}, but {recipe.text_tokenizer} has "
                f"{self.tokenizer.vocab_size} pieces: set model.text_vocab={self.tokenizer.vocab_size}"
            )
        self.model = build(self._make, device, sharding, ("encode_image", "encode_text"))
        self.model.tokenizer = self.tokenizer
        # With LoRA, checkpoints contain what is trained only
        self.state = nn.ModuleDict({"model": self.model if recipe.lora is None else changes(self.model)})
        self.phases = [Phase("clip", self.model, recipe.optim)]
        self.image_size = recipe.model.image_size
        self.image_tokenizer = self._load_image_tokenizer()
        self.tokens_per_image = tokens_per_image(recipe)
        self.zero_shot = None
        if recipe.zero_shot is not None:
            self.zero_shot = ZeroShot(recipe.zero_shot, self.image_size, recipe.run.validation_images)
        self.initial_zero_shot = self._initial_zero_shot()

    def _make(self) -> CLIP:
        recipe = self.recipe
        if recipe.init_from is None:
            return CLIP(recipe.model)
        with skip_init():  # as loading overwrites everything
            model = CLIP(recipe.model)
        load_initial(model, recipe)
        if recipe.lock is not None:  # a whole tower: LiT, locked-image tuning (Zhai et al. 2021, arXiv 2111.07991)
            freeze(model, recipe.lock)
        if recipe.lora is not None:
            add_lora(model, recipe.lora, also=("logit_scale", "logit_bias"))
        return model

    def _load_image_tokenizer(self) -> ImageTokenizer | None:
        source = self.recipe.image_tokenizer
        if source is None:
            return None
        path = resolve(source)
        # The run's record, and resuming, tell tokenizers apart by the hash of a model folder
        if not is_model_folder(path):
            raise ValueError(
                f"image_tokenizer is {source}, no model folder: convert published weights, and give the folder "
                f"(python -m dalle convert {source} FOLDER)"
            )
        tokenizer = load_image_tokenizer(path, self.device)
        if self.image_size % tokenizer.factor:
            raise ValueError(
                f"model.image_size is {self.image_size}: {source} reconstructs images whose sides are multiples of "
                f"{tokenizer.factor}"
            )
        return tokenizer

    def _initial_zero_shot(self) -> float | None:
        """Accuracy of the weights of `init_from`; None without, or if no process has them whole."""
        if self.zero_shot is None or self.recipe.init_from is None or self.sharding is not None:
            return None
        self.model.eval()
        try:
            return self.zero_shot.metrics(self.model)["zero_shot_top_1"]
        finally:
            self.model.train()

    def inputs(self, batch: Batch) -> Inputs:
        """Tokenize captions with BPE dropout, reconstruct and augment images, by random numbers of each pair's seed."""
        recipe = self.recipe
        text = self.tokenizer.encode(
            batch.captions, recipe.model.text_length, dropout=recipe.bpe_dropout, seed=batch.seeds
        )
        images = batch.unit_images(self.device)
        if self.image_tokenizer is not None:
            images = _reconstruct(self.image_tokenizer, images, batch.seeds, recipe.reconstructed)
        if recipe.augment:
            images = augment(images, batch.seeds, recipe.augment)
        return Inputs(images, to_device(self.device, text))

    def embed(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Embeddings of images and captions, [B, D] each, normalized."""
        return self.model.encode_image(inputs.images), self.model.encode_text(inputs.text)

    def batch_loss(self, embeds: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sigmoid loss if the model has a bias, else the softmax loss; logs the scale."""
        images, text = embeds
        # The bias exists only for the sigmoid loss: it starts where almost all pairs count as not matching
        if self.model.logit_bias is not None:
            loss = sigmoid_loss(images, text, self.model.scale, self.model.logit_bias)
            return loss, {"scale": self.model.scale, "bias": self.model.logit_bias}
        # Each process compares its pairs with those of all others, or more processes would not mean a larger batch
        gather = gather_with_gradient if torch.distributed.is_initialized() else None
        loss = contrastive_loss(images, text, self.model.scale, gather=gather)
        return loss, {"scale": self.model.scale}

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Retrieval accuracy between images and captions, and zero-shot accuracy if the recipe asks for it."""
        assert isinstance(model, CLIP)
        found = retrieval_metrics(model, self.tokenizer, batches)
        if self.zero_shot is not None:
            found |= self.zero_shot.metrics(model)
        if self.initial_zero_shot is not None:
            found["zero_shot_change"] = found["zero_shot_top_1"] - self.initial_zero_shot
        return found

    def sample_images(self, model: nn.Module, batch: Batch) -> None:
        """A CLIP has no samples."""
        return None

    def export(self, folder: Path, weights: Tensors) -> None:
        """Write a model folder with the text tokenizer in it; LoRA adapters are merged into the weights."""
        recipe = self.recipe
        config = {"stage": recipe.stage, "model": to_dict(recipe.model)}
        parts = {"text_tokenizer": resolve(recipe.text_tokenizer)}
        if recipe.lora is None:
            model_folder.save(folder, config, weights, parts=parts)
            return
        # The checkpoint of a sharded run has the adapters only, and no process holds the full base weights
        base = {} if self.sharding is None else initial_weights(recipe)
        model_folder.save(folder, config, merged({**base, **weights}, recipe.lora), parts=parts, storage="float32")


def _reconstruct(tokenizer: ImageTokenizer, images: Tensor, seeds: Sequence[int], fraction: float) -> Tensor:
    """Replace a random fraction of the images [B, 3, S, S] by their reconstructions."""
    rows = [row for row, seed in enumerate(seeds) if random.Random(f"reconstruct/{seed}").random() < fraction]
    if rows:
        images[rows] = tokenizer.decode(tokenizer.encode(images[rows]))
    return images
