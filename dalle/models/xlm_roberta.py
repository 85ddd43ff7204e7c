"""XLM-RoBERTa as a CLIP's text tower, for captions in a hundred languages, as open_clip has it.

Conneau et al. 2020, arXiv 1911.02116: a BERT, so norms come after each residual connection and nothing is masked but
padding. open_clip averages the states of all tokens and projects the mean with an MLP.

Shapes: B batch, C width, T text positions, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.pattern import LayerMask
from dalle.models.clip_config import CLIPConfig
from dalle.models.clip_tower import TextTower
from dalle.models.transformer import Block, Context
from dalle.models.transformer_config import TransformerConfig

PAD_ID = 1
"""Id of padding; positions count from the one after it, as in fairseq."""


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + feed_forward(x))."""

    def forward(self, x: Tensor, mask: LayerMask, context: Context, layer: int) -> Tensor:
        """[B, T, C] to the same shape."""
        x = self.attention_norm(x + self.attention(x, mask, context, layer))
        normed: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return normed


class PostNormTransformer(nn.Module):
    """Blocks of a BERT."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.depth))

    def forward(self, x: Tensor, mask: LayerMask) -> Tensor:
        """[B, T, C] to the same shape."""
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, Context(), layer)
        return x


class XLMRobertaText(TextTower):
    """Text tower: embeddings, post-norm blocks, mean over the tokens, MLP."""

    top = ("hidden.", "projection.")

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width = config.text.width
        self.tokens = nn.Embedding(config.text_vocab, width)
        self.positions = nn.Parameter(torch.randn(config.text_length, width) * 0.02)
        self.padding = nn.Parameter(torch.zeros(width))  # the position of padding, which no token attends to
        self.norm = nn.LayerNorm(width)
        self.transformer = PostNormTransformer(config.text)
        self.hidden = nn.Linear(width, (width + config.embed_dim) // 2, bias=False)  # open_clip's width of the MLP
        self.projection = nn.Linear((width + config.embed_dim) // 2, config.embed_dim, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def states(self, ids: Tensor) -> Tensor:
        """Ids [B, T], padding at the end, to the states [B, T, C] after the last block."""
        there = ids != PAD_ID
        positions = torch.where(there[..., None], self.positions[: ids.shape[1]], self.padding)  # [B, T, C]
        x = self.norm(self.tokens(ids) + positions)
        # Every token sees all that is no padding
        states: Tensor = self.transformer(x, there[:, None, None].expand(-1, 1, ids.shape[1], -1))
        return states

    def end(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to the position of the last token that is no padding, int64 [B]."""
        return (ids != PAD_ID).sum(1).clamp(min=1) - 1  # a caption of nothing but padding is read at 0

    def project(self, states: Tensor, end: Tensor) -> Tensor:
        """States [B, T, C] and the last positions [B] to embeddings [B, D], not normalized."""
        there = torch.arange(states.shape[1], device=states.device) <= end[:, None]  # [B, T]
        # Shaped [B, C], over the tokens that are no padding
        mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        projected: Tensor = self.projection(F.gelu(self.hidden(mean)))
        return projected
