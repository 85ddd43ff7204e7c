"""CLIP: an image tower and a text tower that map into one space of unit vectors. Knows nothing of training loops.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.

Shapes: B batch, H W pixels, h w patches, C width of a tower, T text positions, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.kernels.ids import check_ids
from dalle.models.clip_config import CLIPConfig as CLIPConfig
from dalle.models.clip_resnet import ResNet
from dalle.models.clip_tower import NO_TEXT_TOWER, ImageTower, MissingImageTower, MissingTextTower, TextTower
from dalle.models.clip_towers import TextTransformer, VisionTransformer
from dalle.models.siglip import PooledVisionTransformer, UnmaskedTextTransformer
from dalle.models.xlm_roberta import XLMRobertaText
from dalle.text_tokenizers import TextTokenizer

INITIAL_TEMPERATURE = 0.07
INITIAL_SIGMOID_SCALE, INITIAL_SIGMOID_BIAS = 10.0, -10.0  # SigLIP, algorithm 1
MAX_SCALE = 100.0


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
        no_tokenizer: why there is none, for the error of `encode_text`.
        logit_scale: logarithm of the inverse temperature, a parameter.
        logit_bias: the bias that SigLIP adds to scaled cosines, a parameter; None with a softmax loss.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: TextTokenizer | None = None
        self.no_tokenizer = (
            NO_TEXT_TOWER
            if config.missing == "text"
            else "this CLIP has no text tokenizer: pass token ids, or load it with dalle.load_clip"
        )
        self.vision, self.text = _image_tower(config), _text_tower(config)
        scale, bias = initial_scale_and_bias(config)
        self.logit_scale = nn.Parameter(scale)
        self.logit_bias = None if bias is None else nn.Parameter(bias)

    @property
    def scale(self) -> Tensor:
        """The factor on cosines, a scalar: the inverse temperature; with a softmax loss at most 100 (CLIP, 2.5)."""
        if self.config.sigmoid:
            # SigLIP has no such limit
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
            images: float [B, 3, H, W] in [0, 1], H = W = `config.image_size` (`dalle.generation.rerank` resizes). A
                NaN makes the embedding of its image NaN, and of no other.
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

    def pooled_image(self, images: Tensor) -> Tensor:
        """The image tower's output before its projection, as linear probes take it (CLIP paper, appendix A.3).

        Args:
            images: as for `encode_image`.

        Returns:
            float32 [B, C]; of a SigLIP, which has no projection, as `encode_image(images, normalize=False)`.
        """
        self._check(images)
        pooled: Tensor = self.vision.pooled(images)
        return pooled.float()

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
        # The embedding is read at EOS, the states are those of all tokens
        return TextStates(states.float(), mask, self.text.project(states, end).float())

    def layers_from_top(self) -> dict[str, int]:
        """The distance of each parameter from its tower's output, for layer-wise learning rate decay.

        0 for everything after the blocks, 1 for the last block, and depth + 1 for everything before the first block.
        """
        layers = dict.fromkeys(dict(self.named_parameters()), 0)  # logit scale and bias are in neither tower
        for prefix, tower in (("vision.", self.vision), ("text.", self.text)):
            layers |= {prefix + name: layer for name, layer in tower.layers_from_top().items()}
        return layers

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of a batch of pairs for `contrastive_loss`: images [B, D], texts [B, D], scale (scalar)."""
        return self.encode_image(images), self.encode_text(text), self.scale

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the image tower, first block to last, for a perceptual loss; differentiable.

        Args:
            images: float [B, 3, H, W], as for `encode_image`.

        Returns:
            One [B, C, h, w] per block of the image tower; of a ResNet, one per stage.
        """
        self._check(images)
        return self.vision.maps(images)

    def _ids(self, text: Tensor | Sequence[str]) -> Tensor:
        if not isinstance(text, Tensor):
            if self.tokenizer is None:
                raise ValueError(self.no_tokenizer)
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


def _image_tower(config: CLIPConfig) -> ImageTower:
    if config.missing == "image":
        return MissingImageTower()
    if config.resnet is not None:
        return ResNet(config)
    return PooledVisionTransformer(config) if config.towers == "siglip" else VisionTransformer(config)


def _text_tower(config: CLIPConfig) -> TextTower:
    if config.missing == "text":
        return MissingTextTower()
    if config.towers == "xlm_roberta":
        return XLMRobertaText(config)
    return UnmaskedTextTransformer(config) if config.towers == "siglip" else TextTransformer(config)


def initial_scale_and_bias(config: CLIPConfig) -> tuple[Tensor, Tensor | None]:
    """Initial `logit_scale` and `logit_bias`; the bias is None with a softmax loss."""
    # The parameter is the logarithm
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
        # Lowering x (gradient above 0) still passes
        return torch.where(over & (grad < 0), torch.zeros_like(grad), grad), None
