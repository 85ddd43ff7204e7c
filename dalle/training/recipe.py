"""Recipes: the options that a YAML under configs/ or tokenizers/ may set, one frozen class per training stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

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
from dalle.ranges import Decay, NonNegativeInt, PositiveFloat, PositiveInt, Probability, Range, Seed, Weight
from dalle.text_tokenizers import TextTokenizerConfig
from dalle.training.checkpoint.best import check_metric
from dalle.training.distributed.powersgd import PowerSGDConfig
from dalle.training.lock import parse_lock
from dalle.training.lora import LoRAConfig
from dalle.training.losses.adversarial import AdversarialConfig
from dalle.training.losses.perceptual import NonePerceptual, PerceptualConfig
from dalle.training.optim import CosineSchedule, OptimConfig
from dalle.training.shipped_recipes import find_recipe
from dalle.training.zero_shot import ZeroShotConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resume = bool | Literal["auto"]


@config
class RunConfig:
    """Options of a run that all stages share: length, batch, devices, logging, checkpoints."""

    dir: Path
    """Run folder: config, log, checkpoints, sample images, and the current weights in model/."""
    steps: NonNegativeInt
    """Total number of optimizer steps; 0 trains nothing."""
    tokens: Annotated[float, Range(0, above=True, ceiling=10**18, hint="null counts in steps")] | None = None
    """Total number of text and image tokens; if given, it determines `steps`."""
    batch_size: Annotated[int, Range(1, ceiling=2**20)]
    """Images per step, over all processes and micro-batches."""
    accumulation: Annotated[int, Range(1, ceiling=2**20)] = 1
    """Gradient accumulation: micro-batches per step, to save memory."""
    seed: Seed = 0
    """Seed of the initial weights, the data order and all noise."""
    precision: Precision = "auto"
    """Precision of forward and backward passes (autocast); weights and optimizer stay in fp32. auto takes bf16 where
    the device is fast at it, else fp32; a resumed run keeps its precision. fp16 needs a GPU."""
    compile: bool = False
    """Compile the blocks with torch.compile: takes minutes at the start, makes steps on GPUs faster."""
    sharding: Literal["auto", "none", "fsdp"] = "auto"
    """fsdp splits weights, gradients and optimizer over the processes (stages clip and dalle); auto does so if the
    config given to `accelerate launch` asks for FSDP."""
    powersgd: PowerSGDConfig | None = None
    """PowerSGD: all-reduce low-rank approximations of gradients (replicated training only); null sends them in full."""
    workers: Annotated[int, Range(0, ceiling=512)] = 0
    """Data-loading processes; 0 loads data in the training process."""
    log_every: PositiveInt = 20
    """Steps between log lines."""
    validate_every: PositiveInt = 500
    """Steps between validations."""
    validation_images: PositiveInt = 256
    """Maximum number of images per validation, spread evenly over the split."""
    sample_every: PositiveInt = 500
    """Steps between sample images."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Number of newest checkpoints that stay on disk."""
    keep_best: str | None = None
    """A validation metric, such as image_nats or psnr: the best checkpoint by it is kept as well, and model/ has its
    weights instead of the newest."""
    stop_after: Annotated[int, Range(1, ceiling=10**12, hint="null never stops early")] | None = None
    """Early stopping: number of validations in a row without a new best; null trains to the last step."""
    max_skipped: PositiveInt = 20
    """Number of steps in a row that may be skipped for a non-finite loss or gradient before training stops."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Experiment tracker, in addition to metrics.jsonl."""
    report: bool = True
    """Write report.html (curves and images in one file) after validations and at the end."""
    peak_tflops: Annotated[float, Range(0, above=True, ceiling=10**6, hint="null logs no utilization")] | None = None
    """Peak of one device in `precision`, in TFLOP/s; the log then has the model FLOPs utilization (stage dalle, when
    all weights are trained)."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes an accelerator if there is one."""

    def __post_init__(self) -> None:
        if self.powersgd is not None and self.sharding == "fsdp":
            raise ValueError("fsdp shards gradients, powersgd needs them whole; set one of them to null or none")
        if self.powersgd is not None and self.precision == "fp16":
            # The error feedback would mix gradients of different loss scales
            raise ValueError("powersgd does not work with fp16, whose loss scale changes: set precision=bf16 or fp32")

    def logs(self, step: int) -> bool:
        """Return whether the next step, after `step` completed ones, is logged."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps


@config
class TextTokenizerRecipe:
    """Training a BPE text tokenizer."""

    stage: Literal["text_tokenizer"]
    model: TextTokenizerConfig
    data: DataConfig
    dir: Path
    """Run folder: the tokenizer is written to its model/."""
    max_captions: PositiveInt = 1_000_000
    """Maximum number of captions to learn the BPE from."""


@config
class ImageTokenizerRecipe:
    """Training an image tokenizer: a dVAE or a VQGAN."""

    stage: Literal["image_tokenizer"]
    model: ImageTokenizerConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    l1_weight: Weight = 1.0
    """Weight of the mean absolute error (VQGAN)."""
    codebook_weight: Weight = 1.0
    """Weight of the codebook and commitment loss (VQGAN)."""
    perceptual: PerceptualConfig = NonePerceptual()
    """Feature network of the perceptual loss."""
    perceptual_weight: Weight = 1.0
    """Weight of the perceptual loss."""
    adversarial: AdversarialConfig | None = None
    """Patch discriminator; null trains without an adversarial loss."""
    kl_weight: CosineSchedule = CosineSchedule(first=0.0, last=6.6, steps=5000)
    """Weight of the KL to the uniform prior, on the paper's scale (dVAE and Gumbel quantizer)."""
    temperature: CosineSchedule = CosineSchedule(first=1.0, last=1 / 16, steps=150_000)
    """Temperature of the Gumbel-softmax relaxation (dVAE and Gumbel quantizer)."""
    resume: Resume = False
    """Resume from the newest checkpoint of run.dir; auto resumes one of the same config, or else starts a new run."""

    def __post_init__(self) -> None:
        check_metric(self.stage, self.run.keep_best, self.run.stop_after)
        if min(self.temperature.first, self.temperature.last) <= 0:
            raise ValueError(
                f"temperature goes from {self.temperature.first} to {self.temperature.last}; both must be above 0"
            )


