"""A batch that candidates join and leave between any two tokens, each at its own position (continuous batching).

As in Orca (Yu et al. 2022, OSDI), section 3.1, the batch is made up anew for each step, which is a token of each.
Shapes: B candidates, rows = B and one more for each that is guided, N codes and L tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dalle.generation.batching import plan_batches
from dalle.generation.cpu_step import FusedBlocks
from dalle.generation.options import SamplingConfig
from dalle.generation.token_sampler import TokenSampler
from dalle.generation.token_stream import TokenStream
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.linear import packed
from dalle.kernels.ragged_cache import RaggedCache
from dalle.models.dalle import DALLE

_KEPT_TEXTS = 8  # prefilled texts that are kept for candidates that join later
_PACKED_ROWS = 17  # from here on weights are packed, as the fused step ends before (dalle/kernels/block_weights.py)


@dataclass(eq=False)
class Candidate:
    """An image that is to be generated.

    Attributes:
        text: ids of the prompt, int64 [T].
        seed: seed of its uniform numbers.
        sampling: how its codes are sampled.
        negative: ids of what guidance leads away from, int64 [T]; None: the null caption.
        known_codes: int64 [N], codes that are given where `known_mask` is True.
        known_mask: bool [N]; None: nothing is given.
        done: tokens that are final, L at the end.
    """

    text: Tensor
    seed: int
    sampling: SamplingConfig
    negative: Tensor | None = None
    known_codes: Tensor | None = None
    known_mask: Tensor | None = None
    done: int = 0


@dataclass
class _Row:
    """A candidate's place in the batch."""

    candidate: Candidate
    slot: int
    null_slot: int | None  # of the unconditional row, while there is one
    sampling: SamplingConfig  # with `guidance_until` counted in tokens


