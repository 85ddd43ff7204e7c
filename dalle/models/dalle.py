"""DALL-E: one decoder-only transformer over a caption's tokens and then an image's. Token ids in, logits out.

Shapes: B batch, T text length, P prefix length (T, plus 1 with `begin_id`), N = h * w image tokens, C width, V image
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.config.ranges import NonNegativeInt, Range, Size
from dalle.kernels.attention import rope_table
from dalle.kernels.block_weights import Rope
from dalle.kernels.cross_entropy import mean_loss, token_scores
from dalle.kernels.ids import check_ids
from dalle.kernels.kv_cache import KVCache, Positions, TokenShift
from dalle.kernels.linear import Linear
from dalle.kernels.masks import Kind, Mask, mask
from dalle.kernels.pattern import GatheredKeys, LayerMask, Pattern, SparseMask
from dalle.models.transformer import RunBlocks, Transformer, TransformerConfig, norm


@config
class DALLEConfig:
    """Architecture of a DALL-E; the options beyond the paper's exist to load other projects' checkpoints."""

    transformer: TransformerConfig = TransformerConfig()
    """Architecture of the transformer."""
    text_vocab: Size = 4096
    """Size of the text tokenizer's vocabulary."""
    text_length: Size = 32
    """Number of text tokens in every sequence, padding included."""
    image_vocab: Size = 1024
    """Number of codes of the image tokenizer."""
    grid: tuple[Size, Size] = (8, 8)
    """Rows and columns of image tokens."""
    attention: tuple[Kind, ...] = ("full",)
    """Kinds of attention, cycled over the layers from the first."""
    last_attention: Kind | None = None
    """Kind of the last layer's attention; null: as the cycle has it."""
    conv_kernel: Annotated[int, Range(1, ceiling=2**16)] = 11
    """Side of the window of "conv" attention; odd."""
    positions: Literal["learned", "learned_cells", "rope", "stored_rope"] = "learned"
    """Position embeddings. learned: text 1-D, image row + column; learned_cells: one for each image position; rope:
    rotary in two dimensions; stored_rope: rotary, with a table that is stored with the weights."""
    stored_masks: tuple[Annotated[int, Range(-1, ceiling=2**16)], ...] = ()
    """For each layer, the index of its mask among those stored with the weights, -1 for full attention; empty: use
    `attention`."""
    pad_id: NonNegativeInt = 0
    """Text id that means "no token here"."""
    padding: Literal["positional", "word"] = "positional"
    """positional: each position has its own padding token, with ids from text_vocab on; word: pad_id is an ordinary
    token."""
    begin_id: NonNegativeInt | None = None
    """Text id prepended to every text; null for none."""
    text_features: Size | None = None
    """Channels of a text encoder's features, which are then read instead of text ids; null: the text is ids."""
    text_head: bool = True
    """Also predict the text tokens."""
    head_norm: bool = False
    """Apply a second norm after the transformer's final norm."""
    head_bias: bool = True
    """Use biases in the output heads."""
    shift_tokens: bool = False
    """Replace some channels of each token by its neighbors' (`TokenShift` of `dalle.kernels.kv_cache`)."""

    def __post_init__(self) -> None:
        sizes = {
            "text_vocab": self.text_vocab,
            "text_length": self.text_length,
            "image_vocab": self.image_vocab,
            "grid": self.grid,
            "width": self.transformer.width,
        }
        tokens = self.prefix_length + self.image_length
        numbers = (self.text_embeddings + 2 * self.image_vocab + tokens) * self.transformer.width + tokens**2
        check_total(numbers, ", ".join(f"{name} {size}" for name, size in sizes.items()))
        if not self.attention:
            raise ValueError("attention is empty; give at least one of full, row, column, conv")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}; it must be odd")
        if self.positions == "rope" and self.transformer.head_width % 4:
            raise ValueError(
                f"positions: rope needs a head width that is a multiple of 4, not {self.transformer.head_width}"
            )
        if self.stored_masks and len(self.stored_masks) != self.transformer.depth:
            raise ValueError(f"stored_masks has {len(self.stored_masks)} layers, but depth is {self.transformer.depth}")
        if self.pad_id >= self.text_vocab:
            raise ValueError(f"pad_id is {self.pad_id}; it must be below text_vocab, {self.text_vocab}")
        if self.text_features is not None and self.text_head:
            raise ValueError("text_features needs text_head: false, as features cannot be predicted as tokens")
        if self.shift_tokens and self.transformer.width % 4:
            raise ValueError(f"shift_tokens needs a width that is a multiple of 4, not {self.transformer.width}")

    @property
    def image_length(self) -> int:
        """Number of image tokens in every sequence, N."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix_length(self) -> int:
        """Number of tokens before the image in every sequence, P."""
        return self.text_length + (self.begin_id is not None)

    @property
    def text_embeddings(self) -> int:
        """Size of the text embedding: the vocabulary, and with positional padding one padding token per position."""
        return self.text_vocab + (self.text_length if self.padding == "positional" else 0)

    @property
    def kinds(self) -> list[Kind]:
        """The kind of attention of each layer."""
        depth = self.transformer.depth
        kinds = [self.attention[layer % len(self.attention)] for layer in range(depth)]
        if self.last_attention is not None:
            kinds[-1] = self.last_attention
        return kinds


class DALLE(nn.Module):
    """The transformer of Ramesh et al. 2021 (arXiv 2102.12092), section 2.2 and appendix B.1.

    The sequence is [text 0 .. T-1][image 0 .. N-1]; the last image token is never an input, as nothing follows it. The
    output at a text token predicts the next text token, the output at the last text token predicts the first image
    token, and the output at an image token predicts the next image token. Where a caption has no token (id 0), each
    position has its own padding token, whose id is `text_vocab + position`. Text and image have separate embeddings and
    output heads.

    Checkpoints of other projects load into this class too; the config's options cover how they differ.
    """

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.transformer.width
        if config.text_features is None:
            self.text_embedding: nn.Module = nn.Embedding(config.text_embeddings, width)
        else:
            self.text_embedding = FeatureEmbedding(config.text_features, config.text_length, width)
        self.image_embedding = nn.Embedding(config.image_vocab, width)
        self._add_positions_and_masks(config)
        self.transformer = Transformer(config.transformer)
        self.head_norm = norm(config.transformer) if config.head_norm else nn.Identity()
        self.text_head = Linear(width, config.text_embeddings, bias=config.head_bias) if config.text_head else None
        self.image_head = Linear(width, config.image_vocab, bias=config.head_bias)
        self._initialize()

    def _add_positions_and_masks(self, config: DALLEConfig) -> None:
        """Create whatever depends on a token's position: embeddings or rotary tables, masks, sparse patterns."""
        prefix, width, (rows, columns) = config.prefix_length, config.transformer.width, config.grid
        inputs = prefix + config.image_length - 1  # the last image token is never an input
        # By kind of attention, or by index of a stored mask that equals such a kind: what sparse kernels need to know
        self.patterns: dict[Kind | int, Pattern] = {}
        self.shift = TokenShift(prefix, rows, columns) if config.shift_tokens else None
        if config.positions in ("learned", "learned_cells"):
            self.text_position = nn.Parameter(torch.empty(prefix, width))
        if config.positions == "learned":
            self.row_position = nn.Parameter(torch.empty(rows, 1, width))
            self.column_position = nn.Parameter(torch.empty(1, columns, width))
        elif config.positions == "learned_cells":
            self.cell_position = nn.Parameter(torch.empty(rows * columns, width))
        else:
            cos, sin = rope_table(prefix, rows, columns, config.transformer.head_width)
            stored = config.positions == "stored_rope"
            self.register_buffer("rope_cos", cos[:inputs], persistent=stored)
            self.register_buffer("rope_sin", sin[:inputs], persistent=stored)
        if config.stored_masks:
            count = max(config.stored_masks) + 1
            # Placeholders with the right shape: loading overwrites them
            self.register_buffer("masks", torch.ones(count, inputs, inputs, dtype=torch.bool).tril())
            return
        for kind in sorted(set(config.kinds) - {"full"}):
            allowed = mask(kind, prefix, rows, columns, config.conv_kernel)
            self.register_buffer(f"{kind}_mask", allowed, persistent=False)
            self._register_pattern(kind, Pattern(kind, prefix, columns, config.conv_kernel))

    def _register_pattern(self, kind: Kind | int, pattern: Pattern) -> None:
        """Make sparse kernels available for an attention kind, or for one of the stored masks."""
        self.patterns[kind] = pattern
        keys = pattern.keys(self.config.prefix_length + self.config.image_length - 1)
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

    def _initialize(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("transformer.") or "norm" in name:  # these initialize themselves
                continue
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            else:
                # Positions start smaller than tokens, as in GPT-2's code
                nn.init.normal_(parameter, std=0.01 if name.endswith("_position") else 0.02)

    def forward(self, text: Tensor, image_ids: Tensor) -> Tensor:
        """Compute the logits of the image tokens.

        Args:
            text: int [B, <= T], ids in [0, text_vocab), `pad_id` = padding; shorter texts are padded on the right. For
                models with `text_features` float [B, <= T, F], padded on the left; all-zero rows = padding.
            image_ids: int [B, n], n <= N, codes in [0, V), raster order.

        Returns:
            [B, min(n + 1, N), V]; `logits[:, i]` predicts image token i from the text and the image tokens before it.

        Raises:
            IndexError: an id of the text or the image is out of range (checked on a CPU only).
            ValueError: more text or image tokens than the model has positions.
        """
        hidden = self._hidden(self._prefix(text), image_ids)
        return self.image_head(hidden[:, self.config.prefix_length - 1 :])

    def losses(
        self,
        text: Tensor,
        image_ids: Tensor,
        z_weight: float = 0.0,
        accuracy: bool = False,
        *,
        smoothing: float = 0.0,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mean cross-entropy per token, in nats, in float32; computed in chunks, never with all logits in memory.

        The paper weights text by 1/8 and image by 7/8. Padding counts as text, as its tokens depend on the position.

        Args:
            text: int [B, <= T], as in `forward`.
            image_ids: int [B, N].
            z_weight: weight of the z-loss, log² Z, added to each token's cross-entropy (`dalle.kernels.cross_entropy`).
            accuracy: also return how often the argmax of the image logits is the target.
            smoothing: label smoothing of the image targets (`dalle.kernels.cross_entropy`).
            input_ids: int [B, N], what the model reads instead of `image_ids`, which remain the targets.

        Returns:
            Scalars. "text": over the T - 1 text tokens that have a predecessor (0 for models without a text head);
            "image": over the N image tokens. With z_weight or smoothing also "text_nats" and "image_nats", the plain
            cross-entropy; with z_weight "text_z" and "image_z", the means of log² Z; with `accuracy` "image_accuracy",
            a share. Only the first two carry gradients.
        """
        prefix = self._prefix(text)
        hidden = self._hidden(prefix, image_ids if input_ids is None else input_ids)
        image, text_part = self._heads(hidden, prefix, image_ids)
        results = {"text": hidden.new_zeros((), dtype=torch.float32)}
        for name, part in (("text", text_part), ("image", image)):
            if part is not None:
                is_image = name == "image"
                scores = mean_loss(
                    *part, z_weight, smoothing=smoothing if is_image else 0.0, accuracy=accuracy and is_image
                )
                results[name] = scores.loss
                if z_weight or smoothing:
                    results[name + "_nats"] = scores.nats
                if z_weight:
                    results[name + "_z"] = scores.z
                if scores.accuracy is not None:
                    results[name + "_accuracy"] = scores.accuracy
        return results

    def token_losses(self, text: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each token, in nats, in float32.

        Returns:
            [B, T - 1] for the text from its second token on (with `begin_id` [B, T], without text head [B, 0]); [B, N].
        """
        text_nats, image_nats, _ = self.token_losses_and_predictions(text, image_ids)
        return text_nats, image_nats

    def token_losses_and_predictions(self, text: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`token_losses`, and the argmax of the logits at each image token, int64 [B, N]."""
        prefix = self._prefix(text)
        image, text_part = self._heads(self._hidden(prefix, image_ids), prefix, image_ids)
        scores = token_scores(*image)
        image_nats, predictions = scores.nats.view_as(image_ids), scores.argmax.view_as(image_ids)
        if text_part is None:
            return image_nats.new_zeros(len(prefix), 0), image_nats, predictions
        return token_scores(*text_part).nats.view(len(prefix), -1), image_nats, predictions

    def _heads(
        self, hidden: Tensor, prefix: Tensor, image_ids: Tensor
    ) -> tuple[tuple[nn.Module, Tensor, Tensor], tuple[nn.Module, Tensor, Tensor] | None]:
        """For image and text: the head, its input states [M, C], and the targets [M]; None without a text head."""
        last = self.config.prefix_length - 1  # the output here predicts the first image token
        image = self.image_head, hidden[:, last:].flatten(0, 1), image_ids.flatten()
        if self.text_head is None or not last:
            return image, None
        return image, (self.text_head, hidden[:, :last].flatten(0, 1), prefix[:, 1:].flatten())

    def null_text(self, text: Tensor) -> Tensor:
        """The null captions for classifier-free guidance that correspond to these texts, in the same shape."""
        if isinstance(self.text_embedding, FeatureEmbedding):
            # Zero rows are padding, in the null caption too
            return self.text_embedding.null[-text.shape[1] :].to(text.dtype) * text.any(-1, keepdim=True)
        return torch.full_like(text, self.config.pad_id)

    def prefill(self, text: Tensor) -> tuple[Tensor, KVCache]:
        """Run the text through the transformer.

        Args:
            text: [B, <= T] or [B, <= T, C], as in `forward`.

        Returns:
            Logits of image token 0, [B, V], and a cache that holds the text's tokens and has room for nothing else.
        """
        prefix = self._prefix(text)
        length = self.config.prefix_length
        cache = self.transformer.new_cache(len(prefix), length, shifted=self.shift is not None)
        cache.padding = self._padding(prefix)
        hidden = self._run(self._embed_text(prefix), cache, cache.padding)
        return self.image_head(hidden[:, -1]), cache

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for whole sequences: the text and all image tokens except the last."""
        length = self.config.prefix_length + self.config.image_length - 1
        return self.transformer.new_cache(batch, length, shifted=self.shift is not None)

    def extend(self, image_ids: Tensor, cache: KVCache, blocks: RunBlocks | None = None) -> Tensor:
        """Append image tokens to the cache.

        Args:
            image_ids: int [B, n], the next n >= 1 image tokens.
            cache: holds the text and the image tokens before them; these are appended.
            blocks: runs the transformer's blocks, as in `Transformer.forward`.

        Returns:
            Logits of the image token after the last one, [B, V].
        """
        return self.image_head(self._extended(image_ids, cache, blocks)[:, -1])

    def extend_each(self, image_ids: Tensor, cache: KVCache, blocks: RunBlocks | None = None) -> Tensor:
        """Like `extend`, but return the logits after each of the new tokens, [B, n, V]."""
        return self.image_head(self._extended(image_ids, cache, blocks))

    def _extended(self, image_ids: Tensor, cache: KVCache, blocks: RunBlocks | None) -> Tensor:
        """Final states [B, n, C] of image tokens that are appended to the cache."""
        check_ids(image_ids, self.config.image_vocab, "image codes")
        x = self._embed_image(image_ids, cache.next_positions(image_ids.shape[1]))
        return self._run(x, cache, cache.padding, blocks)

    def _prefix(self, text: Tensor) -> Tensor:
        """The tokens before the image: ids [B, P] with padding replaced per position, or features [B, P, F]."""
        length = self.config.text_length
        if text.shape[1] > length:
            raise ValueError(f"the text has {text.shape[1]} tokens, but the model only {length} text positions: cut it")
        if self.config.text_features is not None:
            if text.shape[2:] != (self.config.text_features,):
                raise ValueError(
                    f"the text is {list(text.shape)}; this model takes features [B, T, {self.config.text_features}]"
                )
            # The features end right before the image, so padding comes first, as in LlamaGen
            return F.pad(text, (0, 0, length - text.shape[1], 0))
        check_ids(text, self.config.text_vocab, "text ids")
        text = F.pad(text, (0, length - text.shape[1]), value=self.config.pad_id)
        if self.config.padding == "positional":
            # Ids from text_vocab on, which no tokenizer produces
            own = torch.arange(self.config.text_vocab, self.config.text_vocab + length, device=text.device)
            text = torch.where(text == self.config.pad_id, own, text)
        return text if self.config.begin_id is None else F.pad(text, (1, 0), value=self.config.begin_id)

    def _padding(self, prefix: Tensor) -> Tensor | None:
        """Which prefix tokens must not be attended to, bool [B, P]; None: all may, as padding ids are real tokens."""
        return None if self.config.text_features is None else ~prefix.any(-1)

    def _hidden(self, prefix: Tensor, image_ids: Tensor) -> Tensor:
        """Final states of the prefix and of all but the last of N image tokens, [B, P + n, C]."""
        count = self.config.image_length
        if image_ids.shape[1] > count:
            raise ValueError(
                f"the image has {image_ids.shape[1]} tokens, but the model only {count} image positions: check the grid"
            )
        check_ids(image_ids, self.config.image_vocab, "image codes")
        inputs, start = image_ids[:, : count - 1], self.config.prefix_length
        image = self._embed_image(inputs, Positions(start, start + inputs.shape[1]))
        return self._run(torch.cat((self._embed_text(prefix), image), dim=1), None, self._padding(prefix))

    def _embed_text(self, prefix: Tensor) -> Tensor:
        x = self.text_embedding(prefix)  # [B, P, C]
        return x + self.text_position if self.config.positions.startswith("learned") else x

    def _embed_image(self, image_ids: Tensor, positions: Positions) -> Tensor:
        x = self.image_embedding(image_ids)  # [B, n, C]
        if self.config.positions == "learned":
            return x + positions.cell_embeddings(self.row_position, self.column_position, self.config.prefix_length)
        if self.config.positions == "learned_cells":
            return x + positions.rows(self.cell_position, self.config.prefix_length)
        return x

    def _run(self, x: Tensor, cache: KVCache | None, padding: Tensor | None, blocks: RunBlocks | None = None) -> Tensor:
        """Run the transformer over embedded tokens that follow those in the cache."""
        positions = Positions(0, x.shape[1]) if cache is None else cache.next_positions(x.shape[1])
        rope: Rope | None = None
        if self.config.positions.endswith("rope"):
            rope = positions.rows(self.get_buffer("rope_cos")), positions.rows(self.get_buffer("rope_sin"))
        # Dropout on embeddings, as in GPT-2
        x = F.dropout(x, self.config.transformer.dropout, self.training)
        masks = self._masks(positions, padding)
        return self.head_norm(self.transformer(x, masks, rope=rope, shift=self.shift, cache=cache, blocks=blocks))

    def _masks(self, positions: Positions, padding: Tensor | None) -> list[LayerMask]:
        """Each layer's mask, for the queries at these positions and the keys up to the last of them."""
        kinds = self.config.stored_masks or self.config.kinds
        if padding is None:
            masks = {kind: self._mask(kind, positions) for kind in set(kinds)}
            return [masks[kind] for kind in kinds]
        # Padding depends on the row, so masks are dense [B, 1, T, S]. A padding token attends to itself: with nothing
        # to attend to, softmax would give nan, and although nothing reads its state, 0 * nan would spread.
        distance = positions.relative_distance(padding.device)
        length = max(0, positions.end - padding.shape[1])
        valid = F.pad(~padding[:, : positions.end], (0, length), value=True)[:, None, None]
        dense = {kind: self._dense(kind, positions) for kind in set(kinds)}
        padded = {
            kind: (one if isinstance(one, Tensor) else distance >= 0) & valid | (distance == 0)
            for kind, one in dense.items()
        }
        return [padded[kind] for kind in kinds]

    def _mask(self, kind: Kind | int, positions: Positions) -> LayerMask:
        """The mask of one attention kind, or one of the stored masks, without padding."""
        pattern = self.patterns.get(kind)
        if pattern is None:
            return self._dense(kind, positions)
        if positions.on_device:  # a slice would need the position on the host: gather the query's keys instead
            keys = positions.rows(self.get_buffer(f"{kind}_keys"))[0]
            return GatheredKeys(keys.clamp(min=0), keys >= 0)
        if positions.end <= pattern.text:  # text alone is causal in every pattern
            return positions.causal
        return SparseMask(pattern, positions.mask_block(self._table(kind)))

    def _dense(self, kind: Kind | int, positions: Positions) -> Mask:
        """The same, without sparse kernels."""
        return positions.causal if kind in ("full", -1) else positions.mask_block(self._table(kind))

    def _table(self, kind: Kind | int) -> Tensor:
        return self.get_buffer("masks")[kind] if isinstance(kind, int) else self.get_buffer(f"{kind}_mask")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DALLE:
        """Move or cast the module, but keep the rotary tables in float32: 16 bits are too coarse for angles."""
        # Taken out before super() casts everything, and put back afterward
        angles = {name: table for name, table in self._buffers.items() if name.startswith("rope_")}
        super()._apply(fn, recurse)
        for name, table in angles.items():
            assert table is not None
            self._buffers[name] = table.to(self.image_head.weight.device)
        if self.shift is not None:
            self.shift.sources = self.shift.sources.to(self.image_head.weight.device)
        return self


class FeatureEmbedding(nn.Module):
    """Projects a text encoder's features [B, T, F] to the transformer's width, as LlamaGen does (arXiv 2406.06525)."""

    null: Tensor

    def __init__(self, features: int, length: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(features, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        self.register_buffer("null", torch.randn(length, features) * features**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, F] to [B, T, C]."""
        x = self.up(features.to(self.up.weight.dtype))
        return self.down(F.gelu(x, approximate="tanh"))


def parameter_count(config: DALLEConfig) -> int:
    """Number of parameters of the model, counted without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DALLE(config).parameters())
