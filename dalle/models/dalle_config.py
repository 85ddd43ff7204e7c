"""Architecture of a DALL-E: its sizes, which attention each layer has, and how published models differ."""

from __future__ import annotations

from typing import Annotated, Literal

from dalle.config import check_total, config
from dalle.config.ranges import NonNegativeInt, Range, Size
from dalle.kernels.masks import Kind
from dalle.models.transformer_config import TransformerConfig


@config
class GridsConfig:
    """The grids that a model draws whose prompt says the size of the image."""

    most: Size = 4096
    """Most image tokens."""
    multiple: Size = 1
    """Rows and columns are multiples of this number."""
    ratio: Annotated[float, Range(1, ceiling=2**16)] = 4.0
    """Most rows for each column, or columns for each row."""

    def problem(self, grid: tuple[int, int], cell: int = 1) -> str | None:
        """What is wrong with a grid of rows and columns, in units of `cell` pixels a token; None if it can be drawn."""
        rows, columns = grid
        if min(grid) < 1 or rows % self.multiple or columns % self.multiple:
            return f"both sides must be multiples of {self.multiple * cell}"
        if max(grid) > self.ratio * min(grid):
            if self.ratio == 1:
                return "this model draws square images only"
            return f"the longer side may be at most {self.ratio:g} times the shorter"
        if rows * columns > self.most:
            side = int(self.most**0.5) * cell
            return f"it has more than {self.most * cell**2:,} pixels, about {side}x{side}"
        return None


