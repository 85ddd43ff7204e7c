"""DALL-E: one decoder-only transformer over a caption's tokens and then an image's. Token ids in, logits out.

Shapes: B batch, T text length, P prefix length (T, plus 1 with `begin_id`), N = h * w image tokens, C width, V image
vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.cross_entropy import mean_loss, token_scores
from dalle.kernels.ids import check_ids
from dalle.kernels.kv_cache import KVCache, Positions
from dalle.kernels.linear import Linear
from dalle.models import captions, row_ends
from dalle.models.dalle_config import DALLEConfig
from dalle.models.feature_embedding import FeatureEmbedding
from dalle.models.norms import norm
from dalle.models.token_embeddings import TokenEmbeddings
from dalle.models.transformer import RunBlocks, Transformer


class DALLE(TokenEmbeddings):
    """The transformer of Ramesh et al. 2021 (arXiv 2102.12092), section 2.2 and appendix B.1.

    The sequence is `[text 0 .. T-1][image 0 .. N-1]`; the last image token is never an input, as nothing follows it.
    The output at a text token predicts the next text token, the output at the last text token predicts the first image
    token, and the output at an image token predicts the next image token. Where a caption has no token (id 0), each
    position has its own padding token, whose id is `text_vocab + position`. Text and image have separate embeddings and
    output heads.

    Checkpoints of other projects load into this class too; the config's options cover how they differ.
    """

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__(config)
        width = config.transformer.width
        self._add_masks()
        self.transformer = Transformer(config.transformer)
        self.head_norm = norm(config.transformer) if config.head_norm else nn.Identity()  # ruDALL-E has one
        hidden = (Linear(width, width), nn.GELU()) if config.head_hidden else ()  # as Janus' heads do
        self.head_hidden = nn.Sequential(*hidden)
        self.text_head = Linear(width, config.text_embeddings, bias=config.head_bias) if config.text_head else None
        self.image_head = Linear(width, config.image_vocab, bias=config.head_bias)
        self._initialize()

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
            text: int [B, <= T], ids in [0, text_vocab), `pad_id` = padding; shorter texts are padded on the right
                (also with `padding: left`, where the model moves them). For models with `text_features` float
                [B, <= T, F], padded on the left; all-zero rows = padding.
            image_ids: int [B, n], n <= N, codes in [0, V), raster order.

        Returns:
            [B, min(n + 1, N), V]; `logits[:, i]` predicts image token i from the text and the image tokens before it.

        Raises:
            IndexError: an id of the text or the image is out of range (checked on a CPU only).
            ValueError: more text or image tokens than the model has positions.
        """
        prefix = captions.prefix(text, self.config)
        # Shifted by one: the output at the last text token predicts image token 0
        return self.image_head(self._hidden(prefix, image_ids)[:, prefix.shape[1] - 1 :])

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
            Scalars. "text": over the text tokens that have a predecessor, T - 1, with `begin_id` T (0 for models
            without a text head); "image": over the N image tokens. With z_weight or smoothing also "text_nats" and
            "image_nats", the plain cross-entropy; with z_weight "text_z" and "image_z", the means of log² Z; both of
            text only with a text head. With `accuracy` "image_accuracy", a share. Only "text" and "image" carry
            gradients.
        """
        prefix = captions.prefix(text, self.config)
        hidden = self._hidden(prefix, image_ids if input_ids is None else input_ids)
        image, text_part = self._heads(hidden, prefix, image_ids)
        # Never NaN and always there, so that the caller can weight it whether or not there is a text head
        results = {"text": hidden.new_zeros((), dtype=torch.float32)}
        for name, part in (("text", text_part), ("image", image)):
            if part is not None:
                # Smoothing and accuracy are of the image tokens only: captions are there to be read, not generated
                is_image = name == "image"
                scores = mean_loss(  # [M, C] states and [M] targets
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

    def image_losses(self, text: Tensor, image_ids: Tensor) -> Tensor:
        """Cross-entropy of each image token, in nats, in float32, [B, N]; the text's is not computed."""
        prefix = captions.prefix(text, self.config)
        image, _ = self._heads(self._hidden(prefix, image_ids), prefix, image_ids)
        return token_scores(*image).nats.view_as(image_ids)

    def text_losses(self, text: Tensor) -> Tensor:
        """Cross-entropy of the tokens of captions without an image, in nats, in float32; needs a text head.

        Only the columns that are given run, so that texts padded to the longest of them cost no more than that.

        Args:
            text: int [B, n], 1 <= n <= T, padded as in `forward`.

        Returns:
            [B, n]; without `begin_id` 0 for the first token, which nothing precedes.
        """
        assert self.text_head is not None, "a model with a text head"
        count = text.shape[1] + (self.config.begin_id is not None)
        prefix = captions.prefix(text, self.config)[:, :count]
        nats = torch.zeros(text.shape, device=text.device)
        if count > 1:
            hidden = self._run(self._embed_text(prefix[:, :-1]), None, None)  # nothing follows the last token
            scores = token_scores(self.text_head, hidden.flatten(0, 1), prefix[:, 1:].flatten())
            nats[:, 1 - count :] = scores.nats.view(len(text), -1)
        return nats

    def token_losses_and_predictions(self, text: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of each token, in nats, in float32, and the argmax of the logits at each image token.

        Returns:
            [B, T - 1] for the text from its second token on (with `begin_id` [B, T], without text head [B, 0]); [B, N];
            int64 [B, N].
        """
        prefix = captions.prefix(text, self.config)
        image, text_part = self._heads(self._hidden(prefix, image_ids), prefix, image_ids)
        scores = token_scores(*image)  # [B N] each
        image_nats, predictions = scores.nats.view_as(image_ids), scores.argmax.view_as(image_ids)
        if text_part is None:
            return image_nats.new_zeros(len(prefix), 0), image_nats, predictions
        return token_scores(*text_part).nats.view(len(prefix), -1), image_nats, predictions

    def _heads(
        self, hidden: Tensor, prefix: Tensor, image_ids: Tensor
    ) -> tuple[tuple[nn.Module, Tensor, Tensor], tuple[nn.Module, Tensor, Tensor] | None]:
        """For image and text: the head, its input states [M, C], and the targets [M]; None without a text head."""
        last = prefix.shape[1] - 1  # the output here predicts the first image token
        image = self.image_head, hidden[:, last : last + image_ids.shape[1]].flatten(0, 1), image_ids.flatten()
        if self.text_head is None or not last:
            return image, None
        # Each text token predicts the next
        return image, (self.text_head, hidden[:, :last].flatten(0, 1), prefix[:, 1:].flatten())

    def null_text(self, text: Tensor) -> Tensor:
        """The null captions for classifier-free guidance that correspond to these texts, in the same shape."""
        if isinstance(self.text_embedding, FeatureEmbedding):
            # Zero rows are padding, in the null caption too
            # Features end right before the image, so a shorter text takes the end of the null caption
            return self.text_embedding.null[-text.shape[1] :].to(text.dtype) * text.any(-1, keepdim=True)
        return captions.null_of(text, self.config)

    def trim(self, text: Tensor) -> Tensor:
        """Texts [B, T] without the last columns that are padding in all, if the model needs none; [B, <= T]."""
        if self.config.padding != "left":
            return text
        # Texts are padded on the right until `prefix`
        return text[:, : max(1, int(captions.lengths(text, self.config.pad_id).max()))]

    def prefill(self, text: Tensor) -> tuple[Tensor, KVCache]:
        """Run the text through the transformer.

        Args:
            text: [B, <= T] or [B, <= T, C], as in `forward`.

        Returns:
            Logits of image token 0, [B, V], and a cache that holds the text's tokens and has room for nothing else.
        """
        prefix = captions.prefix(text, self.config)
        # Only as long as the text: it is copied to the front of a full-size cache for each candidate (`load_prefixes`)
        length = prefix.shape[1]
        cache = self.transformer.new_cache(len(prefix), length, shifted=self.shift is not None)
        cache.prefix, cache.padding = length, captions.padding(prefix, self.config)
        hidden = self._run(self._embed_text(prefix), cache, cache.padding)
        return self.image_head(hidden[:, -1]), cache

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for whole sequences: the text and all image tokens except the last."""
        return self.transformer.new_cache(batch, self.input_length, shifted=self.shift is not None)

    def extend(self, image_ids: Tensor, cache: KVCache, blocks: RunBlocks | None = None) -> Tensor:
        """Append image tokens to the cache.

        Args:
            image_ids: int [B, n], the next n >= 1 image tokens; with `row_ends` also the id V behind each row.
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
        check_ids(image_ids, self.config.image_vocab + self.config.row_ends, "image codes")
        x = self._embed_image(image_ids, cache.next_positions(image_ids.shape[1]))
        return self._run(x, cache, cache.padding, blocks)

    def _hidden(self, prefix: Tensor, image_ids: Tensor) -> Tensor:
        """Final states of the prefix and of all but the last of N image tokens, [B, P + n, C]."""
        count = self.config.image_length
        if image_ids.shape[1] > count:
            raise ValueError(
                f"the image has {image_ids.shape[1]} tokens, but the model only {count} image positions: check the grid"
            )
        check_ids(image_ids, self.config.image_vocab, "image codes")
        # Without the last image token, which nothing follows
        inputs, start, columns = image_ids[:, : count - 1], prefix.shape[1], self.config.grid[1]
        tokens = row_ends.insert(inputs, columns, self.config.image_vocab) if self.config.row_ends else inputs
        image = self._embed_image(tokens, Positions(start, start + tokens.shape[1]))
        x = torch.cat((self._embed_text(prefix), image), dim=1)
        hidden = self._run(x, None, captions.padding(prefix, self.config))
        if not self.config.row_ends:
            return hidden
        # Without the states that row ends are due behind, as nothing is predicted there
        places = row_ends.code_places(inputs.shape[1] + 1, columns, hidden.device)
        return torch.cat((hidden[:, : start - 1], hidden[:, start - 1 + places]), dim=1)  # as without row ends

    def _run(self, x: Tensor, cache: KVCache | None, padding: Tensor | None, blocks: RunBlocks | None = None) -> Tensor:
        """Run the transformer over embedded tokens that follow those in the cache."""
        positions = Positions(0, x.shape[1]) if cache is None else cache.next_positions(x.shape[1])
        # Dropout on embeddings, as in GPT-2
        x = F.dropout(x, self.config.transformer.dropout, self.training)
        masks = self._masks(positions, padding)
        x = self.transformer(x, masks, rope=self._angles(positions), shift=self.shift, cache=cache, blocks=blocks)
        return self.head_hidden(self.head_norm(x))
