"""One decode step over static buffers, captured once as a CUDA graph and replayed for every token.

With one token per step, a GPU finishes its work long before Python has launched the next kernels. So a step is captured
once (after torch.compile, if wanted) and then replayed. This requires that all that changes from step to step is in
tensors: the token's position and the codes so far. No step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dalle.kernels.kv_cache import KVCache, Positions
from dalle.kernels.masks import Mask
from dalle.kernels.switches import switch
from dalle.models.dalle import DALLE

SampleTokens = Callable[[Tensor, Tensor], Tensor]
"""Logits [rows, n, V] and uniform numbers [B, n] to codes [B, n]; rows is B, and one more for each guided candidate."""

Expand = Callable[[Tensor, int], Tensor]
"""Ids of the candidates [B, n] and the number of rows to the ids of all rows [rows, n]."""

Record = Callable[[Callable[[], None], Callable[[], None]], Callable[[], object]]
"""`record(warmup, run)` returns a callable that replays `run`."""

# A graph has a fixed number of keys. Reading keys that are not stored yet wastes time, but each further graph takes
# time and memory: one graph per `_KEY_BUCKET` positions, and at most `_MAX_GRAPHS`.
_KEY_BUCKET, _MAX_GRAPHS = 256, 6
_RECOMPILE_LIMIT = 2**12


class DevicePositions(Positions):
    """A single position as a tensor, less than `end`: entries of tables are gathered rather than sliced."""

    on_device = True  # on the device only

    def __init__(self, index: Tensor, end: int) -> None:
        self.index, self.end = index, end

    @property
    def causal(self) -> Mask:  # type: ignore[override]
        """Bool [1, end]: False for the keys after the token, which are in the buffer but not to be seen."""
        return self.relative_distance(self.index.device) >= 0

    def rows(self, table: Tensor, offset: int = 0) -> Tensor:
        """See `Positions.rows`; [1, ...]."""
        return table.index_select(0, self.index - offset)

    def cell_embeddings(self, rows: Tensor, columns: Tensor, offset: int) -> Tensor:
        """See `Positions.cell_embeddings`; [1, C]."""
        cell, width = self.index - offset, columns.shape[1]
        return rows[:, 0].index_select(0, cell // width) + columns[0].index_select(0, cell % width)

    def mask_block(self, table: Tensor) -> Tensor:
        """See `Positions.mask_block`; [..., 1, end]."""
        return table.index_select(-2, self.index)[..., : self.end]

    def relative_distance(self, device: torch.device) -> Tensor:
        """See `Positions.relative_distance`; [1, end]."""
        return self.index[:, None] - torch.arange(self.end, device=device)


class StaticCache(KVCache):
    """A KV cache whose position is a tensor, over the buffers of another cache; takes one token per forward pass.

    Attributes:
        index: int64 [1], number of tokens stored.
        key_bucket: number of keys that a forward pass reads; those not stored yet are masked.
    """

    def __init__(self, cache: KVCache) -> None:
        """Share the buffers of `cache`; the padding is copied."""
        self.keys, self.values, self.shift_inputs = cache.keys, cache.values, cache.shift_inputs
        # Masked values are multiplied by weights of 0, so uninitialized memory must not hold nan
        for buffer in (self.keys, self.values, self.shift_inputs):
            buffer.narrow(-2, cache.position, buffer.shape[-2] - cache.position).zero_()
        self.padding = None if cache.padding is None else cache.padding.clone()
        self.prefix = cache.prefix
        self.position = 0  # makes native CPU code, which needs the position in Python, decline
        self.index = torch.full((1,), cache.position, device=self.keys.device)
        self.key_bucket = self.keys.shape[3]

    def load(self, cache: KVCache) -> None:
        """Continue from the tokens that `cache` has stored in the shared buffers meanwhile."""
        self.index.fill_(cache.position)
        if self.padding is not None and cache.padding is not None:
            self.padding.copy_(cache.padding)

    def next_positions(self, count: int) -> Positions:
        """The position of the next token; `count` must be 1."""
        assert count == 1
        return DevicePositions(self.index, self.key_bucket)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one token of one layer; returns views of the first `key_bucket` keys and values."""
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.index, k.to(keys.dtype))
        values.index_copy_(2, self.index, v.to(values.dtype))
        return keys[:, :, : self.key_bucket], values[:, :, : self.key_bucket]

    def store_shift_input(self, slot: int, channels: Tensor) -> Tensor:
        """See `KVCache.store_shift_input`; returns the channels of the first `key_bucket` tokens."""
        inputs = self.shift_inputs[slot]
        inputs.index_copy_(1, self.index, channels.to(inputs.dtype))
        return inputs[:, : self.key_bucket]

    def advance(self, count: int) -> None:
        """Count `count` more tokens as stored, on the device."""
        self.index.add_(count)


