"""DALL-E: one decoder-only transformer over a caption's tokens and then an image's. Token ids in, logits out.

Letters: B batch, T text length, N = h * w image tokens, C width, V image vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.kernels.attention import rope_table
from dalle.kernels.block_weights import Rope
from dalle.kernels.cross_entropy import mean_loss, token_scores
from dalle.kernels.ids import check_ids
from dalle.kernels.kv_cache import KVCache, Positions, TokenShift
from dalle.kernels.linear import Linear
from dalle.kernels.masks import Kind, Mask, mask
from dalle.kernels.pattern import GatheredKeys, LayerMask, Pattern, SparseMask
from dalle.models.transformer import Blocks, Transformer, TransformerConfig, norm
from dalle.ranges import NonNegativeInt, Range, Size


@config
class DALLEConfig:
    transformer: TransformerConfig = TransformerConfig()
    """Shape of the transformer."""
    text_vocab: Size = 4096
    """Ids of the text tokenizer."""
    text_length: Size = 32
    """Text tokens in every sequence."""
    image_vocab: Size = 1024
    """Codes of the image tokenizer."""
    grid: tuple[Size, Size] = (8, 8)
    """Rows and columns of image tokens."""
    attention: tuple[Kind, ...] = ("full",)
    """Kinds of attention, repeated over the layers from the first."""
    last_attention: Kind | None = None
    """Kind of the last layer, where it is another."""
    conv_kernel: Annotated[int, Range(1, ceiling=2**16)] = 11
    """Side of the window of "conv" attention, odd."""
    positions: Literal["learned", "learned_cells", "rope", "stored_rope"] = "learned"
    """Learned embeddings (text 1-D; image row + column, or one for each cell), or rotary in two dimensions, by the
    model's own table or by one that comes with the weights."""
    stored_masks: tuple[Annotated[int, Range(-1, ceiling=2**16)], ...] = ()
    """For each layer which of the masks that come with the weights it has, -1 for full; empty: `attention` says it."""
    pad_id: NonNegativeInt = 0
    """Text id that stands for "no token here"."""
    padding: Literal["positional", "word"] = "positional"
    """Each position has a padding word of its own behind the text vocabulary, or pad_id is a word as any other."""
    begin_id: NonNegativeInt | None = None
    """Text id put in front of every text; null for none."""
    text_features: Size | None = None
    """Channels of the features that a text encoder gives in place of text ids; null: the text is ids."""
    text_head: bool = True
    """Predict text too."""
    head_norm: bool = False
    """Normalise once more, after the transformer's own last norm."""
    head_bias: bool = True
    """The output layers have biases."""
    shift_tokens: bool = False
    """Mix each token's channels with those of its neighbours, as in DALLE-pytorch."""

    def __post_init__(self) -> None:
        sizes = {
            "text_vocab": self.text_vocab,
            "text_length": self.text_length,
            "image_vocab": self.image_vocab,
            "grid": self.grid,
            "width": self.transformer.width,
        }
        tokens = self.prefix_length + self.image_length
        numbers = (self.words + 2 * self.image_vocab + tokens) * self.transformer.width + tokens**2
        check_total(numbers, ", ".join(f"{name} {size}" for name, size in sizes.items()))
        if not self.attention:
            raise ValueError("attention is empty; name at least one of full, row, column, conv")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}; it must be odd")
        if self.positions == "rope" and self.transformer.head_width % 4:
            raise ValueError(f"positions rope needs a head width that 4 divides, not {self.transformer.head_width}")
        if self.stored_masks and len(self.stored_masks) != self.transformer.depth:
            raise ValueError(f"stored_masks has {len(self.stored_masks)} layers, depth is {self.transformer.depth}")
        if self.pad_id >= self.text_vocab:
            raise ValueError(f"pad_id is {self.pad_id}; it must be below text_vocab, {self.text_vocab}")
        if self.text_features is not None and self.text_head:
            raise ValueError("text_features goes with text_head: false; features are not predicted")
        if self.shift_tokens and self.transformer.width % 4:
            raise ValueError(f"shift_tokens needs a width that 4 divides, not {self.transformer.width}")

    @property
    def image_length(self) -> int:
        """Image tokens in every sequence."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix_length(self) -> int:
        """Tokens of every sequence ahead of the image."""
        return self.text_length + (self.begin_id is not None)

    @property
    def words(self) -> int:
        """Words of the text, padding among them."""
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

    The sequence is [text 0 .. T-1][image 0 .. N-1], the last image token never being an input. The output at a text
    token predicts the next text token; that at the last text token the first image token; that at an image token the
    next image token. Where the text has no token (id 0), each position has a padding token of its own, a word of the
    text vocabulary with the id `text_vocab + position`. Text and image have separate embeddings and output layers.

    Models that others have published are of this class too; the options of the config say what is otherwise in them.
    """

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.transformer.width
        if config.text_features is None:
            self.text_embedding: nn.Module = nn.Embedding(config.words, width)
        else:
            self.text_embedding = FeatureEmbedding(config.text_features, config.text_length, width)
        self.image_embedding = nn.Embedding(config.image_vocab, width)
        self._place(config)
        self.transformer = Transformer(config.transformer)
        self.head_norm = norm(config.transformer) if config.head_norm else nn.Identity()
        self.text_head = Linear(width, config.words, bias=config.head_bias) if config.text_head else None
        self.image_head = Linear(width, config.image_vocab, bias=config.head_bias)
        self._initialise()

    def _place(self, config: DALLEConfig) -> None:
        """Make what depends on where a token stands: positions and masks."""
        prefix, width, (rows, columns) = config.prefix_length, config.transformer.width, config.grid
        inputs = prefix + config.image_length - 1
        self.patterns: dict[Kind | int, Pattern] = {}  # of the sparse kinds; of stored masks of those that are known
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
            self.register_buffer("masks", torch.ones(count, inputs, inputs, dtype=torch.bool).tril())
            return
        for kind in sorted(set(config.kinds) - {"full"}):
            allowed = mask(kind, prefix, rows, columns, config.conv_kernel)
            self.register_buffer(f"{kind}_mask", allowed, persistent=False)
            self._know(kind, Pattern(kind, prefix, columns, config.conv_kernel))

    def _know(self, kind: Kind | int, pattern: Pattern) -> None:
        """Have fast ways to a kind, or to one of the stored masks."""
        self.patterns[kind] = pattern
        keys = pattern.keys(self.config.prefix_length + self.config.image_length - 1)
        self.register_buffer(f"{kind}_keys", keys.to(next(self.buffers()).device), persistent=False)

    def recognise(self) -> None:
        """Find out which of the stored masks are of a kind that there are fast ways for; where they came, once."""
        if not self.config.stored_masks:
            return
        prefix, columns = self.config.prefix_length, self.config.grid[1]
        kinds: tuple[Kind, ...] = ("row", "column", "conv")
        texts = (prefix, self.config.text_length)  # ruDALL-E's of v2 do not count the token in front of the text
        known = [Pattern(kind, text, columns, self.config.conv_kernel) for kind in kinds for text in texts]
        for index, table in enumerate(self.get_buffer("masks").cpu()):
            for pattern in known:
                if torch.equal(table, pattern.mask(len(table))):
                    self._know(index, pattern)

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("transformer.") or "norm" in name:
                continue
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.01 if name.endswith("_position") else 0.02)

    def forward(self, text: Tensor, image_ids: Tensor) -> Tensor:
        """Logits of the image tokens.

        Args:
            text: int [B, <= T], ids in [0, text_vocab), `pad_id` = padding; shorter than T is padded at the right. For
                models with `text_features` float [B, <= T, C], shorter is padded at the left; all-zero = padding.
            image_ids: int [B, n], n <= N, ids in [0, V), raster order.

        Returns:
            [B, min(n + 1, N), V]; `logits[:, i]` predicts image token i from the text and the image tokens before it.

        Raises:
            IndexError: on a CPU, an id of the text or the image is out of range.
            ValueError: the text or the image has more tokens than the model has positions.
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
        read_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mean cross-entropy per token, in nats, in float32; the logits are never there all at once.

        The paper weighs text 1/8 and image 7/8. Padding counts as text, as each position has its own padding token.

        Args:
            text: int [B, <= T], as in `forward`.
            image_ids: int [B, N].
            z_weight: weight of log² Z, which is added to each token's cross-entropy (`dalle.kernels.cross_entropy`).
            accuracy: count how often the likeliest image token is the right one.
            smoothing: share of each image target that is spread evenly over the codes (`dalle.kernels.cross_entropy`).
            read_ids: int [B, N], what the model reads in place of `image_ids`, which remain the targets.

        Returns:
            "text": over the T - 1 text tokens that follow another (0 of models without a text head); "image": over the
            N image tokens. With a z_weight or smoothing also "text_nats" and "image_nats", the cross-entropy alone, and
            with a z_weight "text_z" and "image_z", means of log² Z; with `accuracy` "image_accuracy", a share. All but
            the first two are without gradient. Scalars.
        """
        prefix = self._prefix(text)
        hidden = self._hidden(prefix, image_ids if read_ids is None else read_ids)
        image, words = self._heads(hidden, prefix, image_ids)
        found = {"text": hidden.new_zeros((), dtype=torch.float32)}
        for name, part in (("text", words), ("image", image)):
            if part is not None:
                of_image = name == "image"
                made = mean_loss(*part, z_weight, smoothing=smoothing if of_image else 0.0, hits=accuracy and of_image)
                found[name] = made.loss
                if z_weight or smoothing:
                    found[name + "_nats"] = made.nats
                if z_weight:
                    found[name + "_z"] = made.z
                if made.hits is not None:
                    found[name + "_accuracy"] = made.hits
        return found

    def token_losses(self, text: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each token, in nats, in float32.

        Returns:
            [B, T - 1] of the text from its second token on (with `begin_id` [B, T], without text head [B, 0]); [B, N].
        """
        of_text, of_image, _ = self.token_losses_and_likeliest(text, image_ids)
        return of_text, of_image

    def token_losses_and_likeliest(self, text: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`token_losses`, and what the model finds likeliest in place of each image token: int64 [B, N]."""
        prefix = self._prefix(text)
        image, words = self._heads(self._hidden(prefix, image_ids), prefix, image_ids)
        scores = token_scores(*image)
        of_image, likeliest = scores.nats.view_as(image_ids), scores.likeliest.view_as(image_ids)
        if words is None:
            return of_image.new_zeros(len(prefix), 0), of_image, likeliest
        return token_scores(*words).nats.view(len(prefix), -1), of_image, likeliest

    def _heads(
        self, hidden: Tensor, prefix: Tensor, image_ids: Tensor
    ) -> tuple[tuple[nn.Module, Tensor, Tensor], tuple[nn.Module, Tensor, Tensor] | None]:
        """Of image and text: the head, the states that it reads [M, C], and what should follow [M]."""
        last = self.config.prefix_length - 1
        image = self.image_head, hidden[:, last:].flatten(0, 1), image_ids.flatten()
        if self.text_head is None or not last:
            return image, None
        return image, (self.text_head, hidden[:, :last].flatten(0, 1), prefix[:, 1:].flatten())

    def null_text(self, text: Tensor) -> Tensor:
        """The null caption that stands against each of these texts in classifier-free guidance, in their shape."""
        if isinstance(self.text_embedding, FeatureEmbedding):
            return self.text_embedding.null[-text.shape[1] :].to(text.dtype) * text.any(-1, keepdim=True)
        return torch.full_like(text, self.config.pad_id)

    def prefill(self, text: Tensor) -> tuple[Tensor, KVCache]:
        """Run the text alone.

        Args:
            text: [B, <= T] or [B, <= T, C], as in `forward`.

        Returns:
            Logits of image token 0, [B, V], and a cache that holds the text's tokens and has room for no more.
        """
        prefix = self._prefix(text)
        length = self.config.prefix_length
        cache = self.transformer.new_cache(len(prefix), length, shifted=self.shift is not None)
        cache.padding = self._padding(prefix)
        hidden = self._run(self._embed_text(prefix), cache, cache.padding)
        return self.image_head(hidden[:, -1]), cache

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for whole sequences: the text and all image tokens but the last."""
        length = self.config.prefix_length + self.config.image_length - 1
        return self.transformer.new_cache(batch, length, shifted=self.shift is not None)

    def extend(self, image_ids: Tensor, cache: KVCache, blocks: Blocks | None = None) -> Tensor:
        """Add image tokens to what the cache holds.

        Args:
            image_ids: int [B, n], the n >= 1 image tokens that come next.
            cache: holds the text and the image tokens before them; these are added.
            blocks: what runs the transformer's blocks, as in `Transformer.forward`.

        Returns:
            Logits of the image token after the last, [B, V].
        """
        return self.image_head(self._extended(image_ids, cache, blocks)[:, -1])

    def extend_each(self, image_ids: Tensor, cache: KVCache, blocks: Blocks | None = None) -> Tensor:
        """As `extend`, with the logits that follow each of the new tokens, [B, n, V]."""
        return self.image_head(self._extended(image_ids, cache, blocks))

    def _extended(self, image_ids: Tensor, cache: KVCache, blocks: Blocks | None) -> Tensor:
        """Final states [B, n, C] of image tokens that are added to the cache."""
        check_ids(image_ids, self.config.image_vocab, "image codes")
        x = self._embed_image(image_ids, cache.place(image_ids.shape[1]))
        return self._run(x, cache, cache.padding, blocks)

    def _prefix(self, text: Tensor) -> Tensor:
        """What stands ahead of the image: words [B, P] in which each position has its own padding, or features."""
        length = self.config.text_length
        if text.shape[1] > length:
            raise ValueError(f"the text has {text.shape[1]} tokens and the model {length} text positions; cut it")
        if self.config.text_features is not None:
            if text.shape[2:] != (self.config.text_features,):
                raise ValueError(
                    f"the text is {list(text.shape)}; this model reads features [B, T, {self.config.text_features}]"
                )
            return F.pad(text, (0, 0, length - text.shape[1], 0))
        check_ids(text, self.config.text_vocab, "text ids")
        text = F.pad(text, (0, length - text.shape[1]), value=self.config.pad_id)
        if self.config.padding == "positional":
            own = torch.arange(self.config.text_vocab, self.config.text_vocab + length, device=text.device)
            text = torch.where(text == self.config.pad_id, own, text)
        return text if self.config.begin_id is None else F.pad(text, (1, 0), value=self.config.begin_id)

    def _padding(self, prefix: Tensor) -> Tensor | None:
        """Which of a prefix is not looked at, bool [B, P]; None: all is. Padding words are looked at."""
        return None if self.config.text_features is None else ~prefix.any(-1)

    def _hidden(self, prefix: Tensor, image_ids: Tensor) -> Tensor:
        """Final states of the prefix and of all but the last of N image tokens."""
        count = self.config.image_length
        if image_ids.shape[1] > count:
            raise ValueError(f"the image has {image_ids.shape[1]} tokens and the model {count} image positions")
        check_ids(image_ids, self.config.image_vocab, "image codes")
        inputs, start = image_ids[:, : count - 1], self.config.prefix_length
        image = self._embed_image(inputs, Positions(start, start + inputs.shape[1]))
        return self._run(torch.cat((self._embed_text(prefix), image), dim=1), None, self._padding(prefix))

    def _embed_text(self, prefix: Tensor) -> Tensor:
        x = self.text_embedding(prefix)  # [B, P, C]
        return x + self.text_position if self.config.positions.startswith("learned") else x

    def _embed_image(self, image_ids: Tensor, place: Positions) -> Tensor:
        x = self.image_embedding(image_ids)  # [B, n, C]
        if self.config.positions == "learned":
            return x + place.cells(self.row_position, self.column_position, self.config.prefix_length)
        if self.config.positions == "learned_cells":
            return x + place.rows(self.cell_position, self.config.prefix_length)
        return x

    def _run(self, x: Tensor, cache: KVCache | None, padding: Tensor | None, blocks: Blocks | None = None) -> Tensor:
        """The transformer over embedded tokens that follow those in the cache."""
        place = Positions(0, x.shape[1]) if cache is None else cache.place(x.shape[1])
        rope: Rope | None = None
        if self.config.positions.endswith("rope"):
            rope = place.rows(self.get_buffer("rope_cos")), place.rows(self.get_buffer("rope_sin"))
        x = F.dropout(x, self.config.transformer.dropout, self.training)
        masks = self._masks(place, padding)
        return self.head_norm(self.transformer(x, masks, rope=rope, shift=self.shift, cache=cache, blocks=blocks))

    def _masks(self, place: Positions, padding: Tensor | None) -> list[LayerMask]:
        """For each layer, which of the tokens up to them those in this place may look at."""
        kinds = self.config.stored_masks or self.config.kinds
        if padding is None:
            masks = {kind: self._mask(kind, place) for kind in set(kinds)}
            return [masks[kind] for kind in kinds]
        # A padding token sees itself, so that its own state, which nothing reads, is a number.
        back = place.back(padding.device)
        real = F.pad(~padding[:, : place.end], (0, max(0, place.end - padding.shape[1])), value=True)[:, None, None]
        dense = {kind: self._dense(kind, place) for kind in set(kinds)}
        padded = {
            kind: (one if isinstance(one, Tensor) else back >= 0) & real | (back == 0) for kind, one in dense.items()
        }
        return [padded[kind] for kind in kinds]

    def _mask(self, kind: Kind | int, place: Positions) -> LayerMask:
        """`_masks` of one kind, or of one of the stored masks, without padding."""
        pattern = self.patterns.get(kind)
        if pattern is None:
            return self._dense(kind, place)
        if place.moves:
            keys = place.rows(self.get_buffer(f"{kind}_keys"))[0]
            return GatheredKeys(keys.clamp(min=0), keys >= 0)
        return place.causal if place.end <= pattern.text else SparseMask(pattern, place.square(self._table(kind)))

    def _dense(self, kind: Kind | int, place: Positions) -> Mask:
        """The same as a table."""
        return place.causal if kind in ("full", -1) else place.square(self._table(kind))

    def _table(self, kind: Kind | int) -> Tensor:
        return self.get_buffer("masks")[kind] if isinstance(kind, int) else self.get_buffer(f"{kind}_mask")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DALLE:
        """Move or cast the module; angles stay in float32, whatever the type of the weights."""
        angles = {name: table for name, table in self._buffers.items() if name.startswith("rope_")}
        super()._apply(fn, recurse)
        for name, table in angles.items():
            assert table is not None
            self._buffers[name] = table.to(self.image_head.weight.device)
        if self.shift is not None:
            self.shift.sources = self.shift.sources.to(self.image_head.weight.device)
        return self


class FeatureEmbedding(nn.Module):
    """Features of a text encoder [B, T, F] to the width of the transformer, as in LlamaGen (arXiv 2406.06525)."""

    null: Tensor

    def __init__(self, features: int, length: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(features, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        self.register_buffer("null", torch.randn(length, features) * features**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        x = self.up(features.to(self.up.weight.dtype))
        return self.down(F.gelu(x, approximate="tanh"))


def parameter_count(config: DALLEConfig) -> int:
    """Parameters of the model, found without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DALLE(config).parameters())
