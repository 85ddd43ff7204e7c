"""DALL-E: one decoder-only transformer over a caption's tokens and then an image's. Token ids in, logits out.

Letters: B batch, T text length, N = h * w image tokens, C width, V image vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.attention import Kind, KVCache, Mask, mask, rope_table
from dalle.config import config
from dalle.transformer import Rope, Transformer, TransformerConfig

PAD = 0
"""The text id that stands for "no token here"."""


@config
class DALLEConfig:
    transformer: TransformerConfig = TransformerConfig()
    """Shape of the transformer."""
    text_vocab: int = 4096
    """Ids of the text tokenizer."""
    text_length: int = 32
    """Text tokens in every sequence."""
    image_vocab: int = 1024
    """Codes of the image tokenizer."""
    grid: tuple[int, int] = (8, 8)
    """Rows and columns of image tokens."""
    attention: tuple[Kind, ...] = ("full",)
    """Kinds of attention, repeated over the layers from the first."""
    last_attention: Kind | None = None
    """Kind of the last layer, where it is another."""
    conv_kernel: int = 11
    """Side of the window of "conv" attention, odd."""
    positions: Literal["learned", "rope"] = "learned"
    """Learned embeddings (text 1-D, image row + column) or rotary in two dimensions."""

    def __post_init__(self) -> None:
        sizes = {
            "text_vocab": self.text_vocab,
            "text_length": self.text_length,
            "image_vocab": self.image_vocab,
            "grid": min(self.grid),
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.attention:
            raise ValueError("attention is empty; name at least one of full, row, column, conv")
        if self.conv_kernel < 1 or self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}; it must be odd and at least 1")
        if self.positions == "rope" and self.transformer.head_width % 4:
            raise ValueError(f"positions rope needs a head width that 4 divides, not {self.transformer.head_width}")

    @property
    def image_length(self) -> int:
        """Image tokens in every sequence."""
        return self.grid[0] * self.grid[1]

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
    """

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__()
        self.config = config
        width, (rows, columns) = config.transformer.width, config.grid
        words = config.text_vocab + config.text_length
        self.text_embedding = nn.Embedding(words, width)
        self.image_embedding = nn.Embedding(config.image_vocab, width)
        if config.positions == "learned":
            self.text_position = nn.Parameter(torch.empty(config.text_length, width))
            self.row_position = nn.Parameter(torch.empty(rows, 1, width))
            self.column_position = nn.Parameter(torch.empty(1, columns, width))
        else:
            cos, sin = rope_table(config.text_length, rows, columns, config.transformer.head_width)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)
        self.transformer = Transformer(config.transformer)
        self.text_head = nn.Linear(width, words)
        self.image_head = nn.Linear(width, config.image_vocab)
        for kind in sorted(set(config.kinds) - {"full"}):
            allowed = mask(kind, config.text_length, rows, columns, config.conv_kernel)
            self.register_buffer(f"{kind}_mask", allowed, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for embedding in (self.text_embedding, self.image_embedding, self.text_head, self.image_head):
            nn.init.normal_(embedding.weight, std=0.02)
        for head in (self.text_head, self.image_head):
            nn.init.zeros_(head.bias)
        if self.config.positions == "learned":
            for position in (self.text_position, self.row_position, self.column_position):
                nn.init.normal_(position, std=0.01)

    def forward(self, text: Tensor, image_ids: Tensor) -> Tensor:
        """Logits of the image tokens.

        Args:
            text: int [B, <= T], ids in [0, text_vocab), 0 = padding; shorter than T is padded at the right.
            image_ids: int [B, n], n <= N, ids in [0, V), raster order.

        Returns:
            [B, min(n + 1, N), V]; `logits[:, i]` predicts image token i from the text and the image tokens before it.

        Raises:
            ValueError: the text or the image has more tokens than the model has positions.
        """
        hidden = self._hidden(self._words(text), image_ids)
        return self.image_head(hidden[:, self.config.text_length - 1 :])

    def losses(self, text: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        """Mean cross-entropy per token, in nats, in float32.

        The paper weighs text 1/8 and image 7/8. Padding counts as text, as each position has its own padding token.

        Args:
            text: int [B, <= T], as in `forward`.
            image_ids: int [B, N].

        Returns:
            "text": over the T - 1 text tokens that follow another; "image": over the N image tokens. Scalars.
        """
        of_text, of_image = self.token_losses(text, image_ids)
        return {"text": of_text.mean(), "image": of_image.mean()}

    def token_losses(self, text: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each token, in nats, in float32: [B, T - 1] of the text from its second on, [B, N]."""
        words = self._words(text)
        hidden = self._hidden(words, image_ids)
        last = self.config.text_length - 1
        text_logits = self.text_head(hidden[:, :last]).flatten(0, 1)
        image_logits = self.image_head(hidden[:, last:]).flatten(0, 1)
        of_text = F.cross_entropy(text_logits.float(), words[:, 1:].flatten(), reduction="none")
        of_image = F.cross_entropy(image_logits.float(), image_ids.flatten(), reduction="none")
        return of_text.view(len(words), last), of_image.view_as(image_ids)

    def prefill(self, text: Tensor) -> tuple[Tensor, KVCache]:
        """Run the text alone.

        Args:
            text: int [B, <= T], as in `forward`.

        Returns:
            Logits of image token 0, [B, V], and a cache that holds the T text tokens and has room for no more.
        """
        words = self._words(text)
        cache = self.transformer.new_cache(len(words), self.config.text_length)
        hidden = self._run(self._embed_text(words), cache)
        return self.image_head(hidden[:, -1]), cache

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for whole sequences: the text and all image tokens but the last."""
        return self.transformer.new_cache(batch, self.config.text_length + self.config.image_length - 1)

    def extend(self, image_ids: Tensor, cache: KVCache) -> Tensor:
        """Add image tokens to what the cache holds.

        Args:
            image_ids: int [B, n], the n >= 1 image tokens that come next.
            cache: holds the text and the image tokens before them; these are added.

        Returns:
            Logits of the image token after the last, [B, V].
        """
        start = cache.position - self.config.text_length
        hidden = self._run(self._embed_image(image_ids, start), cache)
        return self.image_head(hidden[:, -1])

    def _words(self, text: Tensor) -> Tensor:
        """Ids of the text vocabulary [B, T] in which each position has its own padding."""
        length = self.config.text_length
        if text.shape[1] > length:
            raise ValueError(f"the text has {text.shape[1]} tokens and the model {length} text positions; cut it")
        text = F.pad(text, (0, length - text.shape[1]), value=PAD)
        padding = torch.arange(self.config.text_vocab, self.config.text_vocab + length, device=text.device)
        return torch.where(text == PAD, padding, text)

    def _hidden(self, words: Tensor, image_ids: Tensor) -> Tensor:
        """Final states of the text and of all but the last of N image tokens."""
        count = self.config.image_length
        if image_ids.shape[1] > count:
            raise ValueError(f"the image has {image_ids.shape[1]} tokens and the model {count} image positions")
        x = torch.cat((self._embed_text(words), self._embed_image(image_ids[:, : count - 1], 0)), dim=1)
        return self._run(x, None)

    def _embed_text(self, words: Tensor) -> Tensor:
        x = self.text_embedding(words)  # [B, T, C]
        return x + self.text_position if self.config.positions == "learned" else x

    def _embed_image(self, image_ids: Tensor, start: int) -> Tensor:
        x = self.image_embedding(image_ids)  # [B, n, C]
        if self.config.positions == "learned":
            grid = (self.row_position + self.column_position).flatten(0, 1)  # [N, C]
            x = x + grid[start : start + image_ids.shape[1]]
        return x

    def _run(self, x: Tensor, cache: KVCache | None) -> Tensor:
        """The transformer over embedded tokens that follow those in the cache."""
        start = 0 if cache is None else cache.position
        end = start + x.shape[1]
        masks: list[Mask] = [
            "causal" if kind == "full" else self.get_buffer(f"{kind}_mask")[start:end, :end]
            for kind in self.config.kinds
        ]
        rope: Rope | None = None
        if self.config.positions == "rope":
            rope = self.get_buffer("rope_cos")[start:end], self.get_buffer("rope_sin")[start:end]
        x = F.dropout(x, self.config.transformer.dropout, self.training)
        return self.transformer(x, masks, rope=rope, cache=cache)


def parameter_count(config: DALLEConfig) -> int:
    """Parameters of the model, found without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DALLE(config).parameters())
