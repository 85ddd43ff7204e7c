"""Stage dalle with `grpo`: policy optimization. The model draws images, and learns from which were better than others.

A model that has only read true images has never seen its own mistakes: one wrong code, and what follows is drawn as of
an image that does not exist. Here it learns from images that it has drawn to the end (GRPO; Shao et al. 2024, arXiv
2402.03300, section 4.1). Shapes: B captions, K candidates each, T text tokens, N image tokens, H W pixels, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.checkpoints.load import load_clip
from dalle.data.batch import Batch
from dalle.generation.generate import generate
from dalle.images.transforms import resize_batch
from dalle.text_tokenizers.t5 import T5Encoder
from dalle.training.distributed.fsdp import Sharding
from dalle.training.recipe import DALLERecipe
from dalle.training.recipe.grpo import NOT_SHARDED
from dalle.training.tasks.base import Phase
from dalle.training.tasks.dalle import DALLETask, Inputs

_SEED_STREAM = 5  # separates the seeds of the candidates from other random numbers of a pair
_SIDE = 16  # pixels of a side at which two images are compared
_FLOOR = 0.03  # added to the deviation of a caption's rewards: differences that are smaller than this are noise
_DECODE_BATCH = 32


@dataclass
class PolicyInputs(Inputs):
    """A micro-batch, some of its captions dropped, for the supervised loss; and what the model has drawn for it."""

    prompts: Tensor  # int64 [B, T], all captions; or T5 features
    drawn: Tensor  # int64 [B, K, N], codes
    advantages: Tensor  # float [B, K]
    rewards: dict[str, Tensor]  # scalars to log


class GRPOTask(DALLETask):
    """Trains a DALL-E by policy optimization. Each step draws with the weights as they are, and learns from it once.

    With one update for each set of drawings the ratio of new to old probabilities is 1 (but for rounding, and for
    dropout if there is any), so that there is nothing to clip; the supervised loss takes the place of a divergence from
    a reference model.
    """

    def __init__(self, recipe: DALLERecipe, device: torch.device, sharding: Sharding | None = None):
        assert recipe.grpo is not None
        if sharding is not None:
            raise ValueError(NOT_SHARDED)
        super().__init__(recipe, device)
        self.grpo = recipe.grpo
        self.clip = None if recipe.clip is None or not self.grpo.needs_clip else load_clip(recipe.clip, device)
        self.operations_per_image = None  # it draws, scores and learns

    def inputs(self, batch: Batch) -> PolicyInputs:
        """Draw the candidates of each caption, with seeds that depend on its pair alone, and compare them."""
        prompts = self._encode(batch.captions).to(self.device)
        # With BPE dropout they are encoded to other ids; a T5 has none, and would take its time once more
        dropout = self.recipe.bpe_dropout and not isinstance(self.text_tokenizer, T5Encoder)
        pairs = super().inputs(batch) if dropout else self._inputs_of(batch, prompts)
        seeds = [candidate_seeds(seed, self.grpo.candidates) for seed in batch.seeds]
        # With run.compile each new shape (a growing KV cache) would trigger another compilation
        with torch.compiler.set_stance("force_eager"):
            drawn = generate(self.model, prompts, seeds).view(len(prompts), self.grpo.candidates, -1)  # [B, K, N]
        rewards = self._rewards(batch.captions, pairs.codes, drawn)
        total = torch.stack(list(rewards.values())).sum(0)  # [B, K]
        logged = {f"reward_{name}": value.mean() for name, value in rewards.items()}
        logged |= {"reward": total.mean(), "reward_deviation": total.std(1).mean()}
        return PolicyInputs(pairs.text, pairs.codes, pairs.read, prompts, drawn, advantages(total), logged)

    @torch.no_grad()
    def _rewards(self, captions: list[str], codes: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """The weighted parts of the reward by name, each [B, K], for true codes [B, N] and drawn ones [B, K, N]."""
        grpo, (count, several, _) = self.grpo, drawn.shape
        images = self._decode(drawn.flatten(0, 1))  # [B K, 3, H, W]
        true = self._decode(codes) if grpo.pixels or grpo.image else images[:0]  # [B, 3, H, W]
        found = {}
        if grpo.pixels:
            small = F.adaptive_avg_pool2d(images, _SIDE).reshape(count, several, -1)
            errors = small - F.adaptive_avg_pool2d(true, _SIDE).reshape(count, 1, -1)
            found["pixels"] = -grpo.pixels * errors.square().mean(-1).sqrt()
        if self.clip is not None:
            embeds = self._embed(images).view(count, several, -1)  # [B, K, D]
            if grpo.text:
                found["text"] = grpo.text * torch.einsum("bkd,bd->bk", embeds, self.clip.encode_text(captions))
            if grpo.image:
                found["image"] = grpo.image * torch.einsum("bkd,bd->bk", embeds, self._embed(true))
        return found

    def _decode(self, codes: Tensor) -> Tensor:
        """Images [M, 3, H, W] in [0, 1] of codes [M, N]."""
        parts = codes.view(-1, *self.recipe.model.grid).split(_DECODE_BATCH)
        return torch.cat([self.image_tokenizer.decode(part).float() for part in parts])

    def _embed(self, images: Tensor) -> Tensor:
        """CLIP's embeddings [M, D] of images [M, 3, H, W]."""
        assert self.clip is not None
        size = self.clip.config.image_size
        return torch.cat([self.clip.encode_image(resize_batch(part, size)) for part in images.split(_DECODE_BATCH)])

    def loss(self, phase: Phase, inputs: Inputs, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy loss, plus the supervised one by its weight; logs the rewards and the supervised losses."""
        assert isinstance(inputs, PolicyInputs)
        total = self.policy_loss(inputs)
        losses = dict(inputs.rewards)
        if self.grpo.supervised:
            supervised, parts = super().loss(phase, inputs, step)
            total = total + self.grpo.supervised * supervised
            losses |= parts
        return total, losses

    def policy_loss(self, inputs: PolicyInputs) -> Tensor:
        """Mean over candidates and tokens of advantage times cross-entropy.

        Its gradient is minus that of the expected reward (REINFORCE with the group's mean as the baseline).
        """
        text = inputs.prompts.repeat_interleave(self.grpo.candidates, dim=0)  # [B K, T]
        nats = self.model.image_losses(text, inputs.drawn.flatten(0, 1))  # [B K, N]
        return (inputs.advantages.flatten()[:, None] * nats).mean()


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Seeds of a pair's candidates, which do not depend on the rest of the batch."""
    drawn: list[int] = np.random.default_rng((seed, _SEED_STREAM)).integers(0, 2**62, count).tolist()
    return drawn


def advantages(rewards: Tensor) -> Tensor:
    """How much better each candidate is than the mean of its caption's, in units of their deviation.

    Args:
        rewards: float [B, K].

    Returns:
        [B, K], of mean 0 for each caption; near 0 for all where the candidates are hardly different.
    """
    mean, deviation = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    return (rewards - mean) / (deviation + _FLOOR)