@config
class CLIPRecipe:
    """Training or fine-tuning a CLIP."""

    stage: Literal["clip"]
    model: CLIPConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    text_tokenizer: str
    """Folder of the text tokenizer (or a hub id)."""
    init_from: str | None = None
    """CLIP to fine-tune: a model folder, a published checkpoint, or a hub id. Architecture, text tokenizer and loss
    default to its own, and options under `model.` override its."""
    lock: str | None = None
    """Towers to freeze: `image` trains only the text tower (LiT, arXiv 2111.07991); `image:6` freezes the first 6
    blocks of the image tower and what is before them; both towers with a comma, `image:6,text:2`."""
    lora: LoRAConfig | None = None
    """Train LoRA adapters of the layers that `lock` leaves, and the loss's scale and bias; they are merged into the
    weights of the model folder. null trains all weights that are not locked."""
    zero_shot: ZeroShotConfig | None = None
    """Labelled images whose zero-shot accuracy is validated, so that forgetting is seen; null: none."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: pick the matching caption of each image within the batch, and vice versa (CLIP). sigmoid: classify each
    pair on its own as matching or not (SigLIP, arXiv 2303.15343); scores are probabilities; sets `model.sigmoid`."""
    bpe_dropout: Probability = 0.0
    """Probability of dropping a BPE merge in training."""
    augment: Probability = 0.0
    """Strength of image augmentation from 0 (none) to 1: shift, scale, rotation, color, cutout, noise."""
    resume: Resume = False
    """Resume from the newest checkpoint of run.dir; auto resumes one of the same config, or else starts a new run."""

    def __post_init__(self) -> None:
        check_metric(self.stage, self.run.keep_best, self.run.stop_after)
        self._check_frozen()
        if (self.run.keep_best or "").startswith("zero_shot") and self.zero_shot is None:
            raise ValueError(f"run.keep_best is {self.run.keep_best}, which needs labelled images: give zero_shot.path")
        if (self.loss == "sigmoid") != self.model.sigmoid:
            raise ValueError(
                f"loss is {self.loss} but model.sigmoid is {str(self.model.sigmoid).lower()}: only the sigmoid loss "
                "trains the bias that it adds; leave out model.sigmoid, which loss sets"
            )
        if self.run.batch_size < 2:
            raise ValueError("run.batch_size is 1: pairs are contrasted with others of the batch; give at least 2")
        if self.run.compile and self.run.accumulation > 1 and self._drops:
            raise ValueError(
                "run.compile with run.accumulation and dropout: compiled code drops other units with autograd than "
                "without; set run.compile=false, or dropout and attention_dropout of both towers and of lora to 0"
            )

    def _check_frozen(self) -> None:
        locked = {} if self.lock is None else parse_lock(self.lock, self.model)
        for name, what in (("lock", self.lock), ("lora", self.lora)):
            if what is not None and self.init_from is None:
                raise ValueError(f"{name} freezes pretrained weights: give them as init_from, or set {name}=null")
        if self.lora is not None and self.optim.ema is not None:
            raise ValueError("lora does not work with an EMA of the weights: set optim.ema=null")
        towers = {"image": self.model.vision, "text": self.model.text}
        for name, blocks in locked.items():
            if blocks is None and (towers[name].dropout or towers[name].attention_dropout):
                raise ValueError(
                    f"lock={self.lock}: a frozen tower must not use dropout; set its dropout=0 and attention_dropout=0"
                )

    @property
    def _drops(self) -> bool:
        towers = any(tower.dropout or tower.attention_dropout for tower in (self.model.vision, self.model.text))
        return towers or (self.lora is not None and self.lora.dropout > 0)


