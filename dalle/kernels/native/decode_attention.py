"""Attention of a few new tokens per sequence to a KV cache: norms, rotary positions and attention in one call.

The cache is read only once. PyTorch's overhead between its functions (waking threads, running Python whose code the
cache has evicted from the CPU's caches) would be a third of the time.
"""

from __future__ import annotations

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dalle.kernels.block_weights import MAX_TOKENS, MatrixWeights, NormWeights, Rope
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.native import bindings
from dalle.kernels.pattern import LayerMask, SparseMask
from dalle.kernels.switches import allows_native_inference

_HEAD_WIDTHS = (16, 32, 48, 64, 80, 96, 128, 256)  # compiled for every CPU

pointer, number = ctypes.c_void_p, ctypes.c_int64


def struct(name: str, **fields: type) -> type[ctypes.Structure]:
    """A ctypes structure with these fields, mirroring the C struct of the same name."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Norm = struct("Norm", weight=pointer, bias=pointer, eps=ctypes.c_float, rms=ctypes.c_int32)
Matrix = struct("Matrix", weight=pointer, scale=pointer, bias=pointer, n=number, k=number)
# Order and types of the fields as in csrc/decode_attention.h: ctypes cannot check them
Attention = struct(
    "Attention",
    **dict.fromkeys(("batch", "tokens", "heads", "kv_heads", "head_width", "room", "position"), number),
    **dict.fromkeys(("rotate_values", "norm_stride"), number),
    **dict.fromkeys(("q_norm", "k_norm"), Norm),
    **dict.fromkeys(("cos", "sin", "mask"), pointer),
    **dict.fromkeys(("mask_batch", "mask_token"), number),
    **dict.fromkeys(("keys", "values", "qkv", "mixed", "slots", "positions"), pointer),
    rope_batch=number,
)


class Addresses(list[Tensor]):
    """Builds C structs from tensors, and keeps the tensors alive as long as the structs point to them."""

    def of(self, tensor: Tensor | None) -> int | None:
        """The address of a tensor in float32, copied if necessary; None for None."""
        if tensor is None:
            return None
        self.append(tensor.detach().float().contiguous())  # small: norms, biases, scales
        return self[-1].data_ptr()

    def norm(self, norm: NormWeights | None) -> ctypes.Structure:
        """`struct Norm`; zeros for None."""
        return Norm() if norm is None else Norm(self.of(norm.weight), self.of(norm.bias), norm.eps, norm.rms)

    def matrix(self, matrix: MatrixWeights) -> ctypes.Structure:
        """`struct Matrix` of a linear layer."""
        count, width = matrix.weight.shape
        self.append(matrix.weight.detach())  # in place: weights are never copied
        return Matrix(self[-1].data_ptr(), self.of(matrix.scale), self.of(matrix.bias), count, width)

    def attention(
        self,
        cache: KVCache,
        layer: int,
        heads: int,
        q_norm: NormWeights | None,
        k_norm: NormWeights | None,
        rotate_values: bool,
    ) -> ctypes.Structure:
        """`struct Attention` of one layer over a cache; the rest is set for each call."""
        _, _, kv_heads, room, width = cache.keys.shape
        return Attention(
            heads=heads, kv_heads=kv_heads, head_width=width, room=room, rotate_values=rotate_values,
            q_norm=self.norm(q_norm), k_norm=self.norm(k_norm),
            # One weight for all heads, or one per head
            norm_stride=width if q_norm is not None and q_norm.weight.ndim > 1 else 0,
            keys=cache.keys[layer].data_ptr(), values=cache.values[layer].data_ptr(),
        )  # fmt: skip


class CachedAttention:
    """One layer's attention over a cache, prepared once for all steps."""

    def __init__(
        self,
        cache: KVCache,
        layer: int,
        heads: int,
        q_norm: NormWeights | None,
        k_norm: NormWeights | None,
        rotate_values: bool,
    ) -> None:
        self._tensors = Addresses()
        self.keys, self.values = cache.keys, cache.values
        self.attention = self._tensors.attention(cache, layer, heads, q_norm, k_norm, rotate_values)
        self.function = bindings.functions()[f"decode_attention_{bindings.DTYPE_NAMES[cache.keys.dtype]}"]

    def run(self, qkv: Tensor, mask: LayerMask, rope: Rope | None, cache: KVCache) -> Tensor:
        """Queries, keys and values [B, T, (H + 2 G) D] to [B, T, H D]; appends the keys and values to the cache."""
        qkv = qkv.contiguous()
        mixed = qkv.new_empty(*qkv.shape[:2], self.attention.heads * self.attention.head_width)
        alive = set_tokens(self.attention, qkv.shape[1], mask, to_float32(rope), cache)
        self.attention.qkv, self.attention.mixed = qkv.data_ptr(), mixed.data_ptr()
        work = 2 * mixed.numel() * (cache.position + 1)  # scores, and the sum of the values
        self.function(ctypes.byref(self.attention), bindings.threads(work))
        del alive  # not earlier: the call reads their memory
        return mixed


# What was prepared for each layer of a cache; None: there is no native code for it
# Weak keys: what was prepared goes with its cache
prepared: WeakKeyDictionary[KVCache, dict[int, CachedAttention | None]] = WeakKeyDictionary()