class StaticDecodeStep:
    """Generates the next code, one per call, for one batch shape; `load` starts a batch.

    Attributes:
        codes: int64 [B, N], into which generated codes are written.
    """

    def __init__(
        self,
        model: DALLE,
        sample_tokens: SampleTokens,
        expand: Expand,
        cache: KVCache,
        codes: Tensor,
        known_mask: Tensor,
        uniform: Tensor,
    ) -> None:
        """Allocate static buffers for batches of this shape.

        Args:
            model: the model to generate with.
            sample_tokens: see `SampleTokens`; must not wait for the device.
            expand: see `Expand`.
            cache: with B rows, and one more for each guided candidate; its buffers are written to.
            codes: int64 [B, N].
            known_mask: bool [B, N], True where the code is given.
            uniform: [B, N] in [0, 1).
        """
        self.model, self.sample_tokens, self.expand = model, sample_tokens, expand
        self.cache = StaticCache(cache)
        self.codes, self.known_mask, self.uniform = codes.clone(), known_mask.clone(), uniform.clone()

    def load(self, cache: KVCache, codes: Tensor, known_mask: Tensor, uniform: Tensor) -> None:
        """Start another batch, of which the tokens in `cache` and their codes are done."""
        self.cache.load(cache)
        for own, new in zip((self.codes, self.known_mask, self.uniform), (codes, known_mask, uniform), strict=True):
            own.copy_(new)

    def run(self) -> None:
        """Append the previous code to the cache and generate the next one."""
        # Stored are the prefix and the codes before `at` - 1; code `at` - 1 is fed now
        at = self.cache.index - (self.cache.prefix - 1)  # index of the code to generate
        ids = self.codes.index_select(1, at - 1)
        logits = self.model.extend_each(self.expand(ids, self.cache.keys.shape[1]), self.cache)
        sampled = self.sample_tokens(logits, self.uniform.index_select(1, at))
        known = self.known_mask.index_select(1, at)
        self.codes.index_copy_(1, at, torch.where(known, self.codes.index_select(1, at), sampled))


