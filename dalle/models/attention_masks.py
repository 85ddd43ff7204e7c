"""Which tokens each layer of a DALL-E attends to: its masks as buffers, and as patterns where sparse kernels know them.

Shapes: B batch, P prefix length, T queries, S keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.kv_cache import Positions
from dalle.kernels.masks import Kind, Mask, mask
from dalle.kernels.pattern import GatheredKeys, LayerMask, Pattern, SparseMask
from dalle.models.dalle_config import DALLEConfig


class AttentionMasks(nn.Module):
    """Base of `DALLE` that holds the masks of its layers.

    A base and not a submodule, as published and existing weights have `masks` beside the embeddings.

    Attributes:
        config: the architecture.
        input_length: `DALLEConfig.input_length`.
        patterns: what sparse kernels need to know, by kind of attention or by index of a stored mask that equals one.
    """

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__()
        self.config = config
        self.input_length = config.input_length
        self.patterns: dict[Kind | int, Pattern] = {}

    def _add_masks(self) -> None:
        """Register the mask of each kind of attention, or room for the masks that come with the weights."""
        config, prefix, (rows, columns) = self.config, self.config.prefix_length, self.config.grid
        if config.stored_masks:
            count = max(config.stored_masks) + 1
            # Placeholders with the right shape: loading overwrites them
            self.register_buffer(
                "masks", torch.ones(count, self.input_length, self.input_length, dtype=torch.bool).tril()
            )
            return
        for kind in sorted(set(config.kinds) - {"full"}):
            allowed = mask(kind, prefix, rows, columns, config.conv_kernel)
            # Computed from the config, so that a checkpoint need not store them
            self.register_buffer(f"{kind}_mask", allowed, persistent=False)
            self._register_pattern(kind, Pattern(kind, prefix, columns, config.conv_kernel))

    def _register_pattern(self, kind: Kind | int, pattern: Pattern) -> None:
        """Make sparse kernels available for an attention kind, or for one of the stored masks."""
        self.patterns[kind] = pattern
        keys = pattern.keys(self.input_length)  # [S, K]
        # CUDA graphs look up the keys of a position that only the device knows
        self.register_buffer(f"{kind}_keys", keys.to(next(self.buffers()).device), persistent=False)

    def detect_sparse_masks(self) -> None:
        """Detect which stored masks equal a known sparse pattern, so that sparse kernels apply. Call after loading."""
        if not self.config.stored_masks:
            return
        prefix, columns = self.config.prefix_length, self.config.grid[1]
        kinds: tuple[Kind, ...] = ("row", "column", "conv")
        texts = (prefix, self.config.text_length)  # ruDALL-E's v2 masks do not count the begin token as text
        known = [Pattern(kind, text, columns, self.config.conv_kernel) for kind in kinds for text in texts]
        for index, table in enumerate(self.get_buffer("masks").cpu()):
            for pattern in known:
                if torch.equal(table, pattern.mask(len(table))):
                    self._register_pattern(index, pattern)

    def _masks(self, positions: Positions, padding: Tensor | None) -> list[LayerMask]:
        """Each layer's mask, for the queries at these positions and the keys up to the last of them."""
        kinds = self.config.stored_masks or self.config.kinds
        if padding is None:
            masks = {kind: self._mask(kind, positions) for kind in set(kinds)}  # one per kind, shared by its layers
            return [masks[kind] for kind in kinds]
        # Padding depends on the row, so masks are dense [B, 1, T, S]. A padding token attends to itself: with nothing
        # to attend to, softmax would give nan, and although nothing reads its state, 0 * nan would spread.
        distance = positions.relative_distance(padding.device)
        length = max(0, positions.end - padding.shape[1])  # keys after the prefix, which are never padding
        valid = F.pad(~padding[:, : positions.end], (0, length), value=True)[:, None, None]  # [B, 1, 1, S]
        dense = {kind: self._dense(kind, positions) for kind in set(kinds)}
        padded = {
            kind: (one if isinstance(one, Tensor) else distance >= 0) & valid | (distance == 0)
            for kind, one in dense.items()
        }
        return [padded[kind] for kind in kinds]

    def _mask(self, kind: Kind | int, positions: Positions) -> LayerMask:
        """The mask of one attention kind, or one of the stored masks, without padding."""
        pattern = self.patterns.get(kind)
        if pattern is None or positions.ragged:  # sparse kernels know one position
            return self._dense(kind, positions)
        if positions.on_device:  # a slice would need the position on the host: gather the query's keys instead
            keys = positions.rows(self.get_buffer(f"{kind}_keys"))[0]
            return GatheredKeys(keys.clamp(min=0), keys >= 0)  # [K]: padding of the table is -1
        if positions.end <= pattern.text:  # text alone is causal in every pattern
            return positions.causal
        return SparseMask(pattern, positions.mask_block(self._table(kind)))

    def _dense(self, kind: Kind | int, positions: Positions) -> Mask:
        """The same, without sparse kernels."""
        # -1: full attention among stored masks
        return positions.causal if kind in ("full", -1) else positions.mask_block(self._table(kind))

    def _table(self, kind: Kind | int) -> Tensor:
        return self.get_buffer("masks")[kind] if isinstance(kind, int) else self.get_buffer(f"{kind}_mask")
