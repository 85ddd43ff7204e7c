"""Recipes of unCLIP: its priors, and its diffusion models, decoder and upsampler."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from dalle.config import config
from dalle.config.ranges import PositiveFloat, Probability, Range, Weight
from dalle.data import EmbeddedImageDataConfig, EmbeddingDataConfig
from dalle.data.token_shards.dataset import ShardsConfig
from dalle.generation.diffusion_decoder import DiffusionSamplingConfig
from dalle.generation.prior import PriorSamplingConfig
from dalle.models.autoregressive_prior import AutoregressivePriorConfig
from dalle.models.diffusion_decoder import DecoderConfig
from dalle.models.diffusion_prior import DiffusionPriorConfig
from dalle.models.upsampler import UpsamplerConfig
from dalle.training.checkpoint.best import check_metric
from dalle.training.optim import OptimConfig
from dalle.training.recipe.guidance import check_guidance
from dalle.training.recipe.run import Resume, RunConfig


@config
class PriorRecipe:
    """Training a prior of unCLIP, which predicts CLIP image embeddings from captions."""

    stage: Literal["prior"]
    model: DiffusionPriorConfig | AutoregressivePriorConfig
    data: EmbeddingDataConfig
    optim: OptimConfig
    run: RunConfig
    clip: str
    """Folder of the CLIP whose image embeddings are predicted (or a hub id); copied into the model folder."""
    statistics_images: Annotated[int, Range(2, ceiling=10**12)] = 2048
    """Number of training images, spread evenly over the set, from which embedding statistics are computed at the start:
    mean and standard deviation; for the autoregressive prior also principal components and buckets."""
    init_from: str | None = None
    """Prior to fine-tune: folder of a prior or of an unCLIP, Karlo's, or a hub id. Architecture, statistics, CLIP and
    sampling options are its own; options under `model.` override its."""
    bpe_dropout: Probability = 0.0
    """Probability of dropping a BPE merge in training."""
    caption_dropout: Probability = 0.1
    """Probability of replacing a caption by the null caption (`model.null_caption`), for classifier-free guidance."""
    sampling: PriorSamplingConfig = field(default_factory=PriorSamplingConfig)
    """Sampling options of validations, and defaults of the model folder."""
    resume: Resume = False
    """Resume from the newest checkpoint of run.dir; auto resumes one of the same config, or else starts a new run."""

    def __post_init__(self) -> None:
        check_metric(self.stage, self.run.keep_best, self.run.stop_after)
        check_guidance(self.sampling.guidance, "caption", self.caption_dropout)


@config
class DiffusionRecipe:
    """Training the diffusion models of unCLIP: the decoder, or the upsampler."""

    stage: Literal["diffusion"]
    model: DecoderConfig | UpsamplerConfig
    data: EmbeddedImageDataConfig
    optim: OptimConfig
    run: RunConfig
    clip: str | None = None
    """Decoder: folder of the CLIP whose embeddings are decoded (or a hub id); copied into the model folder."""
    statistics_images: Annotated[int, Range(2, ceiling=10**12)] = 2048
    """Decoder: number of training images, spread evenly over the set, from which mean and standard deviation of the
    embeddings are computed at the start."""
    init_from: str | None = None
    """Model to fine-tune: folder of a decoder, an upsampler or an unCLIP (its decoder, or with model.kind=upsampler its
    upsampler), Karlo's, or a hub id. Architecture, statistics, CLIP and sampling options are its own."""
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
        # Each of the two validates by metrics that the other does not have
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
        check_guidance(self.sampling.guidance, "embedding", self.embedding_dropout)

    def _check_upsampler(self, model: UpsamplerConfig) -> None:
        if isinstance(self.data, ShardsConfig):
            raise ValueError(f"data.kind is {self.data.kind}: an upsampler is trained on images of its own size")
        if self.clip is not None:
            raise ValueError(f"clip is {self.clip}: an upsampler reads no embeddings, leave it out")
        if self.sampling.guidance != 1:
            raise ValueError(f"sampling.guidance is {self.sampling.guidance}: an upsampler has none, set it to 1")
        # The UNet halves crops as often as whole images
        side = round(model.image_size * self.crop)
        if not side or side % model.unet.factor:
            raise ValueError(
                f"crop is {self.crop}; of {model.image_size} pixels it must leave a multiple of {model.unet.factor}"
            )
