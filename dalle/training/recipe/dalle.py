"""The recipe of a DALL-E: the transformer over caption tokens and image codes."""

from __future__ import annotations

from typing import Annotated, Literal

from dalle.config import config
from dalle.config.ranges import Decay, Probability, Range, Weight
from dalle.data import TokenDataConfig
from dalle.generation.options import SamplingConfig
from dalle.models.dalle_config import DALLEConfig
from dalle.training.checkpoint.best import check_metric
from dalle.training.lora import LoRAConfig
from dalle.training.optim import OptimConfig
from dalle.training.recipe.grpo import NOT_SHARDED, GRPOConfig
from dalle.training.recipe.guidance import check_guidance
from dalle.training.recipe.run import Resume, RunConfig


@config
class DALLERecipe:
    """Training or fine-tuning a DALL-E: the transformer over caption tokens and image codes."""

    stage: Literal["dalle"]
    model: DALLEConfig
    data: TokenDataConfig
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
    """Folder of the CLIP that reranks this model's samples, and rewards with `grpo`; copied into the model folder."""
    grpo: GRPOConfig | None = None
    """Policy optimization: learn from images that the model draws in each step, of `clip` and the training images; null
    learns from the training images alone."""
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
    prefix_noise: Probability = 0.0
    """Fraction of the images of whose image tokens most or all are replaced so, that the caption must be read to
    predict them; about 0.5 where images are learned by their first tokens instead."""
    bpe_dropout: Probability = 0.1
    """Probability of dropping a BPE merge in training."""
    caption_dropout: Probability = 0.1
    """Probability of replacing a caption by the null caption, for classifier-free guidance."""
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
        if self.model.stored_masks and self.init_from is None:
            raise ValueError(
                "model.stored_masks are masks among the weights of init_from, which is null: set model.stored_masks=[] "
                "and choose by model.attention"
            )
        predicts_text = self.model.text_head and self.model.prefix_length > 1  # nothing precedes a single token
        if self.run.keep_best == "text_nats" and not predicts_text:
            raise ValueError("run.keep_best is text_nats, and the model predicts no text: take image_nats")
        learns = self.image_weight or (self.text_weight and predicts_text)
        if not learns and (self.grpo is None or self.grpo.supervised):
            both = "text_weight and image_weight are both 0"
            cause = both if predicts_text else "image_weight is 0, and the model predicts no text"
            hint = f"set {'one' if predicts_text else 'image_weight'} above 0"
            hint += "" if self.grpo is None else ", or grpo.supervised=0"
            raise ValueError(f"{cause}: nothing would be learned from images; {hint}")
        if self.grpo is not None and self.run.sharding == "fsdp":  # before a run of many processes finds it out
            raise ValueError(NOT_SHARDED)
        if self.grpo is not None and self.grpo.needs_clip and self.clip is None:
            raise ValueError("grpo rewards by a CLIP, and clip is null: give one, or set grpo.text=0 and grpo.image=0")
        check_guidance(self.sampling.guidance, "caption", self.caption_dropout)
