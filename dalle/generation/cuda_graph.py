"""A step of drawing that is the same operations on the same memory for every token, so that a GPU can repeat it alone.

At one token a step a GPU has done its work long before Python has named the next: so a step is recorded once (a CUDA
graph, which torch.compile may have made smaller before) and then only started again. For that, what changes from step
to step must be in tensors: the place of the token, the codes drawn so far. No step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dalle.kernels.kv_cache import KVCache, Positions
from dalle.kernels.masks import Mask
from dalle.kernels.switches import switch
from dalle.models.dalle import DALLE

Choose = Callable[[Tensor, Tensor], Tensor]

Expand = Callable[[Tensor, int], Tensor]
"""Ids of the candidates [B, n] and a number of rows -> ids of the batch's rows."""

Record = Callable[[Callable[[], None], Callable[[], None]], Callable[[], object]]
"""From a function that may be tried, and the one to record, to what repeats the latter without Python."""

# Keys that are not held yet are read for nothing, recordings take time and memory: one for each so many keys, and not
# more of them than this.
_REACH, _RECORDINGS = 256, 6
_COMPILED = 2**12


class DevicePositions(Positions):
    """The place of one token as a tensor, below `end`: what is cut out of tables is gathered in place of sliced."""

    moves = True

    def __init__(self, index: Tensor, end: int) -> None:
        self.index, self.end = index, end

    @property
    def causal(self) -> Mask:  # type: ignore[override]
        """Bool [1, end]: the keys behind the token are there, and not to be seen."""
        return self.back(self.index.device) >= 0

    def rows(self, table: Tensor, before: int = 0) -> Tensor:
        return table.index_select(0, self.index - before)

    def cells(self, lines: Tensor, columns: Tensor, before: int) -> Tensor:
        cell, width = self.index - before, columns.shape[1]
        return lines[:, 0].index_select(0, cell // width) + columns[0].index_select(0, cell % width)

    def square(self, table: Tensor) -> Tensor:
        return table.index_select(-2, self.index)[..., : self.end]

    def back(self, device: torch.device) -> Tensor:
        return self.index[:, None] - torch.arange(self.end, device=device)


class StaticCache(KVCache):
    """A cache that another has begun, which takes one token a pass at a place that is a tensor.

    Attributes:
        index: int64 [1], tokens held.
        reach: how many keys a pass looks at; those that are not held are masked.
    """

    def __init__(self, begun: KVCache) -> None:
        """Go on in the memory of `begun`, but for its padding."""
        self.keys, self.values, self.inputs = begun.keys, begun.values, begun.inputs
        for held in (self.keys, self.values, self.inputs):  # what is masked is multiplied by 0: it must be a number
            held.narrow(-2, begun.position, held.shape[-2] - begun.position).zero_()
        self.padding = None if begun.padding is None else begun.padding.clone()
        self.position = 0  # native code for CPUs, which wants the position in Python, declines
        self.index = torch.full((1,), begun.position, device=self.keys.device)
        self.reach = self.keys.shape[3]

    def load(self, begun: KVCache) -> None:
        """Go on from what has been put in that memory meanwhile."""
        self.index.fill_(begun.position)
        if self.padding is not None and begun.padding is not None:
            self.padding.copy_(begun.padding)

    def place(self, count: int) -> Positions:
        assert count == 1
        return DevicePositions(self.index, self.reach)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.index, k.to(keys.dtype))
        values.index_copy_(2, self.index, v.to(values.dtype))
        return keys[:, :, : self.reach], values[:, :, : self.reach]

    def hold(self, slot: int, channels: Tensor) -> Tensor:
        inputs = self.inputs[slot]
        inputs.index_copy_(1, self.index, channels.to(inputs.dtype))
        return inputs[:, : self.reach]

    def advance(self, count: int) -> None:
        self.index.add_(count)


class StaticDecodeStep:
    """Draws the codes that come next, one a call, for one batch shape; `load` begins a batch.

    Attributes:
        codes: int64 [B, N], what is drawn is written in.
    """

    def __init__(
        self,
        model: DALLE,
        choose: Choose,
        expand: Expand,
        cache: KVCache,
        codes: Tensor,
        keep: Tensor,
        uniform: Tensor,
    ) -> None:
        """Prepare for batches like this one.

        Args:
            model: what draws.
            choose: from logits [rows, 1, V] and uniform numbers [B, 1] to codes [B, 1]; may not wait for the device.
            expand: from ids of B candidates to those of `rows` rows.
            cache: of `rows` rows, B and the guided ones once more; its memory is written on.
            codes: int64 [B, N].
            keep: bool [B, N], True where the code is given.
            uniform: [B, N] in [0, 1).
        """
        self.model, self.choose, self.expand = model, choose, expand
        self.cache = StaticCache(cache)
        self.codes, self.keep, self.uniform = codes.clone(), keep.clone(), uniform.clone()

    def load(self, cache: KVCache, codes: Tensor, keep: Tensor, uniform: Tensor) -> None:
        """Begin another batch in the same cache: what it holds, and codes up to that, are there."""
        self.cache.load(cache)
        for own, given in zip((self.codes, self.keep, self.uniform), (codes, keep, uniform), strict=True):
            own.copy_(given)

    def draw(self) -> None:
        """Add the code before to the cache, and draw the next."""
        at = self.cache.index - (self.model.config.prefix_length - 1)  # of the code that is drawn
        ids = self.codes.index_select(1, at - 1)
        logits = self.model.extend_each(self.expand(ids, self.cache.keys.shape[1]), self.cache)
        drawn = self.choose(logits, self.uniform.index_select(1, at))
        self.codes.index_copy_(1, at, torch.where(self.keep.index_select(1, at), self.codes.index_select(1, at), drawn))