@config
class DALLERecipe:
    """Training or fine-tuning a DALL-E: the transformer over caption tokens and image codes."""

    stage: Literal["dalle"]
    model: DALLEConfig
    data: AnyDataConfig
    optim: OptimConfig
    run: RunConfig
    text_tokenizer: str
    """Folder of the text tokenizer (or a hub id); for a model with text features, its T5 encoder."""
    image_tokenizer: str
    """Folder of the image tokenizer (or a hub id)."""
    init_from: str | None = None
    """Model to fine-tune: a model folder, a published checkpoint, or a hub id. Architecture, tokenizers and sampling
    options default to its own, and options under `model.` override its."""
    lora: LoRAConfig | None = None
    """Train LoRA adapters only, which are merged into the weights of the model folder; null trains all weights."""
    clip: str | None = None
    """Folder of the CLIP that reranks this model's samples; copied into the model folder."""
    text_weight: Weight = 1 / 8
    """Weight of the text loss (section 2.2 of the DALL-E paper)."""
    image_weight: Weight = 7 / 8
    """Weight of the image loss."""
    z_weight: Annotated[float, Range(0, ceiling=10**6, hint="PaLM's is 1e-4")] = 0.0
    """Weight of the z-loss, log² Z of each token, which stabilizes large models in bf16 (PaLM, arXiv 2204.02311,
    section 5, uses 1e-4); 0 disables it."""
    label_smoothing: Decay = 0.0
    """Label smoothing of image codes: the fraction of the target spread evenly over all codes. Logged losses are
    without it."""
    code_noise: Decay = 0.0
    """Probability of replacing an image token in the model's input by a random code; targets are unchanged."""
    bpe_dropout: Probability = 0.1
    """Probability of dropping a BPE merge in training."""
    caption_dropout: Probability = 0.1
    """Probability of replacing a caption by padding, for classifier-free guidance."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample images, which always use the same seeds."""
    sampling: SamplingConfig = SamplingConfig(guidance=2.0)
    """Sampling options of the sample images, and defaults of the model folder."""
    resume: Resume = False
    """Resume from the newest checkpoint of run.dir; auto resumes one of the same config, or else starts a new run."""

    def __post_init__(self) -> None:
        check_metric(self.stage, self.run.keep_best, self.run.stop_after)
        if self.lora is not None and self.optim.ema is not None:
            raise ValueError("lora does not work with an EMA of the weights: set optim.ema=null")
        if not self.text_weight and not self.image_weight:
            raise ValueError("text_weight and image_weight are both 0: nothing would be learned; set one above 0")
        if self.sampling.guidance != 1 and not self.caption_dropout:
            raise ValueError(
                f"sampling.guidance is {self.sampling.guidance} but caption_dropout is 0: guidance needs captions that "
                "were dropped in training; set one of them (guidance 1 is none)"
            )


