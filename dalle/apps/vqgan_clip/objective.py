"""One CLIP that looks at a painting: how far cutouts are from the prompts. Knows nothing of what is painted with."""

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


class Critic:
    """A CLIP with the embeddings of all prompts, phase by phase."""

    def __init__(
        self, clip: CLIP, phases: Sequence[Sequence[Prompt]], cutouts: Cutouts, dtype: torch.dtype = torch.float32
    ) -> None:
        self.clip, self.cutouts, self.dtype = clip, cutouts, dtype
        self.device = clip.logit_scale.device
        self.targets = [torch.cat([self._embed(prompt) for prompt in phase]) for phase in phases]  # each [P, D]
        self.weights = [torch.tensor([prompt.weight for prompt in phase], device=self.device) for phase in phases]

    def distance(self, cut: Tensor, phase: int) -> Tensor:
        """Weighted distance to the prompts of a phase, the mean over cutouts [N, 3, side, side]; a scalar."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            seen = self.clip.encode_image(cut)  # [N, D]
        away = spherical_distance(seen[:, None], self.targets[phase][None])  # [N, P]
        return (away * self.weights[phase]).sum(1).mean()

    @torch.no_grad()
    def _embed(self, prompt: Prompt) -> Tensor:
        """The unit vector [1, D] of a prompt."""
        if prompt.kind == "text":
            return self.clip.encode_text([prompt.content])
        if prompt.kind == "image":
            side = self.clip.config.image_size
            image = to_tensor(read_image(Path(prompt.content)), side, side)
            return self.clip.encode_image(image.to(self.device))
        generator = torch.Generator().manual_seed(int(prompt.content))
        noise = torch.randn(1, self.clip.config.embed_dim, generator=generator)
        return F.normalize(noise, dim=1).to(self.device)
