"""All blocks of a transformer over few tokens a row, on top of a cache, in one call (csrc/decode_step.h).

At few tokens a step the weights and the cache are read once and little is computed. What PyTorch needs between two
products (waking a thread, running Python whose code the weights have driven out of the CPU's caches) is then a third of
the time.
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
    angles,
    fit_heads,
    number,
    place_tokens,
    pointer,
    readable,
    struct,
)
from dalle.kernels.pattern import LayerMask

_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "swiglu", "geglu")  # by their numbers there

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
    """`dalle.kernels.decode_step.decode_step`, where there is code for these weights and this cache."""
    return Step(layers, cache, rows, activation, rotate_values) if _known(layers, cache) else None


def _known(layers: Sequence[LayerWeights], cache: KVCache) -> bool:
    matrices = [matrix for layer in layers for matrix in _matrices(layer)]
    first = matrices[0].weight
    heads, width = cache.keys.shape[2], cache.keys.shape[4]
    return (
        len({matrix.weight.dtype for matrix in matrices}) == 1
        and all(matrix.weight.device.type == "cpu" for matrix in matrices)
        and (first.dtype == torch.int8 or first.dtype == cache.keys.dtype)
        and f"step_{bindings.TYPES.get(first.dtype)}_{bindings.TYPES.get(cache.keys.dtype)}" in bindings.functions()
        and all(matrix.weight.is_contiguous() for matrix in matrices)
        and all(side % bindings.STEP == 0 for matrix in matrices for side in matrix.weight.shape)
        and readable(cache, heads, width)
        and _alike(layers, heads * width, width)
    )


def _alike(layers: Sequence[LayerWeights], inner: int, head: int) -> bool:
    """Whether all blocks are of the sizes for which room is made: a module's parameters can be put in its place."""
    up, down = layers[0].up.weight, layers[0].down.weight
    width, hidden = down.shape
    shapes = [(3 * inner, width), (width, inner), (up.shape[0], width), (width, hidden)]
    maps = [pair for layer in layers for pair in zip(_matrices(layer), shapes, strict=True)]
    norms = [n for one in layers for n in (one.attention_norm, one.attention_end, one.feed_norm, one.feed_end)]
    vectors = [norm.weight for norm in norms if norm is not None]
    vectors += [scale for one in layers for scale in (one.attention_scale, one.feed_scale) if scale is not None]
    return (
        up.shape[0] in (hidden, 2 * hidden)
        and all(matrix.weight.shape == shape for matrix, shape in maps)
        and all(matrix.bias is None or matrix.bias.shape == shape[:1] for matrix, shape in maps)
        and all(vector.shape == (width,) for vector in vectors)
        and all(fit_heads((layer.q_norm, layer.k_norm), head) for layer in layers)
    )


class Step:
    """One step of the blocks on top of a cache, prepared once for all steps of so many tokens."""

    def __init__(
        self, layers: Sequence[LayerWeights], cache: KVCache, rows: int, activation: str, rotate_values: bool
    ) -> None:
        self._kept = Addresses()
        self.keys, self.values = cache.keys, cache.values
        up, down = layers[0].up.weight, layers[0].down.weight
        width, hidden = down.shape
        inner = cache.keys.shape[2] * cache.keys.shape[4]
        sizes = {"x": width, "normed": width, "qkv": 3 * inner, "mixed": inner, "wide": up.shape[0]}
        sizes |= {"active": hidden, "narrow": max(width, inner, hidden)}
        self.room = {name: torch.empty(rows, size, dtype=torch.float32, device="cpu") for name, size in sizes.items()}
        room = {name: tensor.data_ptr() for name, tensor in self.room.items()}
        self.layers = (_Layer * len(layers))(
            *(self._layer(one, cache, i, rotate_values) for i, one in enumerate(layers))
        )
        for layer in self.layers:
            layer.attention.qkv, layer.attention.mixed = room["qkv"], room["mixed"]
        self.step = _Step(
            rows=rows, width=width, hidden=hidden, layers=len(layers), **room,
            activation=_ACTIVATIONS.index(activation), layer=ctypes.addressof(self.layers),
        )  # fmt: skip
        self.function = bindings.functions()[f"step_{bindings.TYPES[up.dtype]}_{bindings.TYPES[cache.keys.dtype]}"]

    def serves(self, cache: KVCache, rows: int) -> bool:
        """Whether it was made for the tensors that the cache has now, and for so many rows."""
        return self.step.rows == rows and self.keys is cache.keys and self.values is cache.values

    def run(self, x: Tensor, masks: Sequence[LayerMask], rope: Rope | None, cache: KVCache) -> Tensor:
        """What the blocks make of few tokens a row [B, T, C]; keys and values are stored behind the others."""
        turns = angles(rope)
        kept = [
            place_tokens(layer.attention, x.shape[1], mask, turns, cache.position)
            for layer, mask in zip(self.layers, masks, strict=True)
        ]
        self.room["x"].copy_(x.flatten(0, 1))
        self.function(ctypes.byref(self.step), bindings.threads(self.step.rows * self.step.width * self.step.hidden))
        del kept
        return self.room["x"].to(x.dtype, copy=True).view(x.shape)

    def _layer(self, layer: LayerWeights, cache: KVCache, index: int, rotate_values: bool) -> ctypes.Structure:
        kept = self._kept
        qkv, out, up, down = (kept.matrix(matrix) for matrix in _matrices(layer))
        return _Layer(
            attention_norm=kept.norm(layer.attention_norm), feed_norm=kept.norm(layer.feed_norm),
            attention_end=kept.norm(layer.attention_end), feed_end=kept.norm(layer.feed_end),
            attention_scale=kept.of(layer.attention_scale), feed_scale=kept.of(layer.feed_scale),
            qkv=qkv, out=out, up=up, down=down,
            attention=kept.attention(cache, index, layer.q_norm, layer.k_norm, rotate_values),
        )  # fmt: skip


def _matrices(layer: LayerWeights) -> tuple[MatrixWeights, ...]:
    return layer.qkv, layer.out, layer.up, layer.down
