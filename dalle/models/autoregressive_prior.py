"""unCLIP's autoregressive prior: an image embedding as a few tokens, one per principal component, largest first.

Shapes: as in `dalle.models.prior`; K components, V buckets.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.config import config
from dalle.config.ranges import Range, Size
from dalle.kernels.ids import check_ids
from dalle.kernels.kv_cache import KVCache
from dalle.models.clip import TextStates
from dalle.models.prior import Prior, PriorShape, causal_mask
from dalle.models.transformer import Transformer


@config
class AutoregressivePriorConfig(PriorShape):
    """Architecture of an autoregressive prior."""

    kind: Literal["autoregressive"] = "autoregressive"
    """Predicts quantized principal components one after the other."""
    components: Size | None = None
    """Number of principal components K; null takes as many as explain `variance`."""
    variance: Annotated[float, Range(0, 1, above=True)] = 0.99
    """Share of the variance that the components must explain, if `components` is null."""
    buckets: Annotated[int, Range(2, ceiling=2**16)] = 256
    """Values V of a component's token; the training set fills them equally."""
    dot_buckets: Annotated[int, Range(2, ceiling=2**16)] = 32
    """Values of the token that encodes how well caption and image match."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components is not None and self.components > self.embed_dim:
            raise ValueError(f"components is {self.components}; it must be from 1 to embed_dim, {self.embed_dim}")


class AutoregressivePrior(Prior):
    """Predicts one principal component after the other (arXiv 2204.06125, section 2.2).

    The sequence is `[text states][text embedding][dot product][component 0]..[component K - 2]`: the output at the dot
    product predicts component 0, the output at component i predicts component i + 1. The dot product is that of the
    normalized embeddings of caption and image; sampling sets it high to ask for a good match.
    """

    basis: Tensor
    edges: Tensor
    centers: Tensor
    dot_edges: Tensor

    def __init__(self, config: AutoregressivePriorConfig) -> None:
        super().__init__(config)
        if config.components is None:
            raise ValueError("components is null: set it to the result of components_for first")
        self.config, self.components = config, config.components
        width = config.transformer.width
        self.dot_embedding = nn.Embedding(config.dot_buckets, width)
        # In place of the dot product, in rows without a caption
        self.null_dot = nn.Parameter(torch.randn(width) * 0.02)
        self.embedding = nn.Embedding(config.buckets, width)
        # The text, its embedding, the dot product, and all components but the last
        self.positions = nn.Parameter(torch.randn(config.text_length + 1 + config.components, width) * 0.01)
        self.transformer = Transformer(config.transformer)
        self.head = nn.Linear(width, config.buckets)
        for weight in (self.dot_embedding.weight, self.embedding.weight, self.head.weight):
            nn.init.normal_(weight, std=0.02)
        # Buffers, as they belong to the weights: `fit` sets them once, before training
        self.register_buffer("basis", torch.eye(config.embed_dim)[:, : config.components].contiguous())
        self.register_buffer("edges", torch.zeros(config.components, config.buckets - 1))
        self.register_buffer("centers", torch.zeros(config.components, config.buckets))
        self.register_buffer("dot_edges", torch.zeros(config.dot_buckets - 1))

    def fit(self, images: Tensor, texts: Tensor) -> None:
        """Fit the normalization, components and buckets to the raw image and text embeddings of N pairs, [N, D] each.

        Raises:
            ValueError: fewer embeddings than buckets.
        """
        super().fit(images, texts)
        if len(images) < self.config.buckets:
            raise ValueError(
                f"{len(images)} embeddings cannot fill {self.config.buckets} buckets: give more embeddings"
            )
        standard = self.standardize(images)
        self.basis.copy_(principal_components(standard)[1][:, : self.components])  # largest variance first
        values = standard @ self.basis  # [N, K]
        self.edges.copy_(_edges(values, self.config.buckets).T)
        for component, own in enumerate(values.T.contiguous()):
            # The mean of each bucket minimizes the squared error of `decode`
            ids = torch.bucketize(own, self.edges[component])
            counts = torch.bincount(ids, minlength=self.config.buckets)
            sums = torch.zeros_like(self.centers[component]).index_add_(0, ids, own)
            # Equal edges leave a bucket empty; it never is a target, so its center does not matter.
            self.centers[component] = sums / counts.clamp(min=1)
        self.dot_edges.copy_(_edges(_cosines(images, texts)[:, None], self.config.dot_buckets)[:, 0])

    def encode(self, images: Tensor) -> Tensor:
        """Quantize raw image embeddings [B, D] to tokens, int64 [B, K]."""
        values = self.standardize(images) @ self.basis  # [B, K]
        # `bucketize` wants contiguous rows: one component, with edges of its own, at a time
        return torch.stack(
            [torch.bucketize(v, e) for v, e in zip(values.T.contiguous(), self.edges, strict=True)], dim=1
        )

    def decode(self, ids: Tensor) -> Tensor:
        """Tokens int64 [B, K] to raw image embeddings [B, D], from the mean of each bucket."""
        values = self.centers[torch.arange(ids.shape[1], device=ids.device), ids]  # [B, K]
        return self.unstandardize(values @ self.basis.T)

    def encode_dots(self, images: Tensor, texts: Tensor) -> Tensor:
        """Quantize the cosine similarity of raw embeddings of pairs, [B, D] each, to tokens, int64 [B]."""
        return torch.bucketize(_cosines(images, texts), self.dot_edges)

    def forward(self, ids: Tensor, dots: Tensor, text: TextStates, dropped: Tensor | None = None) -> Tensor:
        """Compute the logits of all components.

        Args:
            ids: int64 [B, K], or the first n of them, [B, n].
            dots: int64 [B], tokens of the dot products.
            text: of B captions, T at most `config.text_length`; masked tokens are not attended to.
            dropped: bool [B], True for rows whose caption and dot product are replaced by the learned null ones; None:
                no row.

        Returns:
            float32 [B, min(n + 1, K), V]: `logits[:, i]` predicts component i from the text and components 0 .. i - 1.

        Raises:
            IndexError: an id is out of range (checked on a CPU only).
        """
        prefix, valid = self._prefix(text, dots, dropped)
        # The last component is never an input, as nothing follows it
        x = torch.cat((prefix, self._embed(ids[:, : self.components - 1], 0).to(prefix.dtype)), dim=1)
        x = F.dropout(x, self.config.transformer.dropout, self.training)
        # From the dot product's position on
        states = self.transformer(x, causal_mask(valid, x.shape[1]))[:, prefix.shape[1] - 1 :]
        return self.head(states).float()

    def prefill(self, text: TextStates, dots: Tensor, dropped: Tensor | None = None) -> tuple[Tensor, KVCache, Tensor]:
        """Run the text and the dot product, once per sequence.

        Returns:
            Logits of component 0, [B, V]; a cache with room for the components; which prefix tokens are valid, bool.
        """
        prefix, valid = self._prefix(text, dots, dropped)
        length = prefix.shape[1]
        # The last component is never an input
        cache = self.transformer.new_cache(len(prefix), length + self.components - 1)
        states = self.transformer(prefix, causal_mask(valid, length), cache=cache)
        return self.head(states[:, -1]).float(), cache, valid

    def extend(self, ids: Tensor, cache: KVCache, valid: Tensor) -> Tensor:
        """Append the next component's tokens, int64 [B], to the cache; returns the logits of the one after, [B, V]."""
        count = cache.position - valid.shape[1]  # components in the cache so far
        # Shaped [B, 1, 1, S]: all but padding
        seen = torch.cat((valid, valid.new_ones(len(valid), count + 1)), dim=1)[:, None, None]
        states = self.transformer(self._embed(ids[:, None], count), seen, cache=cache)
        return self.head(states[:, -1]).float()

    def _prefix(self, text: TextStates, dots: Tensor, dropped: Tensor | None) -> tuple[Tensor, Tensor]:
        check_ids(dots, self.config.dot_buckets, "dot products")
        tokens, valid = self._text_tokens(text, dropped)
        dot = self.dot_embedding(dots).to(tokens.dtype)
        # Both condition the prediction, so guidance must drop both
        if dropped is not None:
            dot = torch.where(dropped[:, None], self.null_dot.to(dot.dtype), dot)
        length = text.states.shape[1]
        # The embedding and the dot product have fixed positions, however short the captions of this batch are
        own = self.positions[self.config.text_length :][:2]
        x = torch.cat((tokens, dot[:, None]), dim=1) + torch.cat((self.positions[:length], own))
        return x, torch.cat((valid, valid.new_ones(len(valid), 1)), dim=1)

    def _embed(self, ids: Tensor, first: int) -> Tensor:
        """Embed tokens of the components from `first` on: [B, n] to [B, n, C]."""
        check_ids(ids, self.config.buckets, "buckets of components")
        start = self.config.text_length + 2 + first  # text, its embedding, the dot product
        return self.embedding(ids) + self.positions[start : start + ids.shape[1]]