@config
class PriorRecipe:
    """Training a prior of unCLIP, which predicts CLIP image embeddings from captions."""

    stage: Literal["prior"]
    model: DiffusionPriorConfig | AutoregressivePriorConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    clip: str
    """Folder of the CLIP whose image embeddings are predicted (or a hub id); copied into the model folder."""
    statistics_images: Annotated[int, Range(2, ceiling=10**12)] = 2048
    """Number of training images, spread evenly over the set, from which embedding statistics are computed at the start:
    mean and standard deviation; for the autoregressive prior also principal components and buckets."""
    bpe_dropout: Probability = 0.0
    """Probability of dropping a BPE merge in training."""
    caption_dropout: Probability = 0.1
    """Probability of replacing a caption by a learned null embedding, for classifier-free guidance."""
    sampling: PriorSamplingConfig = field(default_factory=PriorSamplingConfig)
    """Sampling options of validations, and defaults of the model folder."""
    resume: Resume = False
    """Resume from the newest checkpoint of run.dir; auto resumes one of the same config, or else starts a new run."""

    def __post_init__(self) -> None:
        check_metric(self.stage, self.run.keep_best, self.run.stop_after)
        if self.sampling.guidance != 1 and not self.caption_dropout:
            raise ValueError(
                f"sampling.guidance is {self.sampling.guidance} but caption_dropout is 0: guidance needs captions that "
                "were dropped in training; set one of them (guidance 1 is none)"
            )