class GraphedStep:
    """A `StaticDecodeStep`, captured once for each key bucket and then replayed."""

    def __init__(self, step: StaticDecodeStep, record: Record, compiled: bool) -> None:
        self.step, self.record = step, record
        self.function: Callable[[], None] = (
            # `fullgraph`: a break in the graph would bring Python back into every step
            torch.compile(step.run, fullgraph=True, dynamic=False) if compiled else step.run
        )
        self.graphs: dict[int, Callable[[], object]] = {}
        capacity = step.cache.keys.shape[3]
        self.bucket_size = max(_KEY_BUCKET, -(-capacity // _MAX_GRAPHS))

    def run(self, position: int) -> None:
        """Generate the next code, after `position` stored tokens."""
        cache = self.step.cache
        # The smallest bucket that has a place for the token stored in this step
        bucket = min((position // self.bucket_size + 1) * self.bucket_size, cache.keys.shape[3])
        if bucket not in self.graphs:
            cache.key_bucket = bucket
            index = cache.index.clone()

            def warmup() -> None:  # generates the code, then rewinds, so that it is generated again
                self.function()
                cache.index.copy_(index)

            # Compiled anew for each model, batch size and bucket: more often than torch expects of one function
            with torch._dynamo.config.patch(
                recompile_limit=_RECOMPILE_LIMIT, accumulated_recompile_limit=_RECOMPILE_LIMIT
            ):
                self.graphs[bucket] = self.record(warmup, self.function)
        self.graphs[bucket]()


class CudaGraphDecoder:
    """Generates token by token, with steps that are captured once for all batches of a shape."""

    def __init__(self, model: DALLE, sample_tokens: SampleTokens, compiled: bool, record: Record) -> None:
        """Prepare to generate.

        Args:
            model: the model to generate with.
            sample_tokens: see `SampleTokens`; must not wait for the device.
            compiled: run torch.compile on the step first, which takes about a minute.
            record: captures functions, such as `cuda_graphs()`.
        """
        self.model, self.sample_tokens, self.compiled = model, sample_tokens, compiled
        self.record = record
        self.memory = 0  # address of the cache that the steps were captured for
        self.steps: dict[tuple[int, int], GraphedStep] = {}  # (rows of the cache, image tokens) -> step

    def decode(
        self,
        cache: KVCache,
        logits: Tensor,
        codes: Tensor,
        known_mask: Tensor,
        uniform: Tensor,
        start: int,
        on_progress: Callable[[int], None],
        expand: Expand,
    ) -> None:
        """Fill in codes [B, N] from `start` on where `known_mask` [B, N] is False.

        Args:
            cache: holds all tokens before `start`; with B rows, and one more for each guided candidate.
            logits: of token `start`, [rows, 1, V].
            codes: int64, written to.
            known_mask: bool, True where the code is given.
            uniform: [B, N] in [0, 1).
            start: the first token to generate, below N.
            on_progress: called with B after each token.
            expand: see `Expand`.
        """
        first = slice(start, start + 1)
        sampled = self.sample_tokens(logits, uniform[:, first])
        codes[:, first] = torch.where(known_mask[:, first], codes[:, first], sampled)
        on_progress(len(codes))
        step = self._step(cache, codes, known_mask, uniform, expand)
        # The first code needed no step
        for position in range(cache.position, cache.position + codes.shape[1] - start - 1):
            step.run(position)
            codes.copy_(step.step.codes)  # callbacks may read them
            on_progress(len(codes))

    def _step(self, cache: KVCache, codes: Tensor, known_mask: Tensor, uniform: Tensor, expand: Expand) -> GraphedStep:
        """The step for batches of this shape, loaded with this one."""
        # Graphs have the cache's addresses baked in: another cache makes them all useless
        if cache.keys.data_ptr() != self.memory:
            self.memory, self.steps = cache.keys.data_ptr(), {}
        key = cache.keys.shape[1], codes.shape[1]
        if key not in self.steps:
            static = StaticDecodeStep(self.model, self.sample_tokens, expand, cache, codes, known_mask, uniform)
            self.steps[key] = GraphedStep(static, self.record, self.compiled)
        self.steps[key].step.load(cache, codes, known_mask, uniform)
        return self.steps[key]


def cuda_graph_decoder(model: DALLE, sample_tokens: SampleTokens, compiled: bool) -> CudaGraphDecoder | None:
    """The decoder for a model on a GPU; None elsewhere, and with DALLE_KERNELS=graphs=off."""
    if model.image_head.weight.device.type != "cuda" or switch("graphs") == "off":
        return None
    return CudaGraphDecoder(model, sample_tokens, compiled, cuda_graphs())


def cuda_graphs() -> Record:
    """Captures functions as CUDA graphs that share one memory pool, as only one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(warmup: Callable[[], None], run: Callable[[], None]) -> Callable[[], object]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate at their first calls, which must not be captured
            for _ in range(3):
                warmup()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            run()
        return graph.replay

    return record
