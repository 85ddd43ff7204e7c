"""Bytes that one step of the transformer takes on one device, by formulas that the tests compare with measured peaks.

Letters: M tokens of a micro-batch (images times tokens of a sequence), C width, I = heads * head width, H hidden width.
What a layer keeps for its backward pass is counted as PyTorch keeps it, with fused attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from dalle.kernels.cross_entropy import chunk_rows
from dalle.models.dalle import DALLE, DALLEConfig
from dalle.models.transformer import Block

Layout = Literal["ddp", "fsdp"]
Precision = Literal["fp32", "bf16", "fp16"]
_FLOAT = 4  # bytes of weights, gradients, moments, residual stream and losses
_STATS = 8  # bytes that a norm keeps of a token: mean and deviation


@dataclass(frozen=True)
class ModelSize:
    """Parameters and sizes of a model, without its weights."""

    config: DALLEConfig
    parameters: int
    block: int
    """Parameters of one block."""
    units: tuple[int, int]
    """Those of its attention and of its feed-forward part, which fsdp gathers one after the other."""
    linear: int
    """Parameters that are cast under autocast and stay so until the backward pass: all matrices but the heads."""
    embeddings: int
    """Parameters of embeddings and positions."""
    hidden: int
    """H."""

    @classmethod
    def of(cls, config: DALLEConfig) -> ModelSize:
        """Count a model that is never filled."""
        with torch.device("meta"):
            model = DALLE(config)
        named = {name: p.numel() for name, p in model.named_parameters()}
        block = model.transformer.blocks[0]
        assert isinstance(block, Block)
        return cls(
            config,
            sum(named.values()),
            sum(p.numel() for p in block.parameters()),
            tuple(sum(p.numel() for p in unit.parameters()) for unit in (block.attention, block.feed_forward)),  # type: ignore[arg-type]
            sum(
                p.numel()
                for name, module in model.named_modules()
                if isinstance(module, nn.Linear) and not name.endswith("_head")
                for p in module.parameters()
            ),
            sum(count for name, count in named.items() if "embedding" in name or name.endswith("position")),
            block.feed_forward.down.in_features,
        )

    @property
    def tokens(self) -> int:
        """Tokens that go through the transformer for one image."""
        return self.config.prefix_length + self.config.image_length - 1


@dataclass(frozen=True)
class TrainSetup:
    """How one step is made.

    Attributes:
        layout: "ddp" holds all of the model on each device; "fsdp" a share, and gathers block after block.
        devices: how many.
        images: of one micro-batch on one device.
        accumulation: micro-batches of a step.
        checkpointing: blocks are computed again in the backward pass.
        precision: of the forward and backward pass; weights and optimizer are float32.
        average: whether averaged weights are kept.
        on_cpu: pieces of the logits are smaller there.
    """

    layout: Layout
    devices: int
    images: int
    accumulation: int
    checkpointing: bool
    precision: Precision
    average: bool
    on_cpu: bool = False

    @property
    def compute(self) -> int:
        """Bytes of a number in matrix products."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: float32.
        gradients: float32.
        moments: of AdamW.
        average: averaged weights.
        copies: weights in the type of the products, and with fsdp what is gathered at a time.
        activations: what the blocks keep for the backward pass.
        heads: the losses, a piece of the logits at a time with the gradients of the heads, and the ends of the model.
        exchange: gradients in one piece for all devices, with ddp.
        peak: most of it at once.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    copies: int
    activations: int
    heads: int
    exchange: int
    peak: int


def memory(size: ModelSize, how: TrainSetup) -> Memory:
    """Bytes that a step takes: the most of some moments.

    These are the end of the forward pass (losses, and gradients of the heads), the start of the backward pass, its end
    (gradients, and the first block's activations), and the optimizer's step; with fsdp also when what is no block is
    gathered, and when its gradients are cut.
    """
    sharded = how.layout == "fsdp" and how.devices > 1
    share = how.devices if sharded else 1
    state = _FLOAT * size.parameters // share
    static = state * (3 + how.average)  # weights, two moments, perhaps the average
    heads, exchange = _heads(size, how), state if how.layout == "ddp" and how.devices > 1 else 0
    parts = _activations(size, how)
    before = state if how.accumulation > 1 else 0  # gradients of earlier micro-batches
    if sharded:
        copies, moments = _moments_of_shares(size, how, before, heads, parts)
    else:
        forward, copies = _copies(size, how)
        late = before or state - _FLOAT * (size.block + size.embeddings)  # all but the last that come
        working = parts.hidden + parts.inputs  # gradients of the feed-forward part and the residual stream
        moments = (
            before + forward + parts.all + heads.forward,
            before + copies + parts.all + max(heads.backward, parts.again + working),
            late + copies + parts.all // size.config.transformer.depth + parts.again + working,
        )
    return Memory(
        weights=state,
        gradients=state,
        moments=2 * state,
        average=state if how.average else 0,
        copies=copies,
        activations=parts.all + parts.again,
        heads=max(heads.forward, heads.backward),
        exchange=exchange,
        peak=static + max(*moments, state + exchange),
    )


class _Activations(NamedTuple):
    all: int  # that are kept until the backward pass
    again: int  # of the block that is computed again
    hidden: int  # the gradient within a feed-forward part
    inputs: int  # the residual stream


def _activations(size: ModelSize, how: TrainSetup) -> _Activations:
    shape, tokens = size.config.transformer, how.images * size.tokens
    inputs, kept = _FLOAT * shape.width * tokens, block_bytes(size, how)
    hidden = how.compute * size.hidden * tokens
    if how.checkpointing:
        return _Activations(shape.depth * inputs, kept - inputs, hidden, inputs)
    return _Activations(shape.depth * kept, 0, hidden, inputs)