@config
class DiffusionRecipe:
    """Training the diffusion models of unCLIP: the decoder, or the upsampler."""

    stage: Literal["diffusion"]
    model: DecoderConfig | UpsamplerConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    clip: str | None = None
    """Decoder: folder of the CLIP whose embeddings are decoded (or a hub id); copied into the model folder."""
    statistics_images: Annotated[int, Range(2, ceiling=10**12)] = 2048
    """Decoder: number of training images, spread evenly over the set, from which mean and standard deviation of the
    embeddings are computed at the start."""
    bpe_dropout: Probability = 0.0
    """Decoder: probability of dropping a BPE merge in training."""
    embedding_dropout: Probability = 0.1
    """Decoder: probability of replacing the embedding by a learned one, for classifier-free guidance."""
    caption_dropout: Probability = 0.5
    """Decoder: probability of replacing the caption by an empty one."""
    embedding_noise: Weight = 0.1
    """Decoder: standard deviation of noise added to standardized embeddings, since those of a prior are inexact."""
    blur: Annotated[float, Range(0, ceiling=10**4, hint="pixels")] = 0.6
    """Upsampler: sigma in pixels of the Gaussian blur of low-resolution images in training; 0 does not blur."""
    crop: Annotated[float, Range(0, 1, above=True)] = 0.25
    """Upsampler: side of the random training crops as a fraction of the image side."""
    loss_weight: Literal["uniform", "min_snr"] = "uniform"
    """Weighting of squared errors over diffusion steps; min_snr as in arXiv 2303.09556."""
    snr_gamma: PositiveFloat = 5.0
    """min_snr: signal-to-noise ratio from which on the weight is constant."""
    bound_weight: Weight = 1e-3
    """Weight of the variational bound, in bits per dimension, if the variance is learned (arXiv 2102.09672)."""
    sampling: DiffusionSamplingConfig = field(default_factory=DiffusionSamplingConfig)
    """Sampling options of validations, and defaults of the model folder."""
    resume: Resume = False
    """Resume from the newest checkpoint of run.dir; auto resumes one of the same config, or else starts a new run."""

    def __post_init__(self) -> None:
        check_metric(self.stage, self.run.keep_best, self.run.stop_after)
        other = "psnr" if isinstance(self.model, DecoderConfig) else "centered_cos"
        if self.run.keep_best == other:
            raise ValueError(f"run.keep_best is {other}, which the validation of a {self.model.kind} has not: take mse")
        if self.sampling.sampler.variance == "learned" and not self.model.learned_variance:
            raise ValueError("sampling.sampler.variance is learned: set model.learned_variance=true, or take small")
        if isinstance(self.model, DecoderConfig):
            self._check_decoder()
        else:
            self._check_upsampler(self.model)

    def _check_decoder(self) -> None:
        if self.clip is None:
            raise ValueError("clip is missing: a decoder is trained on the embeddings of a CLIP, name its folder")
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
        side = round(model.image_size * self.crop)
        if not side or side % model.unet.factor:
            raise ValueError(
                f"crop is {self.crop}; of {model.image_size} pixels it must leave a multiple of {model.unet.factor}"
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
    """Read and validate a recipe, given by path or shipped name, with `key.path=value` overrides. Opens no weights.

    Raises:
        ConfigError: lists every mistake in the file and the overrides, one per line, with its full path.
    """
    return parse_recipe(apply_overrides(read_yaml(find_recipe(path)), overrides), str(path))


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """Build a recipe from plain data; `source` names it in error messages.

    Raises:
        ConfigError: lists every mistake, as in `load_recipe`.
    """
    run = data.get("run")
    if isinstance(run, dict) and run.get("tokens") is not None:
        run.setdefault("steps", 0)  # a required field; `_in_steps` computes it from the tokens
    if data.get("stage") == "clip" and data.get("loss") == "sigmoid" and isinstance(data.get("model"), dict):
        data["model"].setdefault("sigmoid", True)
    recipe: Recipe = from_dict(stage_schema(data, source), data, source)
    return recipe if isinstance(recipe, TextTokenizerRecipe) else _in_steps(recipe)


def tokens_per_image(recipe: LoopRecipe) -> int:
    """Return the number of tokens per training pair: caption (including padding) and image; for diffusion, pixels."""
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
    with torch.device("meta"):  # the grid depends on the architecture: build it without memory
        height, width = build(recipe.model).grid
    return height * width


def _in_steps(recipe: LoopRecipe) -> LoopRecipe:
    """Convert lengths given in tokens to steps."""
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
    """Describe every option with type, default and meaning, for the stage of `path` or for all stages."""
    if path is not None:
        data = read_yaml(find_recipe(path))
        return describe(stage_schema(data, str(path)), data)
    return "\n\n".join(f"stage: {stage}\n{describe(schema)}" for stage, schema in STAGES.items())


def stage_schema(data: dict, source: str) -> type:
    """Return the recipe class for the `stage:` of plain data.

    Raises:
        ConfigError: the stage is missing or unknown.
    """
    stage = data.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(f"{source}: stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    return STAGES[stage]
