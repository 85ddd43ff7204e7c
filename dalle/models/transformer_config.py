"""Architecture of a transformer: the options of `dalle.models.transformer`, and roughly how large it is."""

from __future__ import annotations

from typing import Annotated, Literal

from dalle.config import check_total, config
from dalle.config.ranges import Decay, Range, Size

_BLOCK_OVERHEAD = 2**14  # memory of a block's Python objects, in units of one parameter
FeedForwardKind = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu", "geglu", "geglu_tanh"]


@config
class TransformerConfig:
    """Architecture of a transformer; the options beyond GPT-2's exist for published checkpoints and for stability."""

    width: Size = 256
    """Channels of the residual stream."""
    depth: Size = 8
    """Number of blocks."""
    heads: Size = 4
    """Attention heads; must divide width, unless head_channels is set."""
    kv_heads: Size | None = None
    """Heads of keys and values, each shared by heads / kv_heads of the queries (grouped-query attention, Ainslie et al.
    2023, arXiv 2305.13245); null: heads."""
    head_channels: Size | None = None
    """Channels per head; null: width / heads."""
    mlp_ratio: Annotated[float, Range(0, above=True, ceiling=10**6)] = 4.0
    """Hidden width of the feed-forward layers as a multiple of width (swiglu, geglu: two thirds of it, so that the
    number of parameters is the same)."""
    hidden: Size | None = None
    """Hidden width of the feed-forward layers in channels, overriding mlp_ratio."""
    feed_forward: FeedForwardKind = "gelu"
    """Activation of the feed-forward layers."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    norm_eps: Annotated[float, Range(0, above=True, ceiling=1)] = 1e-5
    """Added to the variance that these norms divide by."""
    sandwich: bool = False
    """Also normalize the output of each residual branch (CogView, arXiv 2105.13290, section 2.4)."""
    layer_scale: bool = False
    """Scale the output of each residual branch by a learned vector (Touvron et al. 2021, arXiv 2103.17239)."""
    biases: Literal["all", "not_qkv", "qkv", "none"] = "all"
    """Which linear layers have biases."""
    qk_norm: bool = False
    """Normalize queries and keys per head, for stability at high learning rates."""
    qk_norm_kind: Literal["layer", "own", "rms"] = "layer"
    """layer: LayerNorm without biases; own: LayerNorm, each head with weights and biases of its own (Chameleon); rms:
    RMSNorm."""
    dropout: Decay = 0.0
    """Dropout on embeddings and on the output of each residual branch, from 0 to below 1."""
    attention_dropout: Decay = 0.0
    """Dropout on attention weights, from 0 to below 1; sparse attention then runs with dense masks and without native
    kernels."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    rotate_values: bool = False
    """Apply rotary positions to values too, as DALLE-pytorch does."""
    reversible: bool = False
    """Use reversible blocks with two residual streams (RevNet, arXiv 1707.04585), as DALLE-pytorch does."""
    divide_by_max: bool = False
    """Divide the last states by their largest channel before the final norm, as DALLE-pytorch does (`stable`)."""

    def __post_init__(self) -> None:
        if self.head_channels is None and self.width % self.heads:
            raise ValueError(
                f"heads is {self.heads}; it must divide width, {self.width}, unless head_channels is given"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads is {self.kv_heads}; it must divide heads, {self.heads}")
        if self.hidden is None and self.width * self.mlp_ratio < 1:
            raise ValueError(
                f"mlp_ratio is {self.mlp_ratio}: of a width of {self.width} that is no channel; give at least "
                f"1 / {self.width}, or hidden"
            )
        names = ("width", "depth", "heads", "head_channels", "hidden", "mlp_ratio")
        sizes = {name: getattr(self, name) for name in names}
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items() if size is not None)
        check_total(self.approximate_size, shown)

    @property
    def approximate_size(self) -> int:
        """Roughly the number of parameters of the blocks, with an allowance for the Python objects of each."""
        inner, hidden = self.heads * self.head_width, self.hidden or int(self.width * self.mlp_ratio)
        # Q, k, v, out; up (gated: twice) and down
        return self.depth * (self.width * (4 * inner + 3 * hidden) + _BLOCK_OVERHEAD)

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """Channels per head."""
        return self.width // self.heads if self.head_channels is None else self.head_channels