class RollingBatch:
    """Candidates that are generated together; each gets the codes that it gets alone, as `generate` gives them.

    Attributes:
        size: candidates that there is room for.
        active: those that are in it, in the order in which they came.
    """

    def __init__(self, model: DALLE, size: int) -> None:
        """Make an empty batch of a model for which `supports` holds; puts the model in eval mode.

        Args:
            model: the model.
            size: candidates at most; fewer if memory does not suffice.
        """
        self.model, self.stream, self.config = model.eval(), TokenStream(model.config), model.config
        self.size, self._may_pack = plan_batches(model, size, 0, guided=True)
        self.rows: list[_Row] = []
        # Untouched pages of it take no memory, and free slots are taken from the front
        self._buffer = model.new_cache(2 * self.size)
        self._cache = RaggedCache(self._buffer)
        self._free = list(range(2 * self.size))
        shape = (2 * self.size, self.stream.length)
        self._tokens = torch.zeros(shape, dtype=torch.int64)
        self._known, self._uniform = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        self._texts: dict[bytes, tuple[KVCache, Tensor]] = {}  # ids -> cache of the one text, its logits [V]
        self._blocks = FusedBlocks(model.transformer)
        self._failed = torch.zeros((), dtype=torch.bool)
        self._sampler: TokenSampler | None = None  # of the rows as they are; None: they have changed
        self._packing = ExitStack()

    @staticmethod
    def supports(model: DALLE) -> bool:
        """Whether candidates of a model may be at different positions.

        On an accelerator a step is a recorded graph, which knows one position; texts that are padded on the left, or
        given as features, differ in where they begin; token shift reads neighbors at one distance; and candidates of
        several grids would have caches of several lengths.
        """
        config = model.config
        on_cpu = model.image_head.weight.device.type == "cpu"
        plain = config.padding != "left" and config.text_features is None and not config.shift_tokens
        return on_cpu and plain and config.grids is None

    @property
    def active(self) -> list[Candidate]:
        """The candidates in the batch."""
        return [row.candidate for row in self.rows]

    def codes(self, candidate: Candidate) -> tuple[Tensor, int]:
        """The codes of a candidate of the batch, int64 [N], and how many of the first are final."""
        row = next(row for row in self.rows if row.candidate is candidate)
        return self.stream.to_codes(self._tokens[row.slot][None])[0], self.stream.count_codes(candidate.done)

    @torch.no_grad()
    def join(self, candidates: Sequence[Candidate]) -> None:
        """Take candidates in, and sample the first token of each.

        Args:
            candidates: no more than there is room for.

        Raises:
            ValueError: a text does not fit the model, or logits are not finite. Then none of them is in the batch.
        """
        assert len(self.rows) + len(candidates) <= self.size
        rows = [self._placed(candidate) for candidate in candidates]
        try:
            self._prefill(rows)
            logits = [self._begin(row, row.slot, row.candidate.text) for row in rows]
            guided = [row for row in rows if row.null_slot is not None]
            logits += [self._begin(row, row.null_slot, self._null(row.candidate)) for row in guided]
            if rows:
                # Where every token is given there is nothing to sample
                self._sample(rows, torch.stack(logits)[:, None], self._sampler_of(rows))
        except BaseException:
            for row in rows:
                self._release(row)
            raise
        self.rows += rows
        self._sampler = None

    def leave(self, candidate: Candidate) -> None:
        """Drop a candidate: its client is gone, or it is finished."""
        row = next(row for row in self.rows if row.candidate is candidate)
        self.rows.remove(row)
        self._release(row)
        self._sampler = None

    def finished(self) -> dict[Candidate, Tensor]:
        """Candidates with all of their codes, int64 [h, w]; they leave the batch."""
        ready = [row.candidate for row in self.rows if row.candidate.done >= self.stream.length]
        found = {candidate: self.codes(candidate)[0].view(self.config.grid).clone() for candidate in ready}
        for candidate in ready:
            self.leave(candidate)
        return found

    @torch.no_grad()
    def step(self) -> None:
        """Sample the next token of each candidate, of which none may be finished.

        Raises:
            ValueError: logits are not finite.
        """
        self._end_guidance()
        if self._sampler is None:
            self._arrange()
        assert self._sampler is not None
        slots = torch.tensor([row.slot for row in self.rows])
        before = torch.tensor([row.candidate.done - 1 for row in self.rows])
        ids = self._sampler.expand(self._tokens[slots, before][:, None], self._cache.batch)
        logits = self.model.extend_each(ids, self._cache, self._blocks)
        self._sample(self.rows, logits, self._sampler)

    def close(self) -> None:
        """Drop all candidates and free what they needed."""
        self.rows, self._texts = [], {}
        self._packing.close()

    def _placed(self, candidate: Candidate) -> _Row:
        """Give a candidate its slots, and write down what is known of it."""
        known = torch.zeros(1, self.config.image_length, dtype=torch.bool)
        codes = torch.zeros(1, self.config.image_length, dtype=torch.int64)
        if candidate.known_codes is not None and candidate.known_mask is not None:
            codes, known = candidate.known_codes.view(1, -1), candidate.known_mask.view(1, -1)
        uniform = torch.rand(self.config.image_length, generator=torch.Generator().manual_seed(candidate.seed))
        mask = self.stream.of_codes(known, True)
        candidate.done = int(mask[0].int().cumprod(0).sum())
        sampling = self.stream.of_options(candidate.sampling)
        self._free.sort()
        slot = self._free.pop(0)
        row = _Row(candidate, slot, self._free.pop(0) if sampling.guides(candidate.done) else None, sampling)
        self._tokens[slot], self._known[slot] = self.stream.of_codes(codes)[0], mask[0]
        self._uniform[slot] = self.stream.of_codes(uniform[None], 0.0)[0]
        return row

    def _release(self, row: _Row) -> None:
        self._free += [row.slot, *([] if row.null_slot is None else [row.null_slot])]

    def _null(self, candidate: Candidate) -> Tensor:
        return self.model.null_text(candidate.text[None])[0] if candidate.negative is None else candidate.negative

    def _prefill(self, rows: Sequence[_Row]) -> None:
        """Run the texts of candidates, those that are new together."""
        texts = [row.candidate.text for row in rows]
        texts += [self._null(row.candidate) for row in rows if row.null_slot is not None]
        wanted = {_key(text): text for text in texts}
        fresh = {key: text for key, text in wanted.items() if key not in self._texts}
        spare = [key for key in self._texts if key not in wanted]
        for key in spare[: max(0, len(self._texts) + len(fresh) - _KEPT_TEXTS)]:
            del self._texts[key]
        if fresh:
            logits, cache = self.model.prefill(torch.stack(list(fresh.values())))
            # Copied: a view of one text would keep all of them in memory
            self._texts |= {key: (_copied(cache.row(i)), logits[i].clone()) for i, key in enumerate(fresh)}

    def _begin(self, row: _Row, slot: int | None, text: Tensor) -> Tensor:
        """Fill a slot with a text and the tokens that are given behind it; returns the logits [V] of the next one."""
        assert slot is not None
        cache, logits = self._texts[_key(text)]
        view = self._buffer.row(slot)
        view.load_prefixes([cache])
        given = row.candidate.done
        if 0 < given < self.stream.length:
            return self.model.extend(self._tokens[row.slot][None, :given], view)[0]
        return logits

    def _end_guidance(self) -> None:
        """Free the unconditional rows of candidates whose guidance has ended."""
        for row in self.rows:
            if row.null_slot is not None and not row.sampling.guides(row.candidate.done):
                self._free.append(row.null_slot)
                row.null_slot = self._sampler = None

    def _arrange(self) -> None:
        """Line up the rows: the candidates', then the unconditional ones in the order of the sampler."""
        self._sampler = self._sampler_of(self.rows)
        guided = [self.rows[i] for i in self._sampler.guided.tolist()]
        slots = [row.slot for row in self.rows] + [row.null_slot for row in guided if row.null_slot is not None]
        prefix = self.config.prefix_length
        self._cache.place(slots, [prefix + row.candidate.done - 1 for row in (*self.rows, *guided)])
        if self._may_pack and len(slots) >= _PACKED_ROWS:
            self._packing.enter_context(packed(self.model, 2 * self.size))
            self._may_pack = False  # once is enough: until the batch is closed

    def _sampler_of(self, rows: Sequence[_Row]) -> TokenSampler:
        """The sampler of these rows at the tokens where they are now."""
        always = [replace(row.sampling, guidance_until=None) for row in rows]
        now = [
            one if row.null_slot is not None else replace(one, guidance=1.0)
            for one, row in zip(always, rows, strict=True)
        ]
        return TokenSampler(now, 0, self.stream.length, self._failed)

    def _sample(self, rows: Sequence[_Row], logits: Tensor, sampler: TokenSampler) -> None:
        """Sample the next token of rows from logits [rows, 1, V]; what is given stays."""
        slots = torch.tensor([row.slot for row in rows])
        # Of an image that is given as a whole the last token is "sampled", and stays as it is
        at = torch.tensor([min(row.candidate.done, self.stream.length - 1) for row in rows])
        self._failed.zero_()  # or what has failed once would fail whoever comes later
        sampled = sampler.sample_tokens(logits, self._uniform[slots, at][:, None])[:, 0]
        sampler.check()
        self._tokens[slots, at] = torch.where(self._known[slots, at], self._tokens[slots, at], sampled)
        for row in rows:
            row.candidate.done = min(row.candidate.done + 1, self.stream.length)


def _key(text: Tensor) -> bytes:
    return text.numpy().tobytes()


def _copied(cache: KVCache) -> KVCache:
    """A cache of its own for one row, that holds its prefix and nothing else."""
    own = cache.row(0)
    own.keys, own.values, own.shift_inputs = cache.keys.clone(), cache.values.clone(), cache.shift_inputs.clone()
    return own
