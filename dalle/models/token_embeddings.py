"""How a DALL-E reads tokens: their embeddings, and what encodes positions, learned or by rotary angles.

Shapes: B batch, T text length, P prefix length, N = h * w image tokens, n of them, C width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dalle.kernels.attention import rope_table, rope_table_1d
from dalle.kernels.block_weights import Rope
from dalle.kernels.kv_cache import Positions, TokenShift
from dalle.models.attention_masks import AttentionMasks
from dalle.models.dalle_config import DALLEConfig
from dalle.models.feature_embedding import FeatureEmbedding


class TokenEmbeddings(AttentionMasks):
    """Base of `DALLE` that embeds its tokens; a base for the reason that `AttentionMasks` gives."""

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__(config)
        width = config.transformer.width
        if config.text_features is None:
            self.text_embedding: nn.Module = nn.Embedding(config.text_embeddings, width)
        else:
            self.text_embedding = FeatureEmbedding(config.text_features, config.text_length, width)
        # And a row end, if the model reads them
        self.image_embedding = nn.Embedding(config.image_vocab + config.row_ends, width)
        self._add_positions(config)

    def _add_positions(self, config: DALLEConfig) -> None:
        """Create what encodes a token's position: learned embeddings, or rotary tables."""
        prefix, width, (rows, columns) = config.prefix_length, config.transformer.width, config.grid
        # Positions as the config has them: embeddings are parameters, rotary angles are buffers
        self.shift = TokenShift(prefix, rows, columns) if config.shift_tokens else None
        if config.positions in ("learned", "learned_cells"):
            self.text_position = nn.Parameter(torch.empty(prefix, width))
        if config.positions == "learned":
            self.row_position = nn.Parameter(torch.empty(rows, 1, width))
            self.column_position = nn.Parameter(torch.empty(1, columns, width))
        elif config.positions == "learned_cells":
            self.cell_position = nn.Parameter(torch.empty(rows * columns, width))
        else:
            head = config.transformer.head_width
            if config.positions == "rope_1d":
                cos, sin = rope_table_1d(self.input_length, head, config.rope_base)
            else:
                cos, sin = rope_table(prefix, rows, columns, head)
            stored = config.positions == "stored_rope"  # DALLE-pytorch and LlamaGen store theirs
            self.register_buffer("rope_cos", cos[: self.input_length], persistent=stored)
            self.register_buffer("rope_sin", sin[: self.input_length], persistent=stored)

    def _embed_text(self, prefix: Tensor) -> Tensor:
        x = self.text_embedding(prefix)  # [B, P, C]
        return x + self.text_position[: x.shape[1]] if self.config.positions.startswith("learned") else x

    def _embed_image(self, image_ids: Tensor, positions: Positions) -> Tensor:
        x = self.image_embedding(image_ids)  # [B, n, C]
        if self.config.positions == "learned":
            return x + positions.cell_embeddings(self.row_position, self.column_position, self.config.prefix_length)
        if self.config.positions == "learned_cells":
            return x + positions.rows(self.cell_position, self.config.prefix_length)
        return x

    def _angles(self, positions: Positions) -> Rope | None:
        """Rotary angles of positions; None for models with learned positions."""
        if "rope" not in self.config.positions:  # rope, rope_1d and stored_rope
            return None
        return positions.angles(self.get_buffer("rope_cos")), positions.angles(self.get_buffer("rope_sin"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TokenEmbeddings:
        """Move or cast the module, but keep the rotary tables in float32: 16 bits are too coarse for angles."""
        # Taken out before super() casts everything, and put back afterward
        angles = {name: table for name, table in self._buffers.items() if name.startswith("rope_")}
        super()._apply(fn, recurse)
        for name, table in angles.items():
            assert table is not None
            self._buffers[name] = table.to(self.image_embedding.weight.device)
        if self.shift is not None:
            self.shift.sources = self.shift.sources.to(self.image_embedding.weight.device)
        return self