class GraphedStep:
    """A `StaticDecodeStep`, recorded once for each reach and then started again."""

    def __init__(self, step: StaticDecodeStep, record: Record, compiled: bool) -> None:
        self.step, self.record = step, record
        self.run: Callable[[], None] = (
            torch.compile(step.draw, fullgraph=True, dynamic=False) if compiled else step.draw
        )
        self.recorded: dict[int, Callable[[], object]] = {}
        room = step.cache.keys.shape[3]
        self.unit = max(_REACH, -(-room // _RECORDINGS))

    def draw(self, held: int) -> None:
        """Draw the next code, on top of `held` tokens."""
        cache = self.step.cache
        reach = min((held // self.unit + 1) * self.unit, cache.keys.shape[3])
        if reach not in self.recorded:
            cache.reach = reach
            index = cache.index.clone()

            def again() -> None:  # what it is tried with is drawn again
                self.run()
                cache.index.copy_(index)

            # A process compiles this for each model, batch size and reach: more often than torch expects of a function
            with torch._dynamo.config.patch(recompile_limit=_COMPILED, accumulated_recompile_limit=_COMPILED):
                self.recorded[reach] = self.record(again, self.run)
        self.recorded[reach]()


class CudaGraphDecoder:
    """Draws one token after the other, by steps that are recorded once for all batches of a size."""

    def __init__(self, model: DALLE, choose: Choose, compiled: bool, record: Record) -> None:
        """Prepare to draw.

        Args:
            model: what draws.
            choose: from logits [rows, 1, V] and uniform numbers [B, 1] to codes [B, 1]; may not wait for the device.
            compiled: let torch.compile make steps smaller first, which takes a minute or so.
            record: makes what repeats a function.
        """
        self.model, self.choose, self.compiled = model, choose, compiled
        self.record = record
        self.memory = 0  # where the cache is for which they are made
        self.made: dict[tuple[int, int], GraphedStep] = {}  # rows of the cache, image tokens -> step

    def draw(
        self,
        cache: KVCache,
        logits: Tensor,
        codes: Tensor,
        keep: Tensor,
        uniform: Tensor,
        lead: int,
        step: Callable[[int], None],
        expand: Expand,
    ) -> None:
        """Fill in codes [B, N] from `lead` on where `keep` [B, N] is False.

        Args:
            cache: holds all before `lead`; of B rows, and the guided ones once more.
            logits: of token `lead`, [rows, 1, V].
            codes: int64, written.
            keep: bool, True where the code is given.
            uniform: [B, N] in [0, 1).
            lead: the first token to draw, below N.
            step: called with B after each token.
            expand: from ids of B candidates to those of the cache's rows.
        """
        first = slice(lead, lead + 1)
        drawn = self.choose(logits, uniform[:, first])
        codes[:, first] = torch.where(keep[:, first], codes[:, first], drawn)
        step(len(codes))
        repeated = self._step(cache, codes, keep, uniform, expand)
        for held in range(cache.position, cache.position + codes.shape[1] - lead - 1):
            repeated.draw(held)
            codes.copy_(repeated.step.codes)  # who is told of the step may look at them
            step(len(codes))

    def _step(self, cache: KVCache, codes: Tensor, keep: Tensor, uniform: Tensor, expand: Expand) -> GraphedStep:
        """The step for such a batch, which begins with this one."""
        if cache.keys.data_ptr() != self.memory:
            self.memory, self.made = cache.keys.data_ptr(), {}
        key = cache.keys.shape[1], codes.shape[1]
        if key not in self.made:
            static = StaticDecodeStep(self.model, self.choose, expand, cache, codes, keep, uniform)
            self.made[key] = GraphedStep(static, self.record, self.compiled)
        self.made[key].step.load(cache, codes, keep, uniform)
        return self.made[key]


def cuda_graph_decoder(model: DALLE, choose: Choose, compiled: bool) -> CudaGraphDecoder | None:
    """How to draw on a GPU; None elsewhere, and where DALLE_KERNELS=graphs=off."""
    if model.image_head.weight.device.type != "cuda" or switch("graphs") == "off":
        return None
    return CudaGraphDecoder(model, choose, compiled, cuda_graphs())


def cuda_graphs() -> Record:
    """Records functions as CUDA graphs that share their memory: only one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(trial: Callable[[], None], run: Callable[[], None]) -> Callable[[], object]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries set up at their first calls is not to be recorded
            for _ in range(3):
                trial()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            run()
        return graph.replay

    return record
