"""All blocks of a transformer over a few new tokens per sequence, with a KV cache, in one call (csrc/decode_step.h).

With few tokens per step, the time goes into reading the weights and the cache once; little is computed. PyTorch's
overhead between two products (waking threads, running Python whose code the weights have evicted from the CPU's
caches) would then be a third of the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.kernels.block_weights import LayerWeights, MatrixWeights, Rope
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.native import bindings
from dalle.kernels.native.decode_attention import (
    Addresses,
    Attention,
    Matrix,
    Norm,
    fit_heads,
    number,
    pointer,
    readable,
    set_tokens,
    struct,
    to_float32,
)
from dalle.kernels.pattern import LayerMask

_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "swiglu", "geglu", "geglu_tanh")  # in the order of `enum Activation`

_Layer = struct(
    "Layer",
    **dict.fromkeys(("attention_norm", "attention_end", "feed_norm", "feed_end"), Norm),
    **dict.fromkeys(("attention_scale", "feed_scale"), pointer),
    **dict.fromkeys(("qkv", "out", "up", "down"), Matrix),
    attention=Attention,
)
_Step = struct(
    "Step",
    **dict.fromkeys(("rows", "width", "hidden", "layers", "activation"), number),
    **dict.fromkeys(("layer", "x", "normed", "qkv", "mixed", "wide", "active", "narrow"), pointer),
)


def decode_step(
    layers: Sequence[LayerWeights], cache: KVCache, rows: int, activation: str, rotate_values: bool
) -> Step | None:
    """`dalle.kernels.decode_step.decode_step`, if there is native code for these weights and this cache."""
    return Step(layers, cache, rows, activation, rotate_values) if _supported(layers, cache) else None


def _supported(layers: Sequence[LayerWeights], cache: KVCache) -> bool:
    matrices = [matrix for layer in layers for matrix in _matrices(layer)]
    first = matrices[0].weight
    return (
        # One function runs all matrices, so they must share a dtype
        len({matrix.weight.dtype for matrix in matrices}) == 1
        and all(matrix.weight.device.type == "cpu" for matrix in matrices)
        and (first.dtype == torch.int8 or first.dtype == cache.keys.dtype)
        and f"decode_step_{bindings.DTYPE_NAMES.get(first.dtype)}_{bindings.DTYPE_NAMES.get(cache.keys.dtype)}"
        in bindings.functions()
        and all(matrix.weight.is_contiguous() for matrix in matrices)
        and all(side % bindings.ROW_MULTIPLE == 0 for matrix in matrices for side in matrix.weight.shape)
        and readable(cache)
        and _equal_shapes(layers, cache)
    )


def _heads(layers: Sequence[LayerWeights], cache: KVCache) -> int:
    """Heads of the queries."""
    return layers[0].out.weight.shape[1] // cache.keys.shape[4]


def _equal_shapes(layers: Sequence[LayerWeights], cache: KVCache) -> bool:
    """Whether all blocks have the shapes that the buffers are sized for; a user may have replaced some parameters."""
    up, down = layers[0].up.weight, layers[0].down.weight
    width, hidden = down.shape
    heads, kv_heads, head = _heads(layers, cache), cache.keys.shape[2], cache.keys.shape[4]
    rows = (heads + 2 * kv_heads) * head
    shapes = [(rows, width), (width, heads * head), (up.shape[0], width), (width, hidden)]
    maps = [pair for layer in layers for pair in zip(_matrices(layer), shapes, strict=True)]
    norms = [n for one in layers for n in (one.attention_norm, one.attention_end, one.feed_norm, one.feed_end)]
    vectors = [norm.weight for norm in norms if norm is not None]
    vectors += [scale for one in layers for scale in (one.attention_scale, one.feed_scale) if scale is not None]
    return (
        up.shape[0] in (hidden, 2 * hidden)
        and heads > 0
        and heads % kv_heads == 0
        and all(matrix.weight.shape == shape for matrix, shape in maps)
        and all(matrix.bias is None or matrix.bias.shape == shape[:1] for matrix, shape in maps)
        and all(vector.shape == (width,) for vector in vectors)
        and all(fit_heads((layer.q_norm, layer.k_norm), heads, cache) for layer in layers)
    )


class Step:
    """A decode step over one KV cache, prepared once for all steps with the same number of rows."""

    def __init__(
        self, layers: Sequence[LayerWeights], cache: KVCache, rows: int, activation: str, rotate_values: bool
    ) -> None:
        self._tensors = Addresses()
        self.keys, self.values = cache.keys, cache.values
        up, down = layers[0].up.weight, layers[0].down.weight
        width, hidden = down.shape
        self.heads, head = _heads(layers, cache), cache.keys.shape[4]
        inner, rows_of_qkv = self.heads * head, (self.heads + 2 * cache.keys.shape[2]) * head
        # Activations between the operations: float32, allocated once
        sizes = {"x": width, "normed": width, "qkv": rows_of_qkv, "mixed": inner, "wide": up.shape[0]}
        # `narrow`: activations rounded to the weights' dtype
        sizes |= {"active": hidden, "narrow": max(width, inner, hidden)}
        self.buffers = {
            name: torch.empty(rows, size, dtype=torch.float32, device="cpu") for name, size in sizes.items()
        }
        addresses = {name: tensor.data_ptr() for name, tensor in self.buffers.items()}
        self.layers = (_Layer * len(layers))(
            *(self._layer(one, cache, i, rotate_values) for i, one in enumerate(layers))
        )
        # The blocks run one after another, so one buffer serves all
        for layer in self.layers:
            layer.attention.qkv, layer.attention.mixed = addresses["qkv"], addresses["mixed"]
        self.step = _Step(
            rows=rows, width=width, hidden=hidden, layers=len(layers), **addresses,
            activation=_ACTIVATIONS.index(activation), layer=ctypes.addressof(self.layers),
        )  # fmt: skip
        names = bindings.DTYPE_NAMES[up.dtype], bindings.DTYPE_NAMES[cache.keys.dtype]
        self.function = bindings.functions()["decode_step_{}_{}".format(*names)]

    def serves(self, cache: KVCache, rows: int) -> bool:
        """Whether it was prepared for the tensors that the cache has now, and for this many rows."""
        return self.step.rows == rows and self.keys is cache.keys and self.values is cache.values

    def run(self, x: Tensor, masks: Sequence[LayerMask], rope: Rope | None, cache: KVCache) -> Tensor:
        """Run a few tokens per sequence [B, T, C] through all blocks; appends their keys and values to the cache."""
        rope = to_float32(rope)
        alive = [
            set_tokens(layer.attention, x.shape[1], mask, rope, cache)
            for layer, mask in zip(self.layers, masks, strict=True)
        ]
        self.buffers["x"].copy_(x.flatten(0, 1))
        self.function(ctypes.byref(self.step), bindings.threads(self.step.rows * self.step.width * self.step.hidden))
        del alive  # not earlier: the call reads their memory
        # A copy, as the next step overwrites the buffer
        return self.buffers["x"].to(x.dtype, copy=True).view(x.shape)

    def _layer(self, layer: LayerWeights, cache: KVCache, index: int, rotate_values: bool) -> ctypes.Structure:
        tensors = self._tensors
        qkv, out, up, down = (tensors.matrix(matrix) for matrix in _matrices(layer))
        return _Layer(
            attention_norm=tensors.norm(layer.attention_norm), feed_norm=tensors.norm(layer.feed_norm),
            attention_end=tensors.norm(layer.attention_end), feed_end=tensors.norm(layer.feed_end),
            attention_scale=tensors.of(layer.attention_scale), feed_scale=tensors.of(layer.feed_scale),
            qkv=qkv, out=out, up=up, down=down,
            attention=tensors.attention(cache, index, self.heads, layer.q_norm, layer.k_norm, rotate_values),
        )  # fmt: skip


def _matrices(layer: LayerWeights) -> tuple[MatrixWeights, ...]:
    return layer.qkv, layer.out, layer.up, layer.down
