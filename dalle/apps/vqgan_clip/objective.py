"""The loss of VQGAN+CLIP: the distance between cutouts and prompts in a CLIP's embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.apps.vqgan_clip.cutouts import Cutouts
from dalle.apps.vqgan_clip.losses import spherical_distance
from dalle.apps.vqgan_clip.prompts import Prompt
from dalle.images.read import read_image
from dalle.images.transforms import to_tensor
from dalle.models.clip import CLIP


class ClipObjective:
    """A frozen CLIP with the embeddings of all prompts.

    Attributes:
        clip: the CLIP.
        cutouts: makes its input of an image.
        targets: for each phase the unit embeddings [P, D] of its prompts.
        weights: for each phase the weights [P] of its prompts.
    """

    def __init__(
        self, clip: CLIP, phases: Sequence[Sequence[Prompt]], cutouts: Cutouts, dtype: torch.dtype = torch.float32
    ) -> None:
        self.clip, self.cutouts, self.dtype = clip, cutouts, dtype
        self.device = clip.logit_scale.device
        self.targets = [torch.cat([self._embed(prompt) for prompt in phase]) for phase in phases]
        self.weights = [torch.tensor([prompt.weight for prompt in phase], device=self.device) for phase in phases]

    def distance(self, cutouts: Tensor, phase: int) -> Tensor:
        """Spherical distances to the prompts of a phase, weighted; the mean over cutouts [N, 3, side, side]."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            embeds = self.clip.encode_image(cutouts)  # [N, D]
        distances = spherical_distance(embeds[:, None], self.targets[phase][None])  # [N, P]
        return (distances * self.weights[phase]).sum(1).mean()

    @torch.no_grad()
    def _embed(self, prompt: Prompt) -> Tensor:
        """The unit embedding [1, D] of a prompt."""
        if prompt.kind == "text":
            return self.clip.encode_text([prompt.content])
        if prompt.kind == "image":
            side = self.clip.config.image_size
            image = to_tensor(read_image(Path(prompt.content)), side, side)
            return self.clip.encode_image(image.to(self.device))
        # A noise prompt is a random direction of the embedding space
        generator = torch.Generator().manual_seed(int(prompt.content))
        noise = torch.randn(1, self.clip.config.embed_dim, generator=generator)
        return F.normalize(noise, dim=1).to(self.device)
