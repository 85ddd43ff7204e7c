"""Few tokens a row through attention, or through all blocks, in one call of compiled code (dalle/kernels/native).

At few tokens a step the weights and the cache are read once and little is computed. What torch needs between two
products (waking a thread, running Python whose code the weights have driven out of the cache) is then a third of the
time. Only called where it computes what dalle/models/transformer.py does; else that runs as it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dalle.kernels import native
from dalle.kernels.attention import KVCache
from dalle.kernels.linear import Int8Linear, Linear
from dalle.kernels.sparse import LayerMask, Sparse

if TYPE_CHECKING:
    from dalle.models.transformer import Attention, Block, Rope, Transformer

# Up to so many rows it is faster to run all blocks in one call than in torch's functions (docs/log.md).
_MOST_ROWS = {torch.float32: 16, torch.bfloat16: 16, torch.int8: 64}
_MOST_TOKENS = 32  # of one row: each reads all keys again
_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "swiglu", "geglu")  # by their numbers there
_HEADS = (16, 32, 48, 64, 80, 96, 128)  # widths of heads that there is code for, whatever the CPU

_pointer, _number = ctypes.c_void_p, ctypes.c_int64


def _struct(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_Norm = _struct("Norm", weight=_pointer, bias=_pointer, eps=ctypes.c_float, rms=ctypes.c_int32)
_Matrix = _struct("Matrix", weight=_pointer, scale=_pointer, bias=_pointer, n=_number, k=_number)
_Attention = _struct(
    "Attention",
    **dict.fromkeys(("batch", "tokens", "heads", "head_width", "room", "position", "rotate_values"), _number),
    **dict.fromkeys(("q_norm", "k_norm"), _Norm),
    **dict.fromkeys(("cos", "sin", "mask"), _pointer),
    **dict.fromkeys(("mask_batch", "mask_token"), _number),
    **dict.fromkeys(("keys", "values", "qkv", "mixed"), _pointer),
)
_Layer = _struct(
    "Layer",
    **dict.fromkeys(("attention_norm", "attention_end", "feed_norm", "feed_end"), _Norm),
    **dict.fromkeys(("attention_scale", "feed_scale"), _pointer),
    **dict.fromkeys(("qkv", "out", "up", "down"), _Matrix),
    attention=_Attention,
)
_Step = _struct(
    "Step",
    **dict.fromkeys(("rows", "width", "hidden", "layers", "activation"), _number),
    **dict.fromkeys(("layer", "x", "normed", "qkv", "mixed", "wide", "active", "narrow"), _pointer),
)


class _Kept(list[Tensor]):
    """Tensors that structures point to, kept as long as these."""

    def address(self, tensor: Tensor | None) -> int | None:
        """The address of a float32 copy of a tensor (or of itself); None of none."""
        if tensor is None:
            return None
        self.append(tensor.detach().float().contiguous())
        return self[-1].data_ptr()

    def norm(self, module: nn.Module | None) -> ctypes.Structure:
        if module is None:
            return _Norm()
        assert isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.eps is not None
        bias = getattr(module, "bias", None)
        return _Norm(self.address(module.weight), self.address(bias), module.eps, isinstance(module, nn.RMSNorm))

    def matrix(self, linear: Linear | Int8Linear) -> ctypes.Structure:
        scale = linear.scale if isinstance(linear, Int8Linear) else None
        count, width = linear.weight.shape
        self.append(linear.weight.detach())
        return _Matrix(self[-1].data_ptr(), self.address(scale), self.address(linear.bias), count, width)

    def attention(self, module: Attention, cache: KVCache, layer: int) -> ctypes.Structure:
        _, batch, heads, room, width = cache.keys.shape
        return _Attention(
            batch=batch, heads=heads, head_width=width, room=room, rotate_values=module.rotate_values,
            q_norm=self.norm(module.q_norm), k_norm=self.norm(module.k_norm),
            keys=cache.keys[layer].data_ptr(), values=cache.values[layer].data_ptr(),
        )  # fmt: skip


class Attend:
    """Attention of few tokens a row in one layer, on top of a cache; prepared once for all its steps."""

    def __init__(self, module: Attention, cache: KVCache, layer: int) -> None:
        self._kept = _Kept()
        self.keys, self.values = cache.keys, cache.values
        self.attention = self._kept.attention(module, cache, layer)
        self.function = native.functions()[f"attend_{native.TYPES[cache.keys.dtype]}"]

    def run(self, qkv: Tensor, mask: LayerMask, rope: Rope | None, cache: KVCache) -> Tensor:
        """From queries, keys and values [B, T, 3 H D] to [B, T, H D]; keys and values are stored behind the others."""
        qkv = qkv.contiguous()
        mixed = qkv.new_empty(*qkv.shape[:2], qkv.shape[-1] // 3)
        kept = _place(self.attention, qkv.shape[1], mask, _angles(rope), cache.position)
        self.attention.qkv, self.attention.mixed = qkv.data_ptr(), mixed.data_ptr()
        work = 2 * mixed.numel() * (cache.position + 1)
        self.function(ctypes.byref(self.attention), native.threads(work))
        del kept
        return mixed


def attend(
    module: Attention, qkv: Tensor, mask: LayerMask, rope: Rope | None, cache: KVCache, layer: int
) -> Tensor | None:
    """What attention gives for few tokens a row [B, T, 3 H D], if there is compiled code for it; else None."""
    if qkv.shape[1] > _MOST_TOKENS or not _fits(qkv, cache) or qkv.dtype != cache.keys.dtype:
        return None
    prepared = cache.steps.get(layer)
    if layer not in cache.steps or (isinstance(prepared, Attend) and not _of(prepared, cache)):
        prepared = Attend(module, cache, layer) if _attendable(module, qkv, cache) else None
        cache.steps[layer] = prepared
    return prepared.run(qkv, mask, rope, cache) if isinstance(prepared, Attend) else None


def _fits(x: Tensor, cache: KVCache) -> bool:
    """Whether the cache has these rows, and room for these tokens [B, T, ...]; torch says what is wrong if not."""
    _, batch, _, room, _ = cache.keys.shape
    return len(x) == batch and 0 <= cache.position <= room - x.shape[1]


def _of(prepared: Attend | Step, cache: KVCache) -> bool:
    """Whether this was prepared for the tensors that the cache has now."""
    return prepared.keys is cache.keys and prepared.values is cache.values


def _attendable(module: Attention, qkv: Tensor, cache: KVCache) -> bool:
    width = qkv.shape[-1] // (3 * module.heads)
    known = f"attend_{native.TYPES.get(qkv.dtype)}" in native.functions()
    return known and _readable(cache, module.heads, width) and _normed(module, width)


def _readable(cache: KVCache, heads: int, width: int) -> bool:
    """Whether compiled code can read the cache: such heads, of a width that there is code for, without gaps."""
    return (
        width in _HEADS
        and (cache.keys.shape[2], cache.keys.shape[4]) == (heads, width)
        and cache.values.shape == cache.keys.shape
        and cache.values.dtype == cache.keys.dtype
        and cache.keys[0].is_contiguous()
        and cache.values[0].is_contiguous()
    )


def _normed(module: Attention, width: int) -> bool:
    """Whether the norms of queries and keys, where they are, are of heads of this width."""
    return all(norm is None or norm.weight.shape == (width,) for norm in (module.q_norm, module.k_norm))


def prepare(transformer: Transformer, x: Tensor, cache: KVCache) -> Step | None:
    """A `Step` for tokens [B, T, C], if it computes what the blocks do, and faster: a question of model and machine."""
    rows = x.shape[0] * x.shape[1]
    if not _fits(x, cache):
        return None
    prepared = cache.steps.get("all")
    if not isinstance(prepared, Step) or prepared.step.rows != rows or not _of(prepared, cache):
        prepared = Step(transformer, cache, rows) if _usable(transformer, x, cache) else None
        cache.steps["all"] = prepared
    return prepared


def _usable(transformer: Transformer, x: Tensor, cache: KVCache) -> bool:
    # What large batches fail on comes first: they ask again in every step
    first = _linears(transformer.blocks[0])[0]
    if type(first) not in (Linear, Int8Linear) or transformer.config.reversible:
        return False
    weight = first.weight
    if x.shape[0] * x.shape[1] > _MOST_ROWS.get(weight.dtype, 0) or x.shape[1] > _MOST_TOKENS:
        return False
    linears = [map_ for block in transformer.blocks for map_ in _linears(block)]
    kinds = {type(map_) for map_ in linears}
    if len(kinds) > 1:
        return False
    dtypes = {cache.keys.dtype, x.dtype}
    dtypes |= {map_.weight.dtype for map_ in linears} - ({torch.int8} if kinds == {Int8Linear} else set())
    return (
        len(dtypes) == 1
        and _shaped(transformer)
        and f"step_{native.TYPES.get(weight.dtype)}_{native.TYPES.get(x.dtype)}" in native.functions()
        and all(map_.weight.is_contiguous() and map_.weight.shape[1] % native.STEP == 0 for map_ in linears)
        and all(map_.weight.shape[0] % native.STEP == 0 for map_ in linears)
        and _readable(cache, transformer.config.heads, transformer.config.head_width)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in transformer.blocks.modules())
    )


def _shaped(transformer: Transformer) -> bool:
    """Whether all blocks are of the sizes for which room is made: a module's parameters can be put in its place."""
    config = transformer.config
    blocks: list[Block] = list(transformer.blocks)  # type: ignore[arg-type]
    width, inner, hidden = config.width, config.heads * config.head_width, blocks[0].feed_forward.down.weight.shape[1]
    up = hidden * (2 if config.feed_forward in ("swiglu", "geglu") else 1)
    shapes = [(3 * inner, width), (width, inner), (up, width), (width, hidden)]
    maps = [pair for block in blocks for pair in zip(_linears(block), shapes, strict=True)]
    ends = [part for block in blocks for end in (block.attention_end, block.feed_forward_end) for part in _end(end)]
    vectors = [*ends, *(norm for block in blocks for norm in (block.attention_norm, block.feed_forward_norm))]
    weights = [vector.weight if isinstance(vector, nn.Module) else vector for vector in vectors]
    return (
        all(map_.weight.shape == shape for map_, shape in maps)
        and all(getattr(map_.bias, "shape", shape[:1]) == shape[:1] for map_, shape in maps)
        and all(weight is None or weight.shape == (width,) for weight in weights)
        and all(_normed(block.attention, config.head_width) for block in blocks)
    )