@config
class DALLEConfig:
    """Architecture of a DALL-E; the options beyond the paper's exist to load other projects' checkpoints."""

    transformer: TransformerConfig = TransformerConfig()
    """Architecture of the transformer."""
    text_vocab: Size = 4096
    """Size of the text tokenizer's vocabulary."""
    text_length: Size = 32
    """Number of text tokens in every sequence, padding included; with `padding: left` the largest number of them."""
    image_vocab: Size = 1024
    """Number of codes of the image tokenizer."""
    grid: tuple[Size, Size] = (8, 8)
    """Rows and columns of image tokens."""
    grids: GridsConfig | None = None
    """Which other grids it draws; null: none."""
    row_ends: bool = False
    """Read a token of its own behind each row of image tokens; it is never predicted."""
    attention: tuple[Kind, ...] = ("full",)
    """Kinds of attention, cycled over the layers from the first."""
    last_attention: Kind | None = None
    """Kind of the last layer's attention; null: as the cycle has it."""
    conv_kernel: Annotated[int, Range(1, ceiling=2**16)] = 11
    """Side of the window of "conv" attention; odd."""
    positions: Literal["learned", "learned_cells", "rope", "rope_1d", "stored_rope"] = "learned"
    """Position embeddings. learned: text 1-D, image row + column; learned_cells: one for each image position; rope:
    rotary in two dimensions; rope_1d: rotary along the sequence, as in language models; stored_rope: rotary, with a
    table that is stored with the weights."""
    rope_base: Annotated[float, Range(1, ceiling=10**12)] = 10_000.0
    """Base of the wavelengths of rope_1d."""
    stored_masks: tuple[Annotated[int, Range(-1, ceiling=2**16)], ...] = ()
    """For each layer, the index of its mask among those stored with the weights, -1 for full attention; empty: use
    `attention`."""
    pad_id: NonNegativeInt = 0
    """Text id that means "no token here"."""
    padding: Literal["positional", "word", "left"] = "positional"
    """positional: each position has its own padding token, with ids from text_vocab on; word: pad_id is an ordinary
    token; left: captions end right before the image, and padding is in front of them, where nothing attends to it."""
    null_ids: tuple[NonNegativeInt, ...] = ()
    """Text ids of the null caption of classifier-free guidance; empty: padding only."""
    dropped_ids: tuple[NonNegativeInt, ...] = ()
    """Text ids of a caption that training drops, where that is not the null caption; empty: the null caption."""
    null_keeps_ends: bool = False
    """The null caption is the caption with pad_id, attended to, in place of all ids but the first and the last."""
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
    head_hidden: bool = False
    """Put a linear layer and a GELU before the output heads."""
    shift_tokens: bool = False
    """Replace some channels of each token by its neighbors' (`TokenShift` of `dalle.kernels.kv_cache`)."""

    def __post_init__(self) -> None:
        depth = self.transformer.depth
        sizes = {
            "text_vocab": self.text_vocab,
            "text_length": self.text_length,
            "image_vocab": self.image_vocab,
            "grid": self.grid,
            "width": self.transformer.width,
        }
        # Roughly what the embeddings, the heads and one dense mask hold; the transformer checks its own size
        tokens = self.prefix_length + self.image_length
        numbers = (self.text_embeddings + 2 * self.image_vocab + tokens) * self.transformer.width + tokens**2
        check_total(numbers, ", ".join(f"{name} {size}" for name, size in sizes.items()))
        if not self.attention:
            raise ValueError("attention is empty; give at least one of full, row, column, conv")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}; it must be odd")
        # Half of the channels turn with the row, half with the column, and each angle turns a pair of channels
        if self.positions == "rope" and self.transformer.head_width % 4:
            raise ValueError(
                f"positions: rope needs a head width that is a multiple of 4, not {self.transformer.head_width}"
            )
        if self.stored_masks and len(self.stored_masks) != self.transformer.depth:
            raise ValueError(f"stored_masks has {len(self.stored_masks)} layers, but depth is {self.transformer.depth}")
        if self.pad_id >= self.text_vocab:
            raise ValueError(f"pad_id is {self.pad_id}; it must be below text_vocab, {self.text_vocab}")
        if self.begin_id is not None and self.begin_id >= self.text_vocab:
            raise ValueError(f"begin_id is {self.begin_id}; it must be below text_vocab, {self.text_vocab}")
        for name, ids in (("null_ids", self.null_ids), ("dropped_ids", self.dropped_ids)):
            if ids and max(ids) >= self.text_vocab:
                raise ValueError(f"{name} has {max(ids)}; they must be below text_vocab, {self.text_vocab}")
            if len(ids) > self.text_length:
                raise ValueError(f"{name} has {len(ids)} ids, more than text_length, {self.text_length}")
        if self.null_ids and self.null_keeps_ends:
            raise ValueError("null_ids and null_keeps_ends are two kinds of null captions: give one of them")
        plain = self.positions == "rope_1d" and self.kinds == ["full"] * depth and not self.shift_tokens
        for name, wanted in (("row_ends", self.row_ends), ("grids", self.grids is not None)):
            if wanted and not plain:
                raise ValueError(f"{name} needs positions: rope_1d, full attention, and no shift_tokens")
        if self.padding == "left" and self.positions.startswith("learned"):
            raise ValueError(f"padding: left needs rotary positions, not {self.positions}")
        if self.padding == "left" and (self.text_head or self.begin_id is not None or self.kinds != ["full"] * depth):
            raise ValueError("padding: left needs text_head: false, full attention, and no begin_id")
        if self.text_features is not None and self.text_head:
            raise ValueError("text_features needs text_head: false, as features cannot be predicted as tokens")
        if self.text_features is not None and (self.begin_id is not None or self.dropped_ids or self.padding == "left"):
            raise ValueError(
                "text_features needs no begin_id, no dropped_ids, and no padding: left, which are of text ids"
            )
        # Image tokens take a quarter of their channels from above, and a quarter from the left
        if self.shift_tokens and self.transformer.width % 4:
            raise ValueError(f"shift_tokens needs a width that is a multiple of 4, not {self.transformer.width}")

    @property
    def image_length(self) -> int:
        """Number of image tokens in every sequence, N."""
        return self.grid[0] * self.grid[1]

    @property
    def token_length(self) -> int:
        """Number of tokens that an image is drawn in: its codes, and the row ends between them."""
        return self.image_length + (self.grid[0] - 1 if self.row_ends else 0)

    @property
    def input_length(self) -> int:
        """Number of tokens that are ever read: the prefix, and all of an image but the last, which nothing follows."""
        return self.prefix_length + self.token_length - 1

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
        # In the paper the last layer alone is convolutional (appendix B.1)
        if self.last_attention is not None:
            kinds[-1] = self.last_attention
        return kinds