def decode_attention(
    qkv: Tensor,
    mask: LayerMask,
    cache: KVCache,
    layer: int,
    q_norm: nn.Module | None,
    k_norm: nn.Module | None,
    rope: Rope | None,
    rotate_values: bool,
    dropout: float = 0.0,
) -> Tensor | None:
    """`dalle.kernels.decode_attention.decode_attention`, for a few tokens per sequence after the prefill."""
    # Position 0 is the prefill, whose many rows PyTorch multiplies faster; full attention (None) has no native code
    if not cache.position or mask is None or dropout or not allows_native_inference(qkv) or qkv.shape[1] > MAX_TOKENS:
        return None
    if not has_room(cache, *qkv.shape[:2]) or qkv.dtype != cache.keys.dtype:
        return None
    layers = prepared.setdefault(cache, {})
    found = layers.get(layer)
    # Prepared again if the cache's tensors were replaced: the old addresses would be dangling
    if layer not in layers or (found is not None and not (found.keys is cache.keys and found.values is cache.values)):
        norms = norm_weights(q_norm), norm_weights(k_norm)
        kv_heads, width = cache.keys.shape[2], cache.keys.shape[4]
        heads = qkv.shape[-1] // width - 2 * kv_heads
        known = f"decode_attention_{bindings.DTYPE_NAMES.get(qkv.dtype)}" in bindings.functions()
        whole = qkv.shape[-1] % width == 0 and heads > 0 and heads % kv_heads == 0
        fits = known and whole and readable(cache) and fit_heads(norms, heads, cache)
        layers[layer] = found = CachedAttention(cache, layer, heads, *norms, rotate_values) if fits else None
    return None if found is None else found.run(qkv, mask, rope, cache)


def norm_weights(norm: nn.Module | None) -> NormWeights | None:
    """The weights of a LayerNorm or RMSNorm."""
    if norm is None:
        return None
    assert isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) and norm.eps is not None
    return NormWeights(norm.weight, getattr(norm, "bias", None), norm.eps, isinstance(norm, nn.RMSNorm))


def has_room(cache: KVCache, batch: int, tokens: int) -> bool:
    """Whether the cache has this many rows, and room for the tokens; if not, the plain version raises the error."""
    return batch == cache.batch and 0 <= cache.position <= cache.keys.shape[3] - tokens


def readable(cache: KVCache) -> bool:
    """Whether native code can read the cache: a head width it is compiled for, and contiguous layers."""
    return (
        cache.keys.shape[4] in _HEAD_WIDTHS
        and cache.values.shape == cache.keys.shape
        and cache.values.dtype == cache.keys.dtype
        and cache.keys[0].is_contiguous()
        and cache.values[0].is_contiguous()
    )


def fit_heads(norms: tuple[NormWeights | None, NormWeights | None], heads: int, cache: KVCache) -> bool:
    """Whether the norms on queries and keys, if any, have the heads' width: both one for all heads, or one for each."""
    kv_heads, width = cache.keys.shape[2], cache.keys.shape[4]
    found = [None if norm is None else tuple(norm.weight.shape) for norm in norms]
    return found in ([None, None], [(width,), (width,)], [(heads, 1, width), (kv_heads, 1, width)])


def to_float32(rope: Rope | None) -> Rope | None:
    """Cosines and sines in float32, contiguous."""
    return None if rope is None else (rope[0].float().contiguous(), rope[1].float().contiguous())


def set_tokens(
    attention: ctypes.Structure, tokens: int, mask: LayerMask, rope: Rope | None, cache: KVCache
) -> tuple[object, ...]:
    """Set the new tokens' positions and mask; returns the tensors that must stay alive during the call.

    Raises:
        ValueError: mask or rope have another number of tokens.
    """
    attention.batch, attention.tokens, attention.position = cache.batch, tokens, cache.position
    places = cache.places
    attention.slots, attention.positions = (None, None) if places is None else (one.data_ptr() for one in places)
    half = attention.head_width // 2
    attention.rope_batch = 0 if places is None else tokens * half
    if rope is not None:
        wanted = (tokens, half) if places is None else (cache.batch, 1, tokens, half)
        if not rope[0].shape == rope[1].shape == wanted:
            raise ValueError(f"rope is {[list(table.shape) for table in rope]}; expected {list(wanted)} each")
        attention.cos, attention.sin = rope[0].data_ptr(), rope[1].data_ptr()
    attention.mask, mask = None, mask.dense if isinstance(mask, SparseMask) else mask
    if isinstance(mask, Tensor):
        _check_mask(mask, attention.batch, tokens, cache.position + tokens)
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        attention.mask, attention.mask_token = mask.data_ptr(), mask.stride(-2)
        # One mask for the whole batch is read again for each sequence: stride 0
        attention.mask_batch = mask.stride(0) if mask.ndim == 4 and mask.shape[0] > 1 else 0
    return mask, rope, places


def _check_mask(mask: Tensor, batch: int, tokens: int, keys: int) -> None:
    """Raise unless the mask fits these queries and keys: native code would read beyond the end of a smaller one."""
    square = mask.shape == (tokens, keys)
    batched = mask.ndim == 4 and len(mask) in (1, batch) and mask.shape[1:] == (1, tokens, keys)
    if not (square or batched) or mask.dtype != torch.bool or mask.device.type != "cpu":
        raise ValueError(
            f"the mask is {list(mask.shape)} {mask.dtype} on {mask.device}; expected bool [{tokens}, {keys}] or "
            f"[{batch}, 1, {tokens}, {keys}] on the CPU"
        )