class Step:
    """One step of the blocks on top of a cache, prepared once for all steps of so many tokens."""

    def __init__(self, transformer: Transformer, cache: KVCache, rows: int) -> None:
        config = transformer.config
        self._kept = _Kept()
        self.keys, self.values = cache.keys, cache.values
        blocks: list[Block] = list(transformer.blocks)  # type: ignore[arg-type]
        up, down = blocks[0].feed_forward.up.weight, blocks[0].feed_forward.down.weight
        inner, hidden = config.heads * config.head_width, down.shape[1]
        sizes = {"x": config.width, "normed": config.width, "qkv": 3 * inner, "mixed": inner, "wide": up.shape[0]}
        sizes |= {"active": hidden, "narrow": max(config.width, inner, hidden)}
        self.room = {name: torch.empty(rows, size, dtype=torch.float32, device="cpu") for name, size in sizes.items()}
        room = {name: tensor.data_ptr() for name, tensor in self.room.items()}
        self.layers = (_Layer * len(blocks))(*(self._layer(block, cache, i) for i, block in enumerate(blocks)))
        for layer in self.layers:
            layer.attention.qkv, layer.attention.mixed = room["qkv"], room["mixed"]
        self.step = _Step(
            rows=rows, width=config.width, hidden=hidden, layers=len(blocks), **room,
            activation=_ACTIVATIONS.index(config.feed_forward), layer=ctypes.addressof(self.layers),
        )  # fmt: skip
        self.function = native.functions()[f"step_{native.TYPES[up.dtype]}_{native.TYPES[cache.keys.dtype]}"]

    def run(self, x: Tensor, masks: Sequence[LayerMask], rope: Rope | None, cache: KVCache) -> Tensor:
        """What the blocks make of few tokens a row [B, T, C]; keys and values are stored behind the others."""
        angles = _angles(rope)
        kept = [
            _place(layer.attention, x.shape[1], mask, angles, cache.position)
            for layer, mask in zip(self.layers, masks, strict=True)
        ]
        self.room["x"].copy_(x.flatten(0, 1))
        self.function(ctypes.byref(self.step), native.threads(self.step.rows * self.step.width * self.step.hidden))
        del kept
        return self.room["x"].to(x.dtype, copy=True).view(x.shape)

    def _layer(self, block: Block, cache: KVCache, index: int) -> ctypes.Structure:
        kept = self._kept
        ends = [_end(end) for end in (block.attention_end, block.feed_forward_end)]
        qkv, out, up, down = (kept.matrix(map_) for map_ in _linears(block))
        return _Layer(
            attention_norm=kept.norm(block.attention_norm), feed_norm=kept.norm(block.feed_forward_norm),
            attention_end=kept.norm(ends[0][0]), feed_end=kept.norm(ends[1][0]),
            attention_scale=kept.address(ends[0][1]), feed_scale=kept.address(ends[1][1]),
            qkv=qkv, out=out, up=up, down=down, attention=kept.attention(block.attention, cache, index),
        )  # fmt: skip