def _moments_of_shares(
    size: ModelSize, how: TrainSetup, before: int, heads: _Heads, parts: _Activations
) -> tuple[int, tuple[int, ...]]:
    """With fsdp: what is gathered at the start of the backward pass, and bytes beside the static ones at some moments.

    What is no block is there in float32 all the time. Of units there is the one that computes, the one that is on its
    way, and the gradients of one in one piece, from which each device gets the sum of its share.
    """
    depth, share = size.config.transformer.depth, how.devices
    attention, feed = (how.compute * count for count in size.units)
    rest = _FLOAT * (size.parameters - depth * size.block)
    cut = _FLOAT * size.units[1]  # gradients of a feed-forward part
    units = attention + feed + cut + cut // share
    blocks = _FLOAT * depth * size.block // share  # their gradients
    late = before or blocks - _FLOAT * size.block // share
    last = parts.all - (0 if how.checkpointing else 2 * parts.hidden)  # the last feed-forward part is done
    first = parts.all // depth + parts.hidden  # the first is not
    return rest + units, (
        before + 2 * (rest + attention),
        before + rest + feed + parts.all + max(heads.forward, heads.backward),
        before + rest + heads.weights + units + last + parts.again + 3 * parts.inputs,
        late + rest + heads.weights + attention + 2 * feed + first + parts.again + parts.inputs,
        (before or blocks) + 2 * rest + rest // share,
    )


def block_bytes(size: ModelSize, how: TrainSetup) -> int:
    """What one block keeps for its backward pass."""
    config, shape, of = size.config, size.config.transformer, how.compute
    width, inner, hidden = shape.width, shape.heads * shape.head_width, size.hidden
    token = 2 * (_FLOAT * width + _STATS + of * width)  # residual stream, what the norms make of it
    token += of * 4 * inner + _FLOAT * shape.heads  # queries, keys, values, their mixture; log-sum-exp
    gated = shape.feed_forward in ("swiglu", "geglu")
    token += of * hidden * (4 if gated else 3 if shape.feed_forward == "quick_gelu" else 2)
    if config.positions.endswith("rope"):
        token += of * 2 * inner  # turned queries and keys, beside those that values share their memory with
    if shape.qk_norm:
        token += of * 2 * inner + 2 * _STATS * shape.heads
    token += 2 * (shape.dropout > 0) * width  # which channels were dropped
    token += 2 * shape.sandwich * (of * width + _STATS) + 2 * shape.layer_scale * of * width
    return round(how.images * size.tokens * token)


class _Heads(NamedTuple):
    forward: int
    backward: int
    weights: int  # their gradients alone


def _heads(size: ModelSize, how: TrainSetup) -> _Heads:
    """The most that the ends of the model and the losses take: the text's gradients are made first, then the image's.

    A piece of the logits stands beside a copy of it (their exponentials), or in the type of the products beside what it
    adds to the head's gradient. In the backward pass the image's gradients are scaled first.
    """
    width, states = size.config.transformer.width, how.images * size.tokens * size.config.transformer.width * _FLOAT
    held = forward = latest = weights = 0
    for tokens, vocabulary in _head_sizes(size):
        rows = how.images * tokens
        weight = width * vocabulary
        weights += _FLOAT * weight
        piece = chunk_rows(rows, vocabulary, "cpu" if how.on_cpu else "cuda") * vocabulary
        latest = _FLOAT * (weight + rows * width)
        added = how.compute * weight if how.compute < _FLOAT or piece < rows * vocabulary else 0
        copy = how.compute * weight if how.compute < _FLOAT else 0
        held += latest
        forward = max(forward, held + copy + max(2 * _FLOAT * piece, how.compute * piece + added))
    return _Heads(3 * states + forward, states + held + latest, weights)


def _head_sizes(size: ModelSize) -> list[tuple[int, int]]:
    """Tokens of an image that a head predicts, and of how many; in the order in which their losses are made."""
    config = size.config
    text = [(config.prefix_length - 1, config.text_embeddings)] if config.text_head and config.prefix_length > 1 else []
    return [*text, (config.image_length, config.image_vocab)]


def _copies(size: ModelSize, how: TrainSetup) -> tuple[int, int]:
    """Copies of weights in the type of the products, in the forward and the backward pass.

    They are of all under autocast, and while a block is computed again of it.
    """
    if how.compute == _FLOAT:
        return 0, 0
    return how.compute * size.linear, how.compute * (size.block if how.checkpointing else size.linear)


def room_for_drawing(size: ModelSize, how: TrainSetup, rows: int) -> int:
    """Bytes for gathered blocks of a sharded model that draws, so that no more is taken than in a step.

    Beside them are weights, moments and averages, the trained weights that averaged ones stand in for, in float32 what
    is no block, and keys and values of so many rows, those of the text twice.
    """
    found = memory(size, how)
    cache = cache_bytes(size, how.compute) * (size.tokens + size.config.prefix_length) // size.tokens
    beside = found.weights * (2 if how.average else 1) + found.moments + found.average
    rest = (size.parameters - size.config.transformer.depth * size.block) * _FLOAT
    return found.peak - beside - rest - rows * cache


def cache_bytes(size: ModelSize, number: int = 2) -> int:
    """Keys and values of one image while it is drawn, `number` bytes each."""
    shape = size.config.transformer
    return 2 * shape.depth * shape.heads * shape.head_width * size.tokens * number
