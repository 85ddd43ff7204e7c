"""Formulas for the memory of one training step on one device; the tests compare them with measured peaks.

Weights, gradients and optimizer state are counted as in ZeRO (arXiv 1910.02054, section 3.1), activations as in
Korthikanti et al. (arXiv 2205.05198, section 4), but for what PyTorch's autograd really saves for this model with fused
attention.

Shapes: M tokens of a micro-batch (images times sequence length), C width, I = heads * head width, H hidden width of
the feed-forward part, V vocabulary of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dalle.kernels.cross_entropy import chunk_rows
from dalle.training.planning.setup import ModelSize, TrainSetup

_FLOAT = 4  # bytes per number of weights, gradients, moments, residual stream and losses, which are float32
# Bytes per number of a matrix in Muon's step: the scaled gradient, momentum and direction anew, the orthogonalized
# sections and the whole of them, and the choice between this and no step
_STEP_OF_MATRIX = 6 * _FLOAT
_STATS = 8  # bytes per token that a norm saves for backward: mean and reciprocal deviation, float32


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by purpose. Not all are allocated at the same time, so the peak is less than their sum.

    Attributes:
        weights: float32 weights, those that are not trained too.
        gradients: float32 gradients of what is trained.
        moments: the two moments of AdamW; of matrices that Muon trains its momentum.
        average: EMA weights.
        cast_weights: low-precision copies of weights; with FSDP also the gathered units.
        activations: what the blocks save for the backward pass.
        heads: logits and losses, computed in chunks, with the gradients of the heads and of the final states.
        allreduce_buffer: flat copy of all gradients, which DDP all-reduces.
        peak: peak memory of a step.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    cast_weights: int
    activations: int
    heads: int
    allreduce_buffer: int
    peak: int


def memory(size: ModelSize, setup: TrainSetup) -> Memory:
    """Compute the memory of a training step.

    The peak is the maximum over the moments at which it can occur: the end of the forward pass (logits, gradients of
    the heads), the start of the backward pass (all activations), its end (all gradients, activations of the first
    block), and the optimizer step.
    """
    sharded = setup.layout == "fsdp" and setup.devices > 1
    share = setup.devices if sharded else 1
    adapters = setup.adapters
    trained = size.parameters if adapters is None else adapters.parameters
    state = _FLOAT * trained // share  # ZeRO-3
    weights = state if adapters is None else _FLOAT * (size.parameters + trained) // share
    # Muon trains all matrices of adapters
    matrices, matrix = (size.matrices, size.matrix) if adapters is None else (adapters.parameters, adapters.matrix)
    kept = 2 * state - _FLOAT * matrices * setup.muon  # moments
    static = weights + kept + state * setup.average
    heads, allreduce_buffer = _heads(size, setup), state if setup.layout == "ddp" and setup.devices > 1 else 0
    parts = _activations(size, setup)
    accumulated = state if setup.accumulation > 1 else 0  # gradients of earlier micro-batches, present all along
    if sharded:
        cast_weights, moments = _fsdp_moments(size, setup, accumulated, heads, parts)
    else:
        forward, cast_weights = _cast_weights(size, setup)
        # At the end of backward there are all gradients but those of the first block and the embeddings, still to come
        early = 0 if adapters is not None else _FLOAT * (size.block + size.embeddings)
        late_gradients = accumulated or state - early
        working = parts.hidden + parts.inputs  # gradients in flight: within the feed-forward part, of its input
        if adapters is not None:  # and of the adapter of the first matrix, scaled anew
            working += parts.hidden * (2 if _gated(size) else 1)
        moments = (
            # End of forward: all activations, and the heads' losses with their gradients
            accumulated + forward + parts.all + heads.forward,
            # Start of backward: the heads' gradients are scaled, or the last block is recomputed and differentiated
            accumulated + cast_weights + parts.all + max(heads.backward, parts.recompute + working),
            # End of backward: the first block is left
            late_gradients + cast_weights + parts.all // size.config.transformer.depth + parts.recompute + working,
        )
    return Memory(
        weights=weights,
        gradients=state,
        moments=kept,
        average=state if setup.average else 0,
        cast_weights=cast_weights,
        activations=parts.all + parts.recompute,
        heads=max(heads.forward, heads.backward),
        allreduce_buffer=allreduce_buffer,
        # The last: gradients and their copy, before the step, or what one matrix takes in it
        peak=static + max(*moments, state + max(allreduce_buffer, _STEP_OF_MATRIX * matrix * setup.muon)),
    )


class _Activations(NamedTuple):
    all: int  # saved by all blocks until the backward pass
    recompute: int  # of the one block being recomputed under checkpointing
    hidden: int  # M x H, the gradient within a feed-forward part
    inputs: int  # M x C, the residual stream


def _activations(size: ModelSize, setup: TrainSetup) -> _Activations:
    shape, tokens = size.config.transformer, setup.images * size.tokens
    inputs, kept = _FLOAT * shape.width * tokens, block_bytes(size, setup)
    hidden = setup.compute * size.hidden * tokens
    if setup.checkpointing:  # each block saves its input only; the block being recomputed needs the rest on top
        return _Activations(shape.depth * inputs, kept - inputs, hidden, inputs)
    return _Activations(shape.depth * kept, 0, hidden, inputs)


def _fsdp_moments(
    size: ModelSize, setup: TrainSetup, accumulated: int, heads: _Heads, parts: _Activations
) -> tuple[int, tuple[int, ...]]:
    """Return for FSDP the gathered weights, and the memory beyond the static state at each candidate for the peak.

    Everything outside the blocks (`rest`) is gathered in float32 throughout. Of the blocks there are at any time: the
    unit that computes, the next one, which is prefetched, and the full gradients of a unit in the reduce-scatter.
    """
    depth, share = size.config.transformer.depth, setup.devices
    attention, feed = (setup.compute * count for count in size.units)
    rest = _FLOAT * (size.parameters - depth * size.block)
    frozen = setup.adapters is not None  # what an adapter's own gradients take is left out
    # Full gradients of a feed-forward unit, the larger one, before reduce-scatter
    reduced = 0 if frozen else _FLOAT * size.units[1]
    units = attention + feed + reduced + reduced // share  # computing, prefetched, gradients in full and as a shard
    blocks = 0 if frozen else _FLOAT * depth * size.block // share  # sharded gradients of all blocks
    late_gradients = accumulated or max(0, blocks - _FLOAT * size.block // share)
    last = parts.all - (
        0 if setup.checkpointing else 2 * parts.hidden
    )  # backward of the last feed-forward part has freed its own
    first = parts.all // depth + parts.hidden  # activations of the first block, still to be differentiated
    return rest + units, (
        # Start of a pass: `rest` and the first unit, each with the flat buffer that it is gathered from
        accumulated + 2 * (rest + attention),
        # End of forward
        accumulated + rest + feed + parts.all + max(heads.forward, heads.backward),
        # Start of backward
        accumulated + rest + heads.weights + units + last + parts.recompute + 3 * parts.inputs,
        # End of backward
        late_gradients + rest + heads.weights + attention + 2 * feed + first + parts.recompute + parts.inputs,
        # Reduce-scatter of the gradients outside the blocks
        0 if frozen else (accumulated or blocks) + 2 * rest + rest // share,
    )


def block_bytes(size: ModelSize, setup: TrainSetup) -> int:
    """Bytes that one block saves for its backward pass."""
    config, shape, number = size.config, size.config.transformer, setup.compute
    width, inner, hidden = shape.width, shape.heads * shape.head_width, size.hidden
    # Bytes per token. Twice (attention, feed-forward): input of the norm in float32 (C), its statistics, and its output
    # in the dtype of the products (C)
    token = 2 * (_FLOAT * width + _STATS + number * width)
    # Fused attention saves queries, keys, values and its output (4 I), and one log-sum-exp per head instead of scores
    token += number * 4 * inner + _FLOAT * shape.heads
    # Feed-forward: GELU saves its input and output (2 H); x * sigmoid(1.702 x) is two operations (3 H); a gated
    # activation saves both projections, the activated gate and the product (4 H)
    token += number * hidden * (4 if _gated(size) else 3 if shape.feed_forward == "quick_gelu" else 2)
    # Rotated queries and keys (2 I): the originals stay, as views beside values. Of fewer heads of keys and values
    # copies are attended to, and their originals go
    if "rope" in config.positions and shape.key_heads == shape.heads:
        token += number * 2 * inner
    if config.padding == "left" or config.text_features is not None:  # the mask, as numbers that are added to scores
        token += number * size.tokens
    if shape.norm == "rms" and setup.adapters is None:  # what is scaled, in float32, for the gradient of the scale
        token += 2 * _FLOAT * width
    if shape.qk_norm:  # normalized queries and keys (2 I), and statistics per head
        token += number * 2 * inner + 2 * _STATS * shape.heads
    # Adapters: what is between the two matrices of each, and the mix of the heads, which is cast anew for the output's
    if setup.adapters is not None:
        token += number * (4 * setup.adapters.rank + (inner if number < _FLOAT else 0))
    token += 2 * (shape.dropout > 0) * width  # dropout masks, one byte per channel
    # Sandwich norms save input and statistics once more per part, layer scale its input
    token += 2 * shape.sandwich * (number * width + _STATS) + 2 * shape.layer_scale * number * width
    return round(setup.images * size.tokens * token)


def _gated(size: ModelSize) -> bool:
    return size.config.transformer.feed_forward in ("swiglu", "geglu", "geglu_tanh")


class _Heads(NamedTuple):
    forward: int  # at the end of the forward pass
    backward: int  # at the start of the backward pass
    weights: int  # gradients of the heads' matrices alone


def _heads(size: ModelSize, setup: TrainSetup) -> _Heads:
    """Memory of the two heads and their losses.

    The fused loss computes logits chunk by chunk and, in the same pass, the gradients of head and states, first for the
    text and then for the image (kernels/cross_entropy.py).
    """
    width, states = size.config.transformer.width, setup.images * size.tokens * size.config.transformer.width * _FLOAT
    head_gradients = forward = last_gradient = weights = 0
    for tokens, vocabulary in _head_sizes(size):
        rows = setup.images * tokens
        frozen = setup.adapters is not None
        weight = width * vocabulary  # C x V
        slope = 0 if frozen else weight  # the gradient of the head
        weights += _FLOAT * slope
        chunk = chunk_rows(rows, vocabulary, "cpu" if setup.on_cpu else "cuda") * vocabulary
        last_gradient = _FLOAT * (slope + rows * width)  # of the head, and of its input states
        # With several chunks, or in low precision, a chunk's gradient of the head is computed apart and then added
        added = setup.compute * slope if setup.compute < _FLOAT or chunk < rows * vocabulary else 0
        copy = setup.compute * weight if setup.compute < _FLOAT else 0  # the head in low precision
        head_gradients += last_gradient
        # A chunk of logits exists either in float32 next to its exponentials, or in the dtype of the products while it
        # is multiplied for the head's gradient
        forward = max(forward, head_gradients + copy + max(2 * _FLOAT * chunk, setup.compute * chunk + added))
    # States: output of the blocks, of the final norm, and their gradient. Backward first scales the image's gradients
    # by the incoming one, out of place
    return _Heads(3 * states + forward, states + head_gradients + last_gradient, weights)


def _head_sizes(size: ModelSize) -> list[tuple[int, int]]:
    """For each head, in the order of their losses, the tokens that it predicts per image and its vocabulary size."""
    config = size.config
    text = [(config.prefix_length - 1, config.text_embeddings)] if config.text_head and config.prefix_length > 1 else []
    return [*text, (config.image_length, config.image_vocab)]


def _cast_weights(size: ModelSize, setup: TrainSetup) -> tuple[int, int]:
    """Low-precision copies of weights in the forward and in the backward pass.

    Autocast caches a copy of every linear layer; under checkpointing the backward pass has those of one block only.
    """
    if setup.compute == _FLOAT:
        return 0, 0
    block = setup.compute * (size.block if setup.checkpointing else size.linear)
    # Copies of weights that are not trained are not cached, but kept for the gradient of what they multiply
    return (setup.compute * size.linear if setup.adapters is None else block), block


def sampling_budget(size: ModelSize, setup: TrainSetup, rows: int) -> int:
    """Bytes that a sharded model may use for gathered blocks while it samples, to stay within the peak of a step.

    Args:
        size: the model.
        setup: the training setup.
        rows: number of sequences sampled at a time.

    Returns:
        The peak of a step less what sampling needs otherwise: weights, moments and EMA; a copy of the trained weights
        while the EMA replaces them; everything outside the blocks in float32; and the KV cache, with a second copy of
        the text's part.
    """
    found = memory(size, setup)
    cache = cache_bytes(size, setup.compute) * (size.tokens + size.config.prefix_length) // size.tokens
    static = found.weights * (2 if setup.average else 1) + found.moments + found.average
    rest = (size.parameters - size.config.transformer.depth * size.block) * _FLOAT
    return found.peak - static - rest - rows * cache


def cache_bytes(size: ModelSize, number: int = 2) -> int:
    """Bytes of the KV cache of one image and its caption, with `number` bytes per number."""
    shape = size.config.transformer
    return 2 * shape.depth * shape.key_heads * shape.head_width * size.tokens * number  # keys and values
