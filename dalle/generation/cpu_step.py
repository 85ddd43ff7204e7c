"""A decoder for CPUs: all blocks of a decode step in one native call, where the result is the same and faster."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dalle.kernels.block_weights import MAX_ROWS, MAX_TOKENS, LayerWeights, MatrixWeights, NormWeights
from dalle.kernels.decode_step import DecodeStep, decode_step
from dalle.kernels.linear import Int8Linear, Linear
from dalle.kernels.pattern import LayerMask
from dalle.kernels.switches import allows_native_inference
from dalle.models.transformer import Block, Context, Scale, Transformer


class FusedBlocks:
    """Runs a transformer's blocks as one fused step if it can, else one by one; for the `blocks` of `forward`.

    Attributes:
        step: the step prepared for the last call's cache; None: its blocks ran one by one.
    """

    def __init__(self, transformer: Transformer) -> None:
        self.transformer = transformer
        self.step: DecodeStep | None = None

    def __call__(self, x: Tensor, masks: Sequence[LayerMask], context: Context) -> Tensor:
        """Run tokens [B, T, C] through all blocks, to [B, T, C]."""
        cache = context.cache
        self.step = self._step_for(x, masks, context)
        if self.step is None or cache is None:
            return self.transformer.run_blocks(x, masks, context)
        return self.step.run(x, masks, context.rope, cache)

    def _step_for(self, x: Tensor, masks: Sequence[LayerMask], context: Context) -> DecodeStep | None:
        """The fused step for this call, or None if it would compute something else or be slower."""
        cache, model = context.cache, self.transformer
        # Prefill (position 0) has too many rows; there is no native code for full attention or token shift
        if (
            cache is None
            or not cache.position
            or any(mask is None for mask in masks)  # `in` would compare tensors
            or context.shift is not None
            or not allows_native_inference(x)
        ):
            return None
        if model.training and (model.config.dropout or model.config.attention_dropout):  # dropout
            return None
        rows = x.shape[0] * x.shape[1]
        if len(x) != cache.batch or x.dtype != cache.keys.dtype:
            return None
        if self.step is not None and self.step.serves(cache, rows):
            return self.step
        # The checks that large batches fail come first, as those repeat them in every step
        dtype = _linears(model.blocks[0])[0].weight.dtype
        if rows > MAX_ROWS.get(dtype, 0) or x.shape[1] > MAX_TOKENS or model.config.reversible:
            return None
        # One native function handles all matrices, so they must all be of one type
        linears = {type(module) for block in model.blocks for module in _linears(block)}
        if len(linears) > 1 or not linears <= {Linear, Int8Linear}:
            return None  # adapters (LoRA) and quantized layers of another kind compute something else
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.blocks.modules()):  # never called
            return None
        layers = [_weights(block) for block in model.blocks]
        return decode_step(layers, cache, rows, model.config.feed_forward, model.config.rotate_values)


def _weights(block: nn.Module) -> LayerWeights:
    assert isinstance(block, Block)
    attention, feed = block.attention, block.feed_forward
    attention_end, attention_scale = _end(block.attention_end)
    feed_end, feed_scale = _end(block.feed_forward_end)
    return LayerWeights(
        _norm(block.attention_norm),
        _matrix(attention.qkv),
        None if attention.q_norm is None else _norm(attention.q_norm),
        None if attention.k_norm is None else _norm(attention.k_norm),
        _matrix(attention.out),
        attention_end,
        attention_scale,
        _norm(block.feed_forward_norm),
        _matrix(feed.up),
        _matrix(feed.down),
        feed_end,
        feed_scale,
    )


def _linears(block: nn.Module) -> tuple[Linear | Int8Linear, ...]:
    assert isinstance(block, Block)
    return block.attention.qkv, block.attention.out, block.feed_forward.up, block.feed_forward.down


def _norm(norm: nn.Module) -> NormWeights:
    assert isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) and norm.eps is not None
    return NormWeights(norm.weight, getattr(norm, "bias", None), norm.eps, isinstance(norm, nn.RMSNorm))


def _matrix(linear: nn.Module) -> MatrixWeights:
    assert isinstance(linear, (Linear, Int8Linear))
    return MatrixWeights(linear.weight, linear.scale if isinstance(linear, Int8Linear) else None, linear.bias)


def _end(parts: nn.Module) -> tuple[NormWeights | None, Tensor | None]:
    """The norm and the scale at the end of a branch."""
    norm: NormWeights | None = None
    scale: Tensor | None = None
    for part in parts.children():
        if isinstance(part, Scale):
            scale = part.weight
        else:
            norm = _norm(part)
    return norm, scale