def _angles(rope: Rope | None) -> Rope | None:
    return None if rope is None else (rope[0].float().contiguous(), rope[1].float().contiguous())


def _place(
    attention: ctypes.Structure, tokens: int, mask: LayerMask, angles: Rope | None, position: int
) -> tuple[object, ...]:
    """Tell where the tokens stand and what they may look at; gives what must live until the call is over.

    Raises:
        ValueError: mask or angles are not of so many tokens.
    """
    attention.tokens, attention.position = tokens, position
    if angles is not None:
        wanted = (tokens, attention.head_width // 2)
        if not angles[0].shape == angles[1].shape == wanted:
            raise ValueError(f"rope is {[list(table.shape) for table in angles]}; expected {list(wanted)} each")
        attention.cos, attention.sin = angles[0].data_ptr(), angles[1].data_ptr()
    attention.mask, mask = None, mask.dense if isinstance(mask, Sparse) else mask
    if isinstance(mask, Tensor):
        _check_mask(mask, attention.batch, tokens, position + tokens)
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        attention.mask, attention.mask_token = mask.data_ptr(), mask.stride(-2)
        attention.mask_batch = mask.stride(0) if mask.ndim == 4 and len(mask) > 1 else 0
    return mask, angles


def _check_mask(mask: Tensor, batch: int, tokens: int, keys: int) -> None:
    """Refuse what is no mask of these queries and keys: a smaller one would be read behind its end."""
    square = mask.shape == (tokens, keys)
    batched = mask.ndim == 4 and len(mask) in (1, batch) and mask.shape[1:] == (1, tokens, keys)
    if not (square or batched) or mask.dtype != torch.bool or mask.device.type != "cpu":
        raise ValueError(
            f"the mask is {list(mask.shape)} {mask.dtype} on {mask.device}; expected bool [{tokens}, {keys}] or "
            f"[{batch}, 1, {tokens}, {keys}] on the CPU"
        )


def _linears(block: nn.Module) -> list[Linear | Int8Linear]:
    attention, feed = block.attention, block.feed_forward
    return [attention.qkv, attention.out, feed.up, feed.down]  # type: ignore[union-attr, list-item]


def _end(parts: nn.Module) -> tuple[nn.Module | None, Tensor | None]:
    """The norm and the factors with which a branch ends."""
    last: nn.Module | None = None
    factor: Tensor | None = None
    for part in parts.children():
        if isinstance(part, (nn.LayerNorm, nn.RMSNorm)):
            last = part
        else:
            factor = part.weight  # type: ignore[assignment]
    return last, factor
