"""CLIP's towers: a vision transformer with a class token, and a causal text transformer read at EOS.

Radford et al. 2021, arXiv 2103.00020, section 2.4; SigLIP's are in `dalle.models.siglip`.

Shapes: B batch, H W pixels, h w patches, C width of a tower, T text positions, D embedding.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from einops import rearrange
from torch import Tensor, nn

from dalle.models.clip_config import CLIPConfig
from dalle.models.clip_tower import ImageTower, TextTower, normalizer
from dalle.models.transformer import Transformer


class PatchTower(ImageTower):
    """An image tower with a transformer over patches."""

    transformer: Transformer
    side: int
    first_patch: int  # position of the first patch among the transformer's inputs

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to the transformer's input [B, first_patch + h*w, C]."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] in [0, 1] to one map [B, C, h, w] per block."""
        states: list[Tensor] = []
        # Hooks, as the transformer itself returns the output of its last block only
        hooks = [
            block.register_forward_hook(lambda module, args, output: states.append(output))
            for block in self.transformer.blocks  # [3] to [3, 1, 1]
        ]
        try:
            self.transformer(self.embed(images))
        finally:
            for hook in hooks:
                hook.remove()
        return [rearrange(x[:, self.first_patch :], "B (h w) C -> B C h w", h=self.side) for x in states]


class VisionTransformer(PatchTower):
    """Image tower: patches and a class token, LayerNorm, pre-norm transformer, projection of the class token."""

    mean: Tensor
    std: Tensor
    first_patch = 1  # position 0 is the class token

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, side = config.vision.width, config.image_size // config.patch_size  # patches a side
        self.side = side
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + side**2, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.transformer = Transformer(config.vision)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        self.register_buffer("mean", normalizer(config.mean), persistent=False)
        self.register_buffer("std", normalizer(config.std), persistent=False)

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to the transformer's input [B, 1 + h*w, C], class token first."""
        normalized = (images - self.mean) / self.std
        patches = self.patches(normalized.to(self.patches.weight.dtype))  # [B, C, h, w]
        tokens = rearrange(patches, "B C h w -> B (h w) C")
        first = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)
        x: Tensor = self.norm(torch.cat([first, tokens], dim=1) + self.positions)
        return x

    def pooled(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to the state of the class token after the final norm, [B, C]."""
        states: Tensor = self.transformer(self.embed(images))
        return states[:, 0]  # [B, C]

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to embeddings [B, D], not normalized."""
        projected: Tensor = self.projection(self.pooled(images))
        return projected


class TextTransformer(TextTower):
    """Text tower: causal pre-norm transformer, projection of the state at EOS."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, self.eos_id = config.text.width, config.eos_id
        self.tokens = nn.Embedding(config.text_vocab, width)
        # Smaller than tokens, as OpenAI's code has it
        self.positions = nn.Parameter(torch.randn(config.text_length, width) * 0.01)
        self.transformer = Transformer(config.text)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def states(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to the states [B, T, C] after the final norm."""
        x: Tensor = self.transformer(self.tokens(ids) + self.positions[: ids.shape[1]], "causal")
        return x

    def end(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to the position to read, int64 [B]: the first EOS or, without one, the last position."""
        ends = ids.eq(self.eos_id)
        # Argmax gives the first of several
        return torch.where(ends.any(dim=1), ends.int().argmax(dim=1), ids.shape[1] - 1)

    def project(self, states: Tensor, end: Tensor) -> Tensor:
        """States [B, T, C] and the position [B] to read, to embeddings [B, D], not normalized."""
        projected: Tensor = self.projection(states[torch.arange(len(states), device=states.device), end])
        return projected
