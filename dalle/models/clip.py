"""CLIP: an image tower and a text tower that map into one space of unit vectors. Knows nothing of training loops.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.

Shapes: B batch, H W pixels, h w patches, C width of a tower, T text positions, D embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.config import check_total, config
from dalle.kernels.ids import check_ids
from dalle.models.siglip import PooledVisionTransformer, UnmaskedTextTransformer
from dalle.models.transformer import Transformer, TransformerConfig
from dalle.ranges import NonNegativeInt, PositiveFloat, Range, Size
from dalle.text_tokenizers import EOS_ID, TextTokenizer

INITIAL_TEMPERATURE = 0.07
INITIAL_SIGMOID_SCALE, INITIAL_SIGMOID_BIAS = 10.0, -10.0  # SigLIP, algorithm 1
MAX_SCALE = 100.0

_Mean = Annotated[float, Range(-1000, 1000)]
_Deviation = Annotated[float, Range(0, 1000, above=True)]


@config
class CLIPConfig:
    """Architecture of a CLIP."""

    image_size: Size = 64
    """Height and width of the images, in pixels."""
    patch_size: Size = 8
    """Height and width of a patch, in pixels; divides image_size."""
    vision: TransformerConfig = TransformerConfig()
    """Image tower."""
    text: TransformerConfig = TransformerConfig()
    """Number of text tokens in the vocabulary."""
    text_vocab: Size = 4096
    """Maximum caption length in tokens, including EOS."""
    text_length: Size = 32
    """Longest caption in tokens, EOS included."""
    eos_id: NonNegativeInt = EOS_ID
    """Id of the EOS token, at which a caption's embedding is read."""
    embed_dim: Size = 256
    """Dimensions D of the joint embedding space."""
    mean: tuple[_Mean, _Mean, _Mean] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of the red, green and blue channels, subtracted from images in [0, 1]."""
    std: tuple[_Deviation, _Deviation, _Deviation] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of the channels, by which images are then divided."""
    towers: Literal["clip", "siglip"] = "clip"
    """clip: class token; causal text, read at EOS. siglip: attention pooling over the patches (embed_dim must equal the
    image tower's width); bidirectional text that attends to padding too, read at its last position."""
    sigmoid: bool = False
    """Give each pair its own probability, sigmoid(scale * cosine + bias), as SigLIP does (train with `loss: sigmoid`).
    false: no bias; scores only rank texts or images against each other."""
    initial_scale: PositiveFloat | None = None
    """Initial value of the logit scale; null: 1 / 0.07, or 10 with the sigmoid."""
    initial_bias: Annotated[float, Range(-(10**6), 10**6)] | None = None
    """Initial value of the sigmoid's bias; null: -10. The paper also tried log(1 / batch size)."""

    def __post_init__(self) -> None:
        tokens = self.text_length + (self.image_size // self.patch_size) ** 2
        widest = max(self.vision.width, self.text.width)
        numbers = (self.text_vocab + tokens + self.embed_dim + self.patch_size**2) * widest + self.text_length**2
        check_total(
            max(numbers, self.image_size**2),
            f"image_size {self.image_size}, patch_size {self.patch_size}, text_vocab {self.text_vocab}, "
            f"text_length {self.text_length}, embed_dim {self.embed_dim}",
        )
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size is {self.patch_size}; it must divide image_size, {self.image_size}")
        if self.towers == "siglip" and self.embed_dim != self.vision.width:
            raise ValueError(
                f"embed_dim is {self.embed_dim}; SigLIP towers have no image projection, so it must be the image "
                f"tower's width, {self.vision.width}"
            )
        if self.initial_bias is not None and not self.sigmoid:
            raise ValueError(f"initial_bias is {self.initial_bias}, but only the sigmoid has a bias: set it to null")


class VisionTransformer(nn.Module):
    """Image tower: patches and a class token, LayerNorm, pre-norm transformer, projection of the class token."""

    mean: Tensor
    std: Tensor
    first_patch = 1  # position 0 is the class token

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, side = config.vision.width, config.image_size // config.patch_size
        self.side = side
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + side**2, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.transformer = Transformer(config.vision)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to the transformer's input [B, 1 + h*w, C], class token first."""
        normalized = (images - self.mean) / self.std
        patches = self.patches(normalized.to(self.patches.weight.dtype))  # [B, C, h, w]
        tokens = rearrange(patches, "B C h w -> B (h w) C")
        first = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)
        x: Tensor = self.norm(torch.cat([first, tokens], dim=1) + self.positions)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to embeddings [B, D], not normalized."""
        projected: Tensor = self.projection(self.transformer(self.embed(images))[:, 0])
        return projected


class TextTransformer(nn.Module):
    """Text tower: causal pre-norm transformer, projection of the state at EOS."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, self.eos_id = config.text.width, config.eos_id
        self.tokens = nn.Embedding(config.text_vocab, width)
        self.positions = nn.Parameter(torch.randn(config.text_length, width) * 0.01)
        self.transformer = Transformer(config.text)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def states(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to the states [B, T, C] after the final norm."""
        x: Tensor = self.transformer(self.tokens(ids) + self.positions[: ids.shape[1]], "causal")
        return x

    def end(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to the position to read, int64 [B]: the first EOS or, without one, the last position."""
        ends = ids.eq(self.eos_id)
        return torch.where(ends.any(dim=1), ends.int().argmax(dim=1), ids.shape[1] - 1)

    def project(self, states: Tensor, end: Tensor) -> Tensor:
        """States [B, T, C] and the position [B] to read, to embeddings [B, D], not normalized."""
        projected: Tensor = self.projection(states[torch.arange(len(states), device=states.device), end])
        return projected

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to embeddings [B, D], not normalized."""
        return self.project(self.states(ids), self.end(ids))


class TextStates(NamedTuple):
    """The text tower's outputs for a batch of captions."""

    states: Tensor
    """Float32 [B, T, C], the state of each token after the final norm."""
    mask: Tensor
    """Bool [B, T]: True up to and including EOS, False for padding."""
    embeds: Tensor
    """Float32 [B, D], the projected state at EOS; not normalized."""


class CLIP(nn.Module):
    """Scores how well images and captions match, by the cosine similarity of their embeddings.

    Attributes:
        config: the architecture.
        tokenizer: set by `load_clip`; lets `encode_text` take strings.
        logit_scale: logarithm of the inverse temperature, a parameter.
        logit_bias: the bias that SigLIP adds to scaled cosines, a parameter; None with a softmax loss.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: TextTokenizer | None = None
        self.vision: VisionTransformer | PooledVisionTransformer
        self.text: TextTransformer | UnmaskedTextTransformer
        if config.towers == "siglip":
            self.vision, self.text = PooledVisionTransformer(config), UnmaskedTextTransformer(config)
        else:
            self.vision, self.text = VisionTransformer(config), TextTransformer(config)
        scale, bias = initial_scale_and_bias(config)
        self.logit_scale = nn.Parameter(scale)
        self.logit_bias = None if bias is None else nn.Parameter(bias)

    @property
    def scale(self) -> Tensor:
        """The factor on cosines, a scalar: the inverse temperature; with a softmax loss at most 100 (CLIP, 2.5)."""
        if self.config.sigmoid:
            return self.logit_scale.exp()
        # "clipped to prevent scaling the logits by more than 100" (section 2.5)
        limited: Tensor = _LimitFromAbove.apply(self.logit_scale, math.log(MAX_SCALE))
        return limited.exp()

    def probabilities(self, cosines: Tensor) -> Tensor:
        """The probability that an image and a text match, for each pair on its own (SigLIP).

        Args:
            cosines: cosine similarities of image and text embeddings, of any shape.

        Returns:
            float32 of the same shape, in [0, 1].

        Raises:
            ValueError: the model was trained with a softmax, whose scores are only relative.
        """
        if self.logit_bias is None:
            raise ValueError("this CLIP was trained with a softmax: its scores only rank; probabilities need a SigLIP")
        scale, bias = (value.detach().to(cosines.device).float() for value in (self.scale, self.logit_bias))
        return (scale * cosines.float() + bias).sigmoid()

    def encode_image(self, images: Tensor, *, normalize: bool = True) -> Tensor:
        """Embed images.

        Args:
            images: float [B, 3, H, W] in [0, 1], H = W = `config.image_size` (`dalle.generation.rerank` resizes).
            normalize: return unit vectors, whose dot products are cosines; False returns the tower's own output, which
                unCLIP works on.

        Returns:
            float32 [B, D].

        Raises:
            ValueError: images of another shape.
        """
        self._check(images)
        # In float32: in 16 bits, cosines are too coarse for logits that are scaled by up to 100
        embeds = self.vision(images).float()
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def encode_text(self, text: Tensor | Sequence[str], *, normalize: bool = True) -> Tensor:
        """Embed captions.

        Args:
            text: ids int64 [B, T] with an EOS in each row, T at most `config.text_length`; or B strings.
            normalize: return unit vectors; False returns the tower's own output.

        Returns:
            float32 [B, D]. Padding after EOS makes no difference.

        Raises:
            IndexError: an id is out of range (checked on a CPU only).
            ValueError: more positions than the model has, or strings for a model without a tokenizer.
        """
        embeds = self.text(self._ids(text)).float()
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def text_states(self, text: Tensor | Sequence[str]) -> TextStates:
        """Everything the text tower computes for captions: what a prior and a diffusion decoder are conditioned on.

        Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125),
        section 2: the text states beside the text embedding.

        Args:
            text: as for `encode_text`.

        Returns:
            States, the mask of valid tokens, and the embeddings of `encode_text(text, normalize=False)`.

        Raises:
            IndexError, ValueError: as `encode_text`.
        """
        ids = self._ids(text)
        states, end = self.text.states(ids), self.text.end(ids)
        # Padding comes after EOS, which is included
        mask = torch.arange(ids.shape[1], device=ids.device) <= end[:, None]
        return TextStates(states.float(), mask, self.text.project(states, end).float())

    def layers_from_top(self) -> dict[str, int]:
        """The distance of each parameter from its tower's output, for layer-wise learning rate decay.

        0 for everything after the blocks, 1 for the last block, and depth + 1 for everything before the first block.
        """
        layers = dict.fromkeys(dict(self.named_parameters()), 0)
        for prefix, tower in (("vision.", self.vision), ("text.", self.text)):
            depth = len(tower.transformer.blocks)
            for name in dict(tower.named_parameters()):
                block = re.match(r"transformer\.blocks\.(\d+)\.", name)
                if block is not None:
                    layers[prefix + name] = depth - int(block[1])
                elif not name.startswith(("transformer.norm.", "projection.", "pooling.")):
                    layers[prefix + name] = depth + 1
        return layers

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of a batch of pairs for `contrastive_loss`: images [B, D], texts [B, D], scale (scalar)."""
        return self.encode_image(images), self.encode_text(text), self.scale

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the image tower, first block to last, for a perceptual loss; differentiable.

        Args:
            images: float [B, 3, H, W], as for `encode_image`.

        Returns:
            One [B, C, h, w] per block of the image tower.
        """
        self._check(images)
        states: list[Tensor] = []
        # Hooks, as the transformer itself returns the output of its last block only
        hooks = [
            block.register_forward_hook(lambda module, args, output: states.append(output))
            for block in self.vision.transformer.blocks
        ]
        try:
            self.vision.transformer(self.vision.embed(images))
        finally:
            for hook in hooks:
                hook.remove()
        return [rearrange(x[:, self.vision.first_patch :], "B (h w) C -> B C h w", h=self.vision.side) for x in states]

    def _ids(self, text: Tensor | Sequence[str]) -> Tensor:
        if not isinstance(text, Tensor):
            if self.tokenizer is None:
                raise ValueError("this CLIP has no text tokenizer: pass token ids, or load it with dalle.load_clip")
            text = self.tokenizer.encode(text, self.config.text_length).to(self.logit_scale.device)
        if text.shape[1] > self.config.text_length:
            raise ValueError(
                f"got captions of {text.shape[1]} tokens, but this CLIP reads at most {self.config.text_length}: "
                f"encode them with length={self.config.text_length}"
            )
        check_ids(text, self.config.text_vocab, "text ids")
        return text

    def _check(self, images: Tensor) -> None:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"this CLIP takes images [B, 3, {size}, {size}], got {list(images.shape)}: resize them to {size}x{size}"
            )


def initial_scale_and_bias(config: CLIPConfig) -> tuple[Tensor, Tensor | None]:
    """Initial `logit_scale` and `logit_bias`; the bias is None with a softmax loss."""
    scale = config.initial_scale or (INITIAL_SIGMOID_SCALE if config.sigmoid else 1 / INITIAL_TEMPERATURE)
    bias = INITIAL_SIGMOID_BIAS if config.initial_bias is None else config.initial_bias
    return torch.tensor(math.log(scale)), torch.tensor(bias) if config.sigmoid else None


class _LimitFromAbove(torch.autograd.Function):
    """min(x, limit) whose gradient can still lower x: clamp's own is zero above the limit, where x would stick."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        # The gradient is needed only where x exceeds the limit and would be lowered
        ctx.save_for_backward(x > limit)
        return x.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (over,) = ctx.saved_tensors
        (grad,) = grads
        return torch.where(over & (grad < 0), torch.zeros_like(grad), grad), None
