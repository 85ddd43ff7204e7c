"""The recipe of a CLIP or SigLIP, trained anew or fine-tuned."""

from __future__ import annotations

from typing import Literal

from dalle.config import config
from dalle.config.ranges import Probability
from dalle.data import DataConfig
from dalle.models.clip import CLIPConfig
from dalle.training.checkpoint.best import check_metric
from dalle.training.frozen_towers import parse_lock
from dalle.training.lora import LoRAConfig
from dalle.training.optim import OptimConfig
from dalle.training.recipe.run import Resume, RunConfig
from dalle.training.zero_shot import ZeroShotConfig


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
    """Labeled images whose zero-shot accuracy is validated, so that forgetting is seen; null: none."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: pick the matching caption of each image within the batch, and vice versa (CLIP). sigmoid: classify each
    pair on its own as matching or not (SigLIP, arXiv 2303.15343); scores are probabilities; sets `model.sigmoid`."""
    bpe_dropout: Probability = 0.0
    """Probability of dropping a BPE merge in training."""
    augment: Probability = 0.0
    """Strength of image augmentation from 0 (none) to 1: shift, scale, rotation, color, cutout, noise."""
    image_tokenizer: str | None = None
    """Model folder of the image tokenizer of `reconstructed`; `dalle convert` makes one of published weights."""
    reconstructed: Probability = 0.0
    """Fraction of training images that are encoded and decoded by `image_tokenizer`, so that a CLIP that ranks the
    candidates of a DALL-E knows images as its tokenizer decodes them."""
    resume: Resume = False
    """Resume from the newest checkpoint of run.dir; auto resumes one of the same config, or else starts a new run."""

    def __post_init__(self) -> None:
        check_metric(self.stage, self.run.keep_best, self.run.stop_after)
        self._check_frozen()
        if (self.run.keep_best or "").startswith("zero_shot") and self.zero_shot is None:
            raise ValueError(f"run.keep_best is {self.run.keep_best}, which needs labeled images: give zero_shot.path")
        if (self.loss == "sigmoid") != self.model.sigmoid:
            raise ValueError(
                f"loss is {self.loss} but model.sigmoid is {str(self.model.sigmoid).lower()}: only the sigmoid loss "
                "trains the bias that it adds; leave out model.sigmoid, which loss sets"
            )
        if (self.image_tokenizer is not None) != (self.reconstructed > 0):
            raise ValueError(
                f"reconstructed is {self.reconstructed:g}, image_tokenizer {self.image_tokenizer or 'not given'}: give "
                "the tokenizer that reconstructs and a fraction above 0, or neither"
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
            # Without weights to start from, what is frozen would stay random
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