def principal_components(standard: Tensor) -> tuple[Tensor, Tensor]:
    """PCA of embeddings [N, D] with mean 0: the variances in descending order, [D], and the basis, [D, D]."""
    # In float64, as small eigenvalues drown in the rounding errors of large ones
    # `eigh` sorts in ascending order; `view` as the covariance of one dimension is a scalar
    values, vectors = torch.linalg.eigh(torch.cov(standard.double().T).view(standard.shape[1], -1))
    return values.flip(0).clamp(min=0).to(standard.dtype), vectors.flip(1).to(standard.dtype)


def components_for(standard: Tensor, variance: float) -> int:
    """How many principal components of standardized embeddings [N, D] explain this share of the variance."""
    values = principal_components(standard)[0].double()
    explained = values.cumsum(0) / values.sum()
    return min(int((explained < variance).sum()) + 1, len(values))  # the first count that reaches the share


def _edges(values: Tensor, buckets: int) -> Tensor:
    """Quantiles: edges [buckets - 1, K] with equally many of the values [N, K] between them."""
    # Order statistics, so equal values may share an edge; `bucketize` puts an edge itself into the bucket below
    last = torch.arange(1, buckets, device=values.device) * len(values) // buckets - 1
    return values.sort(dim=0).values[last]


def _cosines(images: Tensor, texts: Tensor) -> Tensor:
    return F.cosine_similarity(images, texts, dim=-1)
