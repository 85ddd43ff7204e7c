"""Stage dalle: trains the transformer to predict caption tokens and image codes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dalle.checkpoints import model_folder
from dalle.checkpoints.hub import resolve
from dalle.checkpoints.lazy_tensor import Tensors
from dalle.checkpoints.load import load_clip, load_image_tokenizer, load_text_tokenizer
from dalle.checkpoints.modules import skip_init
from dalle.config import to_dict
from dalle.data.batch import Batch
from dalle.data.token_shards.dataset import TokenShardsConfig
from dalle.device import to_device
from dalle.evaluation.evaluate import token_metrics
from dalle.generation.generate import generate
from dalle.generation.options import EngineOptions
from dalle.generation.rerank import score
from dalle.images.grid import image_grid
from dalle.models.captions import repeated
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import TextTokenizer
from dalle.text_tokenizers.t5 import T5Encoder
from dalle.training.distributed.fsdp import Sharding, build, keep_unsharded
from dalle.training.init_from import initial_weights, load_initial
from dalle.training.init_image_tokenizer import image_tokenizer_folder
from dalle.training.lora import add_lora, changes, merged
from dalle.training.planning.memory import sampling_budget
from dalle.training.planning.plan import operations
from dalle.training.planning.setup import ModelSize, TrainSetup
from dalle.training.recipe import DALLERecipe, tokens_per_image
from dalle.training.tasks.base import Phase, Samples, Task

_NOISE_STREAM = 1  # separates the random numbers for code noise from others with the same seed
_RATE_STREAM = 4  # and those for how much of an image is noise
_SAMPLES = 8  # candidates per prompt in sample images
_SAMPLE_BATCH_SIZE = 8  # candidates that a sharded model samples at a time
# Methods besides `forward` that need the weights gathered
_FSDP_METHODS = ("losses", "token_losses_and_predictions", "new_cache", "prefill", "extend", "extend_each")


@dataclass
class Inputs:
    """A micro-batch. Shapes: B pairs, T text tokens, C text features, h x w grid of codes."""

    text: Tensor  # int64 [B, T], token ids; or float [B, T, C], T5 features
    codes: Tensor  # int64 [B, h * w], targets
    read: Tensor  # int64 [B, h * w], the model's input: the codes, some replaced by noise


class DALLETask(Task):
    """Trains or fine-tunes a DALL-E, in full or with LoRA."""

    model: DALLE

    def __init__(self, recipe: DALLERecipe, device: torch.device, sharding: Sharding | None = None):
        self.recipe, self.device = recipe, device
        self.sharding = sharding
        if recipe.lora is not None and sharding is not None and recipe.init_from is None:
            # Export reads the frozen weights from their file: no process has all of them in memory
            raise ValueError("lora with fsdp needs weights in a file: give init_from, or set lora=null")
        features = recipe.model.text_features is not None
        self.text_tokenizer: TextTokenizer | T5Encoder
        if features:
            self.text_tokenizer = T5Encoder.load(str(resolve(recipe.text_tokenizer)), device)
        else:
            self.text_tokenizer = load_text_tokenizer(recipe.text_tokenizer)
        images = image_tokenizer_folder(recipe)
        self.image_tokenizer = load_image_tokenizer(images).to(device)
        self._check_tokenizers()
        if isinstance(recipe.data, TokenShardsConfig):
            # Codes of another tokenizer are numbers too: training would run, and images be noise
            recipe.data.check_tokenizer(model_folder.folder_hash(images), recipe.image_tokenizer)
        self.model = build(self._make, device, sharding, _FSDP_METHODS)
        self.state = nn.ModuleDict({"model": self.model})
        if recipe.lora is not None:  # checkpoints contain the adapters only
            self.state = nn.ModuleDict({"model": changes(self.model)})
        self.phases = [Phase("dalle", self.model, recipe.optim)]
        self.image_size = self.image_tokenizer.image_size
        self.tokens_per_image = tokens_per_image(recipe)
        if recipe.lora is None:  # with LoRA most weights get no gradients, and this counts all
            self.operations_per_image = operations(ModelSize.of(recipe.model), checkpointing=False)

    def _make(self) -> DALLE:
        recipe = self.recipe
        if recipe.init_from is None:
            model = DALLE(recipe.model)
        else:
            with skip_init():  # as loading overwrites everything
                model = DALLE(recipe.model)
            load_initial(model, recipe)
        if recipe.lora is not None:
            add_lora(model, recipe.lora)
        return model

    def _check_tokenizers(self) -> None:
        model, text = self.recipe.model, self.text_tokenizer
        text_check = (
            ("text_vocab", model.text_vocab, text.vocab_size)
            if isinstance(text, TextTokenizer)
            else ("text_features", model.text_features, text.width)
        )
        for key, have, want, owner in (
            (*text_check, self.recipe.text_tokenizer),
            ("image_vocab", model.image_vocab, self.image_tokenizer.codebook_size, self.recipe.image_tokenizer),
            ("grid", list(model.grid), list(self.image_tokenizer.grid), self.recipe.image_tokenizer),
        ):
            if have != want:
                raise ValueError(f"model.{key} is {have}, but {owner} needs {want}: set model.{key}={want}")

    def inputs(self, batch: Batch) -> Inputs:
        """Tokenize captions with BPE dropout, replace some by the null caption, and encode images to codes.

        Randomness comes from each pair's seed, so it does not depend on which process has the pair.
        """
        return self._inputs_of(batch, self._encode(batch.captions, dropout=self.recipe.bpe_dropout, seed=batch.seeds))

    def _inputs_of(self, batch: Batch, text: Tensor) -> Inputs:
        """The same for captions that have been encoded: ids [B, T], or T5 features."""
        recipe = self.recipe
        # The null caption must be trained for classifier-free guidance (arXiv 2207.12598, algorithm 1)
        dropped = [random.Random(f"caption dropout/{seed}").random() < recipe.caption_dropout for seed in batch.seeds]
        rows = to_device(text.device, torch.tensor(dropped).view(-1, *[1] * (text.ndim - 1)))  # [B, 1] or [B, 1, 1]
        own = recipe.model.dropped_ids
        text = torch.where(rows, repeated(own, text, recipe.model) if own else self.model.null_text(text), text)
        codes = batch.codes(self.image_tokenizer, self.device)
        read = with_noise(codes, noise_rates(recipe, batch.seeds), recipe.model.image_vocab, batch.seeds)
        return Inputs(to_device(self.device, text), codes, read)

    def _encode(self, captions: list[str], dropout: float = 0.0, seed: list[int] | None = None) -> Tensor:
        length = self.recipe.model.text_length
        if isinstance(self.text_tokenizer, T5Encoder):
            return self.text_tokenizer.encode(captions, length)
        return self.text_tokenizer.encode(captions, length, dropout=dropout, seed=seed)

    def loss(self, phase: Phase, inputs: Inputs, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of text and image cross-entropy, in nats per token, with z-loss and label smoothing."""
        recipe = self.recipe
        losses = self.model.losses(
            inputs.text,
            inputs.codes,
            recipe.z_weight,
            recipe.run.logs(step),
            smoothing=recipe.label_smoothing,
            input_ids=inputs.read,
        )
        total = recipe.text_weight * losses["text"] + recipe.image_weight * losses["image"]
        for name in ("text", "image"):  # log plain cross-entropy, without z-loss and smoothing, as validation does
            if name + "_nats" in losses:
                losses[name] = losses.pop(name + "_nats")
        return total, losses

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Nats per token and accuracy, on text and image."""
        assert isinstance(model, DALLE)
        return token_metrics(model, self.text_tokenizer, self.image_tokenizer, batches)

    @torch.no_grad()
    def sample_images(self, model: nn.Module, batch: Batch) -> Samples | None:
        """Sample candidates for the prompts of the recipe, a row for each prompt; with a CLIP also their mean score."""
        assert isinstance(model, DALLE)
        prompts = list(self.recipe.prompts)
        if not prompts:
            return None
        seeds = [list(range(_SAMPLES)) for _ in prompts]  # the same each time, so that steps can be compared
        text = self._encode(prompts).to(self.device)
        codes = self._sample_codes(model, text, seeds)
        images = self.image_tokenizer.decode(codes)
        metrics = {}
        if self.recipe.clip is not None:  # loaded each time, so as to take no memory during training
            clip = load_clip(self.recipe.clip, self.device)
            scores = score(clip, images, [prompt for prompt in prompts for _ in range(_SAMPLES)])
            metrics["clip_score"] = scores.mean().item()
        return Samples(image_grid(list(images.split(_SAMPLES))), metrics)

    def _sample_codes(self, model: DALLE, text: Tensor, seeds: list[list[int]]) -> Tensor:
        """Sample codes [N, h * w]; every process of a sharded run must do it alike."""
        if self.sharding is None:
            return generate(model, text, seeds, self.recipe.sampling)
        # Guidance runs each candidate with and without its caption. Units kept gathered save a gather per token
        rows = _SAMPLE_BATCH_SIZE * (1 if self.recipe.sampling.guidance == 1 else 2)
        max_bytes = sampling_budget(ModelSize.of(self.recipe.model), self._train_setup(), rows)
        with keep_unsharded(model, self.sharding, max_bytes):
            return generate(model, text, seeds, self.recipe.sampling, EngineOptions(batch_size=_SAMPLE_BATCH_SIZE))

    def _train_setup(self) -> TrainSetup:
        """The setup of a sharded run, as the memory planner describes it."""
        run, model = self.recipe.run, self.recipe.model
        assert run.precision != "auto", "call resolve_precision first"
        world = torch.distributed.get_world_size()
        return TrainSetup(
            "fsdp",
            world,
            run.batch_size // (world * run.accumulation),
            run.accumulation,
            model.transformer.checkpoint_activations,
            run.precision,
            average=self.recipe.optim.ema is not None,
            on_cpu=self.device.type == "cpu",
        )

    def export(self, folder: Path, weights: Tensors) -> None:
        """Write a model folder with its tokenizers and CLIP; LoRA adapters are merged into the weights."""
        recipe = self.recipe
        config = {"stage": recipe.stage, "model": to_dict(recipe.model), "sampling": to_dict(recipe.sampling)}
        images = image_tokenizer_folder(recipe)
        sources: dict[str, str | Path | None] = {"image_tokenizer": images, "clip": recipe.clip}
        if isinstance(self.text_tokenizer, T5Encoder):
            config["text_encoder"] = recipe.text_tokenizer
        else:
            sources["text_tokenizer"] = recipe.text_tokenizer
        parts = {name: resolve(source) for name, source in sources.items() if source is not None}
        if recipe.lora is None:
            model_folder.save(folder, config, weights, parts=parts)
            return
        # The checkpoint of a sharded run has the adapters only, and no process holds the full base weights
        base = {} if self.sharding is None else initial_weights(recipe)
        model_folder.save(folder, config, merged({**base, **weights}, recipe.lora), parts=parts, storage="float32")


def noise_rates(recipe: DALLERecipe, seeds: list[int]) -> list[float]:
    """For each image, the probability with which a code of it is replaced in the model's input.

    It is `code_noise`, but for a fraction `prefix_noise` of the images: 1 for a third of these, and between 0.4 and 1
    for the others.
    """
    rates = [recipe.code_noise] * len(seeds)
    if recipe.prefix_noise:
        for row, seed in enumerate(seeds):
            chosen, which, rate = np.random.default_rng((seed, _RATE_STREAM)).random(3)
            if chosen < recipe.prefix_noise:
                rates[row] = 1.0 if which < 1 / 3 else max(recipe.code_noise, 0.4 + 0.6 * rate)
    return rates


def with_noise(codes: Tensor, rates: list[float], vocabulary: int, seeds: list[int]) -> Tensor:
    """Replace random codes by uniformly random ones.

    Teacher forcing never shows the model its own sampling errors; training on noisy inputs prepares it for them (word
    dropout of Bowman et al. 2016, arXiv 1511.06349, section 3.1.1, with random words). It also makes it harder to
    memorize an image by its first codes. Where most codes are replaced, only the caption tells what the image shows:
    after a few true codes it adds next to nothing, so that little would be learned of it.

    Args:
        codes: int64 [B, N].
        rates: for each image, the probability of replacing a code of it.
        vocabulary: number of different codes.
        seeds: seed of each pair, on which alone its noise depends.

    Returns:
        int64 [B, N].
    """
    if not any(rates):
        return codes
    # Two numbers per code: whether, and by what
    uniform = [np.random.default_rng((seed, _NOISE_STREAM)).random((2, codes.shape[1])) for seed in seeds]
    replaced, value = to_device(codes.device, torch.from_numpy(np.stack(uniform, 1)))  # [B, N] each
    threshold = to_device(codes.device, torch.tensor(rates, dtype=torch.float64))[:, None]
    return torch.where(replaced < threshold, (value * vocabulary).long(), codes)
