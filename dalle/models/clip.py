"""CLIP: an image tower and a text tower that meet in one space of unit vectors. Knows nothing of training loops.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.

Letters of shapes: B batch, H W pixels, h w patches, C width of a tower, T text positions, D embedding.
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
    """Text tower."""
    text_vocab: Size = 4096
    """Number of text tokens."""
    text_length: Size = 32
    """Longest caption in tokens, EOS included."""
    eos_id: NonNegativeInt = EOS_ID
    """The id that ends captions, where their embedding is read."""
    embed_dim: Size = 256
    """Dimensions D of the space that images and texts share."""
    mean: tuple[_Mean, _Mean, _Mean] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of red, green and blue that is taken from images in [0, 1]."""
    std: tuple[_Deviation, _Deviation, _Deviation] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation that images are then divided by."""
    towers: Literal["clip", "siglip"] = "clip"
    """clip: class token, causal text read at its end. siglip: attention pooling over patches (embed_dim is then the
    width of the image tower), text that sees all of itself, padding too, read at its last position."""
    sigmoid: bool = False
    """Each pair has a probability of its own, sigmoid(scale * cosine + bias), as a SigLIP has, which `loss: sigmoid`
    trains; false has no bias, and what fits is told among others alone."""
    initial_scale: PositiveFloat | None = None
    """What cosines are multiplied by at first; null: 1 / 0.07, or 10 where the loss is a sigmoid's."""
    initial_bias: Annotated[float, Range(-(10**6), 10**6)] | None = None
    """What is added to them at first, of a sigmoid; null: -10. The paper tried log(1 / batch size) as well."""

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
                f"embed_dim is {self.embed_dim}; towers of SigLIP project no images, so it must be the width of the "
                f"image tower, {self.vision.width}"
            )
        if self.initial_bias is not None and not self.sigmoid:
            raise ValueError(f"initial_bias is {self.initial_bias}, which a sigmoid adds: set loss=sigmoid, or null")


class VisionTransformer(nn.Module):
    """Image tower: patches and a class token, LayerNorm, pre-norm transformer, the class token projected."""

    mean: Tensor
    std: Tensor
    first_patch = 1  # after the class token

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
        """Images [B, 3, H, W] in [0, 1] -> the transformer's input [B, 1 + h*w, C], class token first."""
        normalised = (images - self.mean) / self.std
        patches = self.patches(normalised.to(self.patches.weight.dtype))  # [B, C, h, w]
        tokens = rearrange(patches, "B C h w -> B (h w) C")
        first = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)
        x: Tensor = self.norm(torch.cat([first, tokens], dim=1) + self.positions)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> [B, D], not normalised."""
        projected: Tensor = self.projection(self.transformer(self.embed(images))[:, 0])
        return projected


class TextTransformer(nn.Module):
    """Text tower: causal pre-norm transformer, the state at EOS projected."""

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
        """Ids [B, T] -> the states [B, T, C] after the last norm."""
        x: Tensor = self.transformer(self.tokens(ids) + self.positions[: ids.shape[1]], "causal")
        return x

    def end(self, ids: Tensor) -> Tensor:
        """Ids [B, T] -> int64 [B]: where the embedding is read, the first EOS or, without one, the last position."""
        ends = ids.eq(self.eos_id)
        return torch.where(ends.any(dim=1), ends.int().argmax(dim=1), ids.shape[1] - 1)

    def project(self, states: Tensor, end: Tensor) -> Tensor:
        """States [B, T, C] and the position [B] to read -> [B, D], not normalised."""
        projected: Tensor = self.projection(states[torch.arange(len(states), device=states.device), end])
        return projected

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B, T] -> [B, D], not normalised; a row without EOS is read at its last position."""
        return self.project(self.states(ids), self.end(ids))


class TextStates(NamedTuple):
    """What the text tower makes of a batch of captions."""

    states: Tensor
    """Float32 [B, T, C], one for each token, after the last norm."""
    mask: Tensor
    """Bool [B, T]: the tokens up to the EOS, that included; what follows is padding."""
    embeds: Tensor
    """Float32 [B, D], the state at the EOS projected; not of unit length."""


