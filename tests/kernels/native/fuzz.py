"""Calls every function of compiled code with many sizes, at the edges too, and with what is out of range.

A script, to be run where the code is compiled with a sanitizer, which ends it at the first wrong access; it prints how
often each function was called. `fuzz.py SEED ROUNDS`, and `fuzz.py broken` makes a wrong access on purpose.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from dalle.generation.cpu_step import FusedBlocks
from dalle.kernels.linear import Int8Linear, Linear, quantize
from dalle.kernels.native import bindings
from dalle.kernels.native import linear as native_linear
from dalle.kernels.native import sample as native_sample
from dalle.kernels.native.attention import attend_sequences as attend
from dalle.kernels.native.attention import usable
from dalle.kernels.native.cross_entropy import cross_entropy_grad_
from dalle.kernels.native.group_norm import group_norm
from dalle.kernels.native.winograd import conv3x3
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig
from support.generation import sample

REFUSED = (IndexError, ValueError, RuntimeError)  # the last by torch
BAD_IDS = (-1, -(2**31), -(2**63), 2**31, 2**63 - 1)
LAST = torch.channels_last

pick = random.Random(0)


def dtype() -> torch.dtype:
    return pick.choice([torch.float32, torch.bfloat16])


def odd(tensor: Tensor) -> Tensor:
    """The same numbers, perhaps with a gap between rows, or at an odd place in memory."""
    if pick.random() < 0.5 or not tensor.ndim:
        return tensor
    wider = torch.empty(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)
    wider[..., 1:-2] = tensor
    return wider[..., 1:-2]


def spoiled(values: Tensor) -> Tensor:
    """Perhaps with a number that is none."""
    if values.numel() and pick.random() < 0.3:
        values.view(-1)[pick.randrange(values.numel())] = pick.choice([float("nan"), float("inf"), -float("inf")])
    return values


@torch.no_grad()
def linear() -> None:
    rows, count, width = pick.choice([0, 1, 2, 3, 8, 16, 17]), pick.choice([1, 2, 7, 8, 9, 40]), 32 * pick.randint(1, 5)
    kind = dtype()
    x, bias = odd(torch.randn(rows, width).to(kind)), pick.choice([None, odd(torch.randn(count).to(kind))])
    native_linear.linear(x, torch.randn(count, width).to(kind), bias)
    Int8Linear(Linear(width, count, bias=bias is not None))(x.float())
    native_linear.linear(x, torch.randn(count, width).to(kind), torch.randn(count - 1).to(kind))


@torch.no_grad()
def draw() -> None:
    rows, vocabulary = pick.choice([0, 1, 2, 5]), pick.choice([1, 2, 3, 15, 16, 17, 31, 257, 1000])
    logits = odd(spoiled(torch.randn(rows, vocabulary) * pick.choice([0, 1, 30])))
    uniform = torch.rand(rows, dtype=torch.float64)
    if rows:
        uniform[0] = pick.choice([0.0, 1.0, -1.0, 2.0, float("nan")])
    top_k = pick.choice([None, 0, -1, 1, 2, vocabulary, vocabulary + 1, 2**62])
    top_p = pick.choice([None, 1e-9, 0.5, 1.0, 0.0, -1.0, 2.0, float("nan")])
    temperature = pick.choice([1e-30, 0.5, 1.0, 1e30, -1.0, float("nan")])
    with suppress(*REFUSED):
        sample(logits, uniform, temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = native_sample.sample_tokens(logits, uniform, temperature, top_k, top_p)
    assert drawn is None or not rows or 0 <= int(drawn.min()) <= int(drawn.max()) < vocabulary


def cross_entropy() -> None:
    rows, codes = pick.choice([0, 1, 2, 7, 33]), 32 * pick.choice([1, 2, 5])
    logits = spoiled((3 * torch.randn(rows, codes)).to(dtype()))
    ids = torch.randint(0, codes, (rows,))
    ids[:1], ids[-1:] = 0, codes - 1
    wrong = rows and pick.random() < 0.5
    if wrong:
        ids[pick.choice([0, -1])] = pick.choice([codes, *BAD_IDS])
    try:
        cross_entropy_grad_(logits, ids, pick.choice([0.0, 0.1]), pick.choice([None, torch.zeros(codes)]))
        assert not wrong, ids
    except IndexError:
        assert wrong, ids
    with suppress(*REFUSED):
        cross_entropy_grad_(logits, ids[1:], 0.0, torch.zeros(codes - 1))


def normal() -> None:
    kind, channels = dtype(), 16 * pick.randint(1, 5)
    shape = (pick.choice([1, 2, 3]), channels, pick.choice([1, 2, 7, 9]), pick.choice([1, 3, 8, 11]))
    x = torch.randn(shape).to(kind).contiguous(memory_format=LAST).requires_grad_()
    weight, bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))
    made = group_norm(x, weight, bias, pick.choice([1, 2, 8, 16, channels]), 1e-6, pick.random() < 0.5)
    assert made is not None
    made.backward(torch.randn(shape).to(kind))
    for groups, short in ((0, 0), (channels + 1, 0), (7, 0), (1, 1)):
        if channels % max(groups, 1) or short or not groups:
            assert group_norm(x, weight[short:], bias, groups, 1e-6, False) is None


def convolution() -> None:
    kind, channels, count = dtype(), 32 * pick.randint(1, 3), 32 * pick.randint(1, 3)
    height, width = pick.choice([1, 2, 3, 4, 5, 13, 31, 33]), pick.choice([1, 3, 4, 7, 29, 32, 35])
    squares = -(-height // 4) * -(-width // 4)
    images = pick.choice([-(-64 // squares), 1, 2])
    x = torch.randn(images, channels, height, width).to(kind).contiguous(memory_format=LAST).requires_grad_()
    weight = torch.randn(count, channels, 3, 3).to(kind).requires_grad_()
    bias = torch.randn(count).to(kind).requires_grad_() if pick.random() < 0.5 else None
    made = conv3x3(x, weight, bias)
    assert (made is not None) == (images * squares >= {torch.float32: 32, torch.bfloat16: 64}[kind])
    if made is not None:
        made.backward(torch.randn_like(made))
    assert conv3x3(x, weight[:, 1:], None) is None and conv3x3(x, weight, torch.randn(count - 1).to(kind)) is None


def sequences() -> None:
    tokens, channels = pick.choice([1, 2, 3, 4, 5, 31, 63, 64, 65, 130]), 32 * pick.randint(1, 5)
    batch, heads = pick.choice([1, 2]), pick.choice([1, 3])
    qkv = torch.randn(batch, tokens, 3, heads, channels).bfloat16().requires_grad_()
    packed = qkv.permute(2, 0, 3, 1, 4)
    if not usable(packed):
        return
    mask = pick.choice([None, torch.rand(tokens, tokens) < 0.3, torch.zeros(tokens, tokens, dtype=torch.bool)])
    made = attend(packed, mask, pick.random() < 0.5)
    made.backward(torch.randn_like(made))
    with suppress(ValueError):
        attend(packed, torch.ones(tokens, tokens - 1, dtype=torch.bool), False)
        raise AssertionError("a mask that is too small was taken")


@functools.cache
def model(case: int) -> DALLE:
    """Models of all kinds of blocks, heads and positions."""
    kinds: list[dict[str, Any]] = [
        {},
        {"feed_forward": "swiglu", "norm": "rms", "hidden": 96, "biases": "none"},
        {"feed_forward": "geglu", "hidden": 160, "qk_norm": True, "heads": 4},
        {"sandwich": True, "layer_scale": True, "rotate_values": True, "heads": 3, "head_channels": 96},
        {"feed_forward": "quick_gelu", "head_channels": 128},
        {"feed_forward": "gelu_tanh", "head_channels": 48},
        {"feed_forward": "geglu_tanh", "heads": 4, "kv_heads": 2, "qk_norm": True, "qk_norm_kind": "own"},
        {"heads": 3, "kv_heads": 1, "head_channels": 256, "biases": "qkv"},
    ]
    shape = TransformerConfig(**{"width": 64, "depth": 2, "heads": 2, **kinds[case % len(kinds)]})
    config = DALLEConfig(
        transformer=shape, text_vocab=9, text_length=1 + case % 4, image_vocab=32, grid=(3 + case % 2, 5),
        attention=[("full",), ("row", "column"), ("conv",)][case % 3], conv_kernel=3,
        positions="rope" if case % 2 else "learned",
    )  # fmt: skip
    made = DALLE(config).eval()
    if case % 4 == 1:
        quantize(made.transformer)
    return made.bfloat16() if case % 4 == 3 else made


def drawing() -> None:
    own = model(pick.randrange(24))
    config = own.config
    batch, room = pick.choice([1, 2, 3, 16, 17, 20]), config.prefix_length + config.image_length - 1
    with torch.no_grad():
        _, state = own.prefill(torch.randint(0, config.text_vocab, (1, config.text_length)))
        cache, blocks = own.new_cache(batch), FusedBlocks(own.transformer)
        cache.load_prefixes([state.row(0)] * batch)
        while cache.position < room:
            count = min(pick.choice([1, 1, 2, 5, 40]), room - cache.position)
            own.extend_each(torch.randint(0, config.image_vocab, (batch, count)), cache, blocks)
            if pick.random() < 0.1:
                cache.position = pick.randint(config.prefix_length, cache.position)
        wrong_drawing(own, cache, batch)


def wrong_drawing(own: DALLE, cache: Any, batch: int) -> None:
    """Positions without room, ids that there are not, masks and angles of other sizes."""
    config, room, blocks = own.config, cache.keys.shape[3], FusedBlocks(own.transformer)
    ids = torch.zeros(batch, 1, dtype=torch.int64)
    for position in (room, -1, -room, 2**31, -(2**40)):
        cache.position = position
        refused(lambda: own.extend_each(ids, cache, blocks))
        refused(lambda: own.transformer(torch.zeros(batch, 1, 64), "causal", cache=cache, blocks=blocks))
    for bad in (config.image_vocab, *BAD_IDS):
        cache.position = config.prefix_length
        refused(lambda bad=bad: own.extend_each(ids + bad, cache, blocks))
    x, seen = torch.zeros(batch, 1, 64).to(cache.keys.dtype), torch.ones(1, room, dtype=torch.bool)
    for shape in ((1, room - 1), (1, 1), (batch + 1, 1, 1, room)):
        cache.position = room - 1
        mask = seen[:, : shape[-1]].expand(shape)
        if shape[-1] != 1 or room > 1:
            with suppress(*REFUSED):  # torch stretches a mask of one key
                own.transformer(x, mask, cache=cache)
    half = config.transformer.head_width // 2
    cache.position = room - 1
    with suppress(*REFUSED):
        own.transformer(x, seen, rope=(torch.ones(1, half - 1), torch.ones(1, half - 1)), cache=cache)


def refused(call: Callable[[], object]) -> None:
    try:
        call()
    except REFUSED:
        return
    raise AssertionError("what is out of range was taken")


def main() -> None:
    if sys.argv[1] == "broken":
        values, ids = torch.randn(4, 32), torch.tensor([1, 2, 3, 32])
        addresses = [tensor.data_ptr() for tensor in (values, ids, values, values)]
        bindings.functions()["cross_entropy_float32"](*addresses, None, 4, 32, 0.0, 1)
        return
    seed, rounds = int(sys.argv[1]), int(sys.argv[2])
    pick.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    calls: collections.Counter[str] = collections.Counter()
    functions = bindings.functions()  # the dictionary is kept: what stands in it is called
    for name, function in list(functions.items()):
        functions[name] = lambda *given, name=name, function=function: (calls.update([name]), function(*given))  # type: ignore[misc]
    for _, case in itertools.product(
        range(rounds), (linear, draw, cross_entropy, normal, convolution, sequences, drawing)
    ):
        case()
    print(json.dumps(calls))


if __name__ == "__main__":
    main()
