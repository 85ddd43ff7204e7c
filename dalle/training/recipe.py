"""What a YAML under configs/ or tokenizers/ may say: one frozen recipe for each stage of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dalle.config import ConfigError, apply_overrides, config, describe, from_dict, read_yaml
from dalle.data import AnyDataConfig, DataConfig
from dalle.generation.decoder import DiffusionSamplingConfig
from dalle.generation.options import SamplingConfig
from dalle.generation.prior import PriorSamplingConfig
from dalle.image_tokenizers import ImageTokenizerConfig, build
from dalle.models.autoregressive_prior import AutoregressivePriorConfig
from dalle.models.clip import CLIPConfig
from dalle.models.dalle import DALLEConfig
from dalle.models.diffusion_decoder import DecoderConfig
from dalle.models.diffusion_prior import DiffusionPriorConfig
from dalle.models.upsampler import UpsamplerConfig
from dalle.text_tokenizers import TextTokenizerConfig
from dalle.training.checkpoint.best import check_figure
from dalle.training.distributed.powersgd import PowerSGDConfig
from dalle.training.lora import LoRAConfig
from dalle.training.losses.adversarial import AdversarialConfig
from dalle.training.losses.perceptual import NonePerceptual, PerceptualConfig
from dalle.training.optim import CosineSchedule, OptimConfig
from dalle.training.shipped_recipes import find_recipe

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resume = bool | Literal["auto"]


@config
class RunConfig:
    dir: Path
    """Folder of the run: config, log, checkpoints, sample images, and the newest weights under model/."""
    steps: int
    """Optimiser steps in all; 0 trains nothing."""
    tokens: float | None = None
    """Tokens in all, of text and image: where given, `steps` is as many as it takes."""
    batch_size: int
    """Images of one step, over all processes and all micro-batches."""
    accumulation: int = 1
    """Micro-batches that one step is split into, to save memory."""
    seed: int = 0
    """Seed of the first weights, of the data's order and of all noise."""
    precision: Precision = "auto"
    """Arithmetic of forward and backward passes; weights and optimiser stay in fp32. auto is bf16 where the device is
    fast at it, else fp32, and what the run began with where it goes on; fp16 needs a GPU."""
    compile: bool = False
    """Compile the blocks by torch.compile: some minutes at the start, faster steps on GPUs."""
    sharding: Literal["auto", "none", "fsdp"] = "auto"
    """fsdp leaves each of several processes a share of weights, gradients and optimizer (stages clip and dalle); auto
    does so where a config given to `accelerate launch` says FSDP."""
    powersgd: PowerSGDConfig | None = None
    """What processes tell each other of a gradient is of low rank, without sharding; null tells all of it."""
    workers: int = 0
    """Processes that prepare data; 0 does it in the training process."""
    log_every: int = 20
    """Steps between two log lines."""
    validate_every: int = 500
    """Steps between two validations."""
    validation_images: int = 256
    """Images that a validation looks at, at most; spread evenly over the split."""
    sample_every: int = 500
    """Steps between two sample images."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk."""
    keep_best: str | None = None
    """A figure of validations, such as image_nats or psnr: the checkpoint that is best by it stays too, and model/ has
    its weights in place of the newest."""
    stop_after: int | None = None
    """Validations in a row without a new best by which training ends early; null goes on to the last step."""
    max_skipped: int = 20
    """How many steps in a row may be skipped for a non-finite loss or gradient before training stops."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where curves go besides the run's metrics.jsonl."""
    report: bool = True
    """Write report.html, curves and images in one file, after validations and at the end."""
    peak_tflops: float | None = None
    """What one device can do in `precision`, in TFLOP/s; the log then has the share of it that the model's operations
    take (stage dalle, all weights trained)."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes an accelerator if there is one."""

    def __post_init__(self) -> None:
        for name in (
            *("batch_size", "accumulation", "log_every", "validate_every", "validation_images", "sample_every"),
            *("save_every", "keep", "max_skipped"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"peak_tflops is {self.peak_tflops}; it must be above 0 (null logs no utilisation)")
        if self.tokens is not None and self.tokens <= 0:
            raise ValueError(f"tokens is {self.tokens}; it must be above 0 (null counts in steps)")
        if self.powersgd is not None and self.sharding == "fsdp":
            raise ValueError("powersgd is for replicas: fsdp has no whole gradient; set powersgd=null or sharding=none")
        if self.powersgd is not None and self.precision == "fp16":
            raise ValueError("powersgd keeps gradients for later, and fp16 changes their scale: take bf16 or fp32")
        if self.stop_after is not None and self.stop_after < 1:
            raise ValueError(f"stop_after is {self.stop_after}; it must be at least 1 (null never stops early)")
        for name in ("steps", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")

    def logs(self, step: int) -> bool:
        """Whether the update that follows `step` others has a line in the log."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps


@config
class TextTokenizerRecipe:
    stage: Literal["text_tokenizer"]
    model: TextTokenizerConfig
    data: DataConfig
    dir: Path
    """Folder of the run: the trained tokenizer is written to its model/."""
    max_captions: int = 1_000_000
    """Captions that the BPE is learnt from, at most."""


@config
class ImageTokenizerRecipe:
    stage: Literal["image_tokenizer"]
    model: ImageTokenizerConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    l1_weight: float = 1.0
    """Weight of the mean absolute error (VQGAN)."""
    codebook_weight: float = 1.0
    """Weight of the codebook and commitment loss (VQGAN)."""
    perceptual: PerceptualConfig = NonePerceptual()
    """Features network of the perceptual loss."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual loss."""
    adversarial: AdversarialConfig | None = None
    """Patch discriminator; null trains without one."""
    kl_weight: CosineSchedule = CosineSchedule(first=0.0, last=6.6, steps=5000)
    """Weight of the KL to the uniform prior, in the paper's scale (dVAE, and the Gumbel quantizer)."""
    temperature: CosineSchedule = CosineSchedule(first=1.0, last=1 / 16, steps=150_000)
    """Temperature of the Gumbel-softmax relaxation (dVAE, and the Gumbel quantizer)."""
    resume: Resume = False
    """Go on from the newest checkpoint of run.dir; auto does so where there is one, of the same config, else begins."""

    def __post_init__(self) -> None:
        check_figure(self.stage, self.run.keep_best, self.run.stop_after)
        if min(self.temperature.first, self.temperature.last) <= 0:
            raise ValueError(
                f"temperature goes from {self.temperature.first} to {self.temperature.last}; both must be above 0"
            )


@config
class CLIPRecipe:
    stage: Literal["clip"]
    model: CLIPConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    text_tokenizer: str
    """Folder of the text tokenizer (or a hub id)."""
    init_from: str | None = None
    """Folder of a CLIP to go on from, ours or as published (or a hub id): its architecture, text tokenizer and loss are
    taken where the recipe says none, and `model.` options change its own."""
    lock: Literal["image", "text"] | None = None
    """The tower that stays as it is: with `image` only the text tower learns to fit it (LiT, arXiv 2111.07991)."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: which caption of the batch is an image's, and the other way round (CLIP). sigmoid: of each pair alone,
    whether it is one (SigLIP, arXiv 2303.15343); scores are then probabilities, and `model.sigmoid` is set."""
    bpe_dropout: float = 0.0
    """Chance of dropping a BPE merge in training."""
    augment: float = 0.0
    """Strength, up to 1, of random changes of the images: place, size, turn, colours, a hole, noise; 0: none."""
    resume: Resume = False
    """Go on from the newest checkpoint of run.dir; auto does so where there is one, of the same config, else begins."""

    def __post_init__(self) -> None:
        check_figure(self.stage, self.run.keep_best, self.run.stop_after)
        locked = {"image": self.model.vision, "text": self.model.text}.get(self.lock or "")
        if locked is not None and self.init_from is None:
            raise ValueError(f"lock={self.lock} keeps a tower that is trained: name it by init_from, or set lock=null")
        if locked is not None and (locked.dropout or locked.attention_dropout):
            raise ValueError(
                f"lock={self.lock}: a tower that stays drops nothing; set dropout=0 and attention_dropout=0 of it"
            )
        if (self.loss == "sigmoid") != self.model.sigmoid:
            raise ValueError(
                f"loss is {self.loss} and model.sigmoid is {str(self.model.sigmoid).lower()}: the bias of a sigmoid is "
                "learned by its loss alone; leave out model.sigmoid, which follows"
            )
        if self.run.batch_size < 2:
            raise ValueError("run.batch_size is 1: a pair is compared with the others of its batch, so give at least 2")
        if self.run.compile and self.run.accumulation > 1 and self._drops:
            raise ValueError(
                "run.compile with run.accumulation and dropout: compiled code draws other random numbers with a graph "
                "than without one; set run.compile=false, or dropout and attention_dropout of both towers to 0"
            )
        if not 0 <= self.augment <= 1:
            raise ValueError(f"augment is {self.augment}: give a strength from 0 to 1")

    @property
    def _drops(self) -> bool:
        return any(tower.dropout or tower.attention_dropout for tower in (self.model.vision, self.model.text))


@config
class DALLERecipe:
    stage: Literal["dalle"]
    model: DALLEConfig
    data: AnyDataConfig
    optim: OptimConfig
    run: RunConfig
    text_tokenizer: str
    """Folder of the text tokenizer (or a hub id); of a model that reads features, its T5 encoder."""
    image_tokenizer: str
    """Folder of the image tokenizer (or a hub id)."""
    init_from: str | None = None
    """Folder of a model to go on from, ours or as published (or a hub id): its architecture, tokenizers and options of
    sampling are taken where the recipe says none, and `model.` options change its own."""
    lora: LoRAConfig | None = None
    """Train changes of low rank only, which are added to the weights in the model folder; null trains all weights."""
    clip: str | None = None
    """Folder of the CLIP that ranks this model's samples; copied into the model folder."""
    text_weight: float = 1 / 8
    """Weight of the text loss (section 2.2 of the DALL-E paper)."""
    image_weight: float = 7 / 8
    """Weight of the image loss."""
    z_weight: float = 0.0
    """Weight of log² Z, which is added to the cross-entropy of each token (z-loss of PaLM, arXiv 2204.02311, section 5;
    there 1e-4): large models in bf16 stay stable by it. 0 has none."""
    label_smoothing: float = 0.0
    """Share of each image target that is spread evenly over all codes (label smoothing); what is logged is without."""
    code_noise: float = 0.0
    """Share of the image tokens that the model reads replaced by random codes in training; targets stay as they are."""
    bpe_dropout: float = 0.1
    """Chance of dropping a BPE merge in training."""
    caption_dropout: float = 0.1
    """Chance that a caption is replaced by padding, for classifier-free guidance."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample images; always drawn with the same seeds."""
    sampling: SamplingConfig = SamplingConfig(guidance=2.0)
    """How the sample images are drawn, and what the model folder is drawn with if nothing else is said."""
    resume: Resume = False
    """Go on from the newest checkpoint of run.dir; auto does so where there is one, of the same config, else begins."""

    def __post_init__(self) -> None:
        check_figure(self.stage, self.run.keep_best, self.run.stop_after)
        if self.lora is not None and self.optim.ema is not None:
            raise ValueError("lora trains without an average of weights: set optim.ema=null")
        if self.z_weight < 0:
            raise ValueError(f"z_weight is {self.z_weight}; it must be at least 0 (PaLM's is 1e-4)")
        for name in ("label_smoothing", "code_noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.sampling.guidance != 1 and not self.caption_dropout:
            raise ValueError(
                f"sampling.guidance is {self.sampling.guidance} but caption_dropout is 0: guidance needs captions that "
                "were dropped in training; set one of them (guidance 1 is none)"
            )


@config
class PriorRecipe:
    stage: Literal["prior"]
    model: DiffusionPriorConfig | AutoregressivePriorConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    clip: str
    """Folder of the CLIP whose embeddings are learnt (or a hub id); copied into the model folder."""
    statistics_images: int = 2048
    """Images of the training set, spread evenly over it, that statistics of the embeddings are taken of at the start:
    mean and deviation, of the autoregressive prior also principal components and buckets."""
    bpe_dropout: float = 0.0
    """Chance of dropping a BPE merge in training."""
    caption_dropout: float = 0.1
    """Chance that a caption is replaced by the learnt one of no text, for classifier-free guidance."""
    sampling: PriorSamplingConfig = field(default_factory=PriorSamplingConfig)
    """How validations draw, and what the model folder is drawn with if nothing else is said."""
    resume: Resume = False
    """Go on from the newest checkpoint of run.dir; auto does so where there is one, of the same config, else begins."""

    def __post_init__(self) -> None:
        check_figure(self.stage, self.run.keep_best, self.run.stop_after)
        if self.statistics_images < 2:
            raise ValueError(f"statistics_images is {self.statistics_images}; it must be at least 2")
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout is {self.caption_dropout}; it must be from 0 to 1")
        if self.sampling.guidance != 1 and not self.caption_dropout:
            raise ValueError(
                f"sampling.guidance is {self.sampling.guidance} but caption_dropout is 0: guidance needs captions that "
                "were dropped in training; set one of them (guidance 1 is none)"
            )


@config
class DiffusionRecipe:
    stage: Literal["diffusion"]
    model: DecoderConfig | UpsamplerConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    clip: str | None = None
    """Decoder: folder of the CLIP whose embeddings are decoded (or a hub id); copied into the model folder."""
    statistics_images: int = 2048
    """Decoder: images of the training set, spread evenly over it, that mean and deviation of the embeddings are taken
    of at the start."""
    bpe_dropout: float = 0.0
    """Decoder: chance of dropping a BPE merge in training."""
    embedding_dropout: float = 0.1
    """Decoder: chance that the embedding is replaced by a learnt one, for classifier-free guidance."""
    caption_dropout: float = 0.5
    """Decoder: chance that the caption is replaced by the empty one."""
    embedding_noise: float = 0.1
    """Decoder: deviation of the noise that is added to standardized embeddings, as a prior's guesses are not exact."""
    blur: float = 0.6
    """Upsampler: sigma, in pixels, of the Gaussian that small images are blurred by in training; 0 does not."""
    crop: float = 0.25
    """Upsampler: side of the random crops that it is trained on, over that of the images."""
    loss_weight: Literal["uniform", "min_snr"] = "uniform"
    """How squared errors of the steps are weighted; min_snr as arXiv 2303.09556."""
    snr_gamma: float = 5.0
    """min_snr: signal-to-noise ratio above which steps weigh no more."""
    bound_weight: float = 1e-3
    """Weight of the variational bound, in bits a dimension, where the variance is learnt (arXiv 2102.09672)."""
    sampling: DiffusionSamplingConfig = field(default_factory=DiffusionSamplingConfig)
    """How validations sample, and what the model folder is sampled with if nothing else is said."""
    resume: Resume = False
    """Go on from the newest checkpoint of run.dir; auto does so where there is one, of the same config, else begins."""

    def __post_init__(self) -> None:
        check_figure(self.stage, self.run.keep_best, self.run.stop_after)
        other = "psnr" if isinstance(self.model, DecoderConfig) else "centered_cos"
        if self.run.keep_best == other:
            raise ValueError(f"run.keep_best is {other}, which the validation of a {self.model.kind} has not: take mse")
        for name in ("embedding_dropout", "caption_dropout", "bpe_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("embedding_noise", "blur", "bound_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.snr_gamma <= 0:
            raise ValueError(f"snr_gamma is {self.snr_gamma}; it must be above 0")
        if self.sampling.sampler.variance == "learned" and not self.model.learned_variance:
            raise ValueError("sampling.sampler.variance is learned: set model.learned_variance=true, or take small")
        if isinstance(self.model, DecoderConfig):
            self._check_decoder()
        else:
            self._check_upsampler(self.model)

    def _check_decoder(self) -> None:
        if self.clip is None:
            raise ValueError("clip is missing: a decoder is trained on the embeddings of a CLIP, name its folder")
        if self.statistics_images < 2:
            raise ValueError(f"statistics_images is {self.statistics_images}; it must be at least 2")
        if self.sampling.guidance != 1 and not self.embedding_dropout:
            raise ValueError(
                f"sampling.guidance is {self.sampling.guidance} but embedding_dropout is 0: guidance needs embeddings "
                "that were dropped in training; set one of them (guidance 1 is none)"
            )

    def _check_upsampler(self, model: UpsamplerConfig) -> None:
        if self.clip is not None:
            raise ValueError(f"clip is {self.clip}: an upsampler reads no embeddings, leave it out")
        if self.sampling.guidance != 1:
            raise ValueError(f"sampling.guidance is {self.sampling.guidance}: an upsampler has none, set it to 1")
        side = round(model.image_size * self.crop) if 0 < self.crop <= 1 else 0
        if not side or side % model.unet.factor:
            raise ValueError(
                f"crop is {self.crop}: it must be above 0 and at most 1, and of {model.image_size} pixels leave a "
                f"multiple of {model.unet.factor}"
            )


Recipe = TextTokenizerRecipe | ImageTokenizerRecipe | CLIPRecipe | DALLERecipe | PriorRecipe | DiffusionRecipe
LoopRecipe = ImageTokenizerRecipe | CLIPRecipe | DALLERecipe | PriorRecipe | DiffusionRecipe

STAGES: dict[str, type] = {
    "text_tokenizer": TextTokenizerRecipe,
    "image_tokenizer": ImageTokenizerRecipe,
    "clip": CLIPRecipe,
    "dalle": DALLERecipe,
    "prior": PriorRecipe,
    "diffusion": DiffusionRecipe,
}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe, with `key.path=value` overrides on top; `find_recipe` finds it. Opens no weights.

    Raises:
        ConfigError: every mistake of the file and of the overrides, one a line, each with its full path.
    """
    return parse_recipe(apply_overrides(read_yaml(find_recipe(path)), overrides), str(path))


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """A recipe of plain data; `source` is what errors call it.

    Raises:
        ConfigError: every mistake, as in `load_recipe`.
    """
    run = data.get("run")
    if isinstance(run, dict) and run.get("tokens") is not None:
        run.setdefault("steps", 0)
    if data.get("stage") == "clip" and data.get("loss") == "sigmoid" and isinstance(data.get("model"), dict):
        data["model"].setdefault("sigmoid", True)
    recipe: Recipe = from_dict(stage_schema(data, source), data, source)
    return recipe if isinstance(recipe, TextTokenizerRecipe) else _in_steps(recipe)


def tokens_per_image(recipe: LoopRecipe) -> int:
    """Tokens that one pair is to a stage: of its caption (padding too) and of its image; of a diffusion its pixels."""
    if isinstance(recipe, DALLERecipe):
        return recipe.model.text_length + recipe.model.grid[0] * recipe.model.grid[1]
    if isinstance(recipe, CLIPRecipe):
        return recipe.model.text_length + (recipe.model.image_size // recipe.model.patch_size) ** 2
    if isinstance(recipe, PriorRecipe):
        model = recipe.model
        own = 3 if isinstance(model, DiffusionPriorConfig) else model.components or 0
        return model.text_length + 1 + own
    if isinstance(recipe, DiffusionRecipe):
        return recipe.model.image_size**2
    with torch.device("meta"):
        height, width = build(recipe.model).grid
    return height * width


def _in_steps(recipe: LoopRecipe) -> LoopRecipe:
    """The recipe with what it counts in tokens counted in steps."""
    run, optim = recipe.run, recipe.optim
    if run.tokens is None and optim.warmup_tokens is None:
        return recipe
    per_step = run.batch_size * tokens_per_image(recipe)
    if run.tokens is not None:
        run = replace(run, steps=math.ceil(run.tokens / per_step))
    if optim.warmup_tokens is not None:
        optim = replace(optim, warmup=math.ceil(optim.warmup_tokens / per_step))
    return replace(recipe, run=run, optim=optim)


def describe_recipes(path: Path | None = None) -> str:
    """Every option with type, default and meaning: of the stage of `path`, or of all stages."""
    if path is not None:
        data = read_yaml(find_recipe(path))
        return describe(stage_schema(data, str(path)), data)
    return "\n\n".join(f"stage: {stage}\n{describe(schema)}" for stage, schema in STAGES.items())


def stage_schema(data: dict, source: str) -> type:
    stage = data.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(f"{source}: stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    return STAGES[stage]