class CLIP(nn.Module):
    """Scores how well images and captions fit each other: the cosine of their embeddings.

    Attributes:
        config: The architecture.
        tokenizer: Set by `load_clip`; lets `encode_text` take strings.
        logit_scale: Logarithm of the inverse temperature, a parameter.
        logit_bias: What a SigLIP adds to scaled cosines, a parameter; None: there is none.
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
        """What cosines are multiplied by, a scalar; before a softmax at most 100."""
        if self.config.sigmoid:
            return self.logit_scale.exp()
        limited: Tensor = _LimitFromAbove.apply(self.logit_scale, math.log(MAX_SCALE))
        return limited.exp()

    def probabilities(self, cosines: Tensor) -> Tensor:
        """How likely it is that an image and a text belong together, each pair by itself (SigLIP).

        Args:
            cosines: Of unit vectors of images and texts, of any shape.

        Returns:
            float32 of that shape, in [0, 1].

        Raises:
            ValueError: It was trained by a softmax, which compares texts with each other and tells nothing of one.
        """
        if self.logit_bias is None:
            raise ValueError(
                "this CLIP was trained by a softmax: it ranks, and its scores are no probabilities; a SigLIP's are"
            )
        scale, bias = (value.detach().to(cosines.device).float() for value in (self.scale, self.logit_bias))
        return (scale * cosines.float() + bias).sigmoid()

    def encode_image(self, images: Tensor, *, normalize: bool = True) -> Tensor:
        """Images to vectors in the space that they share with texts.

        Args:
            images: float [B, 3, H, W] in [0, 1], H = W = `config.image_size` (`dalle.generation.rerank` resizes).
            normalize: give unit vectors, as cosines need them; else what the tower gives, as unCLIP learns it.

        Returns:
            float32 [B, D].

        Raises:
            ValueError: Images of another shape.
        """
        self._check(images)
        embeds = self.vision(images).float()
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def encode_text(self, text: Tensor | Sequence[str], *, normalize: bool = True) -> Tensor:
        """Captions to vectors in the space that they share with images.

        Args:
            text: Ids int64 [B, T] with an EOS in each row, T at most `config.text_length`; or B strings.
            normalize: give unit vectors; else what the tower gives.

        Returns:
            float32 [B, D]. Padding after EOS does not count.

        Raises:
            IndexError: On a CPU, an id is out of range.
            ValueError: More positions than the model has, or strings for a model without a tokenizer.
        """
        embeds = self.text(self._ids(text)).float()
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def text_states(self, text: Tensor | Sequence[str]) -> TextStates:
        """All that the text tower knows of captions: what a prior and a diffusion decoder are conditioned on.

        Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125),
        section 2: the encoded text beside the text embedding.

        Args:
            text: As for `encode_text`.

        Returns:
            States, the mask of real tokens, and the same embeddings as `encode_text(text, normalize=False)`.

        Raises:
            IndexError, ValueError: As `encode_text`.
        """
        ids = self._ids(text)
        states, end = self.text.states(ids), self.text.end(ids)
        mask = torch.arange(ids.shape[1], device=ids.device) <= end[:, None]
        return TextStates(states.float(), mask, self.text.project(states, end).float())

    def steps_from_top(self) -> dict[str, int]:
        """Of each parameter its distance from the end of its tower, for learning rates that fall with it.

        What comes after the blocks is 0, the last block 1, what comes before the first is one more than it.
        """
        steps = dict.fromkeys(dict(self.named_parameters()), 0)
        for prefix, tower in (("vision.", self.vision), ("text.", self.text)):
            depth = len(tower.transformer.blocks)
            for name in dict(tower.named_parameters()):
                block = re.match(r"transformer\.blocks\.(\d+)\.", name)
                if block is not None:
                    steps[prefix + name] = depth - int(block[1])
                elif not name.startswith(("transformer.norm.", "projection.", "pooling.")):
                    steps[prefix + name] = depth + 1
        return steps

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of a batch of pairs, for `contrastive_loss`: images [B, D], texts [B, D], scale (scalar)."""
        return self.encode_image(images), self.encode_text(text), self.scale

    def features(self, images: Tensor) -> list[Tensor]:
        """Token maps of the image tower, shallow to deep, for a perceptual loss; gradients reach the images.

        Args:
            images: float [B, 3, H, W] as for `encode_image`.

        Returns:
            One [B, C, h, w] for each block of the image tower.
        """
        self._check(images)
        states: list[Tensor] = []
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
                f"got captions of {text.shape[1]} tokens, this CLIP reads {self.config.text_length}: "
                f"encode them with length={self.config.text_length}"
            )
        check_ids(text, self.config.text_vocab, "text ids")
        return text

    def _check(self, images: Tensor) -> None:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"this CLIP takes images [B, 3, {size}, {size}], got {list(images.shape)}: resize them")


def initial_scale_and_bias(config: CLIPConfig) -> tuple[Tensor, Tensor | None]:
    """What `logit_scale` and `logit_bias` are before training; there is a bias where the loss is a sigmoid's."""
    scale = config.initial_scale or (INITIAL_SIGMOID_SCALE if config.sigmoid else 1 / INITIAL_TEMPERATURE)
    bias = INITIAL_SIGMOID_BIAS if config.initial_bias is None else config.initial_bias
    return torch.tensor(math.log(scale)), torch.tensor(bias) if config.sigmoid else None


class _LimitFromAbove(torch.autograd.Function):
    """min(x, limit) that keeps the gradient which leads back below the limit: clamp's own is zero there for ever."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x > limit)
        return x.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (over,) = ctx.saved_tensors
        (grad,) = grads
        return torch.where(over & (grad < 0), torch.zeros_like(grad), grad), None
