"""Draws image codes from a DALLE: prefill, then one token or a few a step. Knows nothing of pixels, words or files.

Letters: P prompts, B candidates of all prompts, T text length, N = h * w image tokens, V image vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from dalle.generation import cuda_graph
from dalle.generation.batching import plan_batches
from dalle.generation.choice import Choice
from dalle.generation.cpu_step import FusedBlocks
from dalle.generation.jacobi import jacobi_decode
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.linear import packed
from dalle.models.dalle import DALLE

Progress = Callable[[int, int], None]
"""Called after each step with the image tokens drawn so far and in all, over all candidates."""

Watch = Callable[[Tensor, int], None]
"""Called after each step with the codes [B, N] of the batch at work, and how many of the first N are drawn; read only.
What it raises ends the work."""


@torch.no_grad()
def generate(
    model: DALLE,
    text: Tensor,
    seeds: Sequence[Sequence[int]],
    sampling: SamplingConfig | Sequence[SamplingConfig] = SamplingConfig(),
    engine: EngineOptions = EngineOptions(),
    *,
    forced: Tensor | None = None,
    forced_mask: Tensor | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Draw one image's codes for each seed.

    A candidate depends on the model, its prompt, its seed and the options alone: its N uniform numbers come from a CPU
    generator of its own, so it is the same whatever else is in the batch and however the batch is split (but for
    floating-point ties). Each prompt's text is run once.

    Args:
        model: drawn from in eval mode; its mode is restored.
        text: the prompts' ids, int [P, <= T], or features, float [P, <= T, C].
        seeds: for each prompt the seeds of its candidates, at least one.
        sampling: how codes are drawn from logits. Guidance is classifier-free, on the image logits, `u + guidance *
            (c - u)` with u from the null caption (`DALLE.null_text`); 1 runs no null caption, 0 is that alone. One
            for all, or one for each prompt.
        engine: speed and memory, on which the codes do not depend.
        forced: int codes to keep, for all candidates, for each prompt's or for each candidate: [N], [P, N] or [B, N]
            (or with h, w in place of N).
        forced_mask: bool, shaped in one of these ways too; True = keep the code of `forced`. To go on from the first
            rows of an image, mark these rows.
        progress: called after each step, so that its calls count the steps.
        watch: called after each step with the codes so far.

    Returns:
        int64 codes [B, h, w] on the model's device: the first prompt's candidates in the order of its seeds, then the
        second's.

    Raises:
        ValueError: an option is out of range, a shape does not fit, a prompt has no seed, or the model's logits are not
            finite, which is asked once a batch.
    """
    if len(seeds) != len(text) or not seeds or not all(seeds):
        counts = [len(one) for one in seeds]
        raise ValueError(f"{len(text)} prompts with {counts} seeds; give each prompt at least one seed")
    own = [sampling] * len(text) if isinstance(sampling, SamplingConfig) else list(sampling)
    if len(own) != len(text):
        raise ValueError(f"{len(own)} options of sampling for {len(text)} prompts; give one for all, or one for each")
    height, width = model.config.grid
    length = height * width
    prompts = [prompt for prompt, candidates in enumerate(seeds) for _ in candidates]  # [B] whose candidate
    given, keep, lead = _forced(model, forced, forced_mask, len(text), prompts)
    uniform = torch.stack(
        [torch.rand(length, generator=torch.Generator().manual_seed(seed)) for several in seeds for seed in several]
    )
    device = model.image_head.weight.device
    window = min(engine.window, length)
    failed = torch.zeros((), dtype=torch.bool, device=device)
    samplings = [own[prompt] for prompt in prompts]
    guided = any(one.guides(lead) for one in own)
    batch_size, pack = plan_batches(model, len(prompts), lead, guided, engine.batch_size, engine.max_memory, window)
    run = _Run(model, engine, window, FusedBlocks(model.transformer) if device.type == "cpu" else None)
    done, total = 0, len(prompts) * (length - lead)

    def step(codes: Tensor, settled: int, count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)
        if watch is not None:
            watch(codes, settled)

    training = model.training
    model.eval()
    try:
        states = _TextStates(model, text.to(device))
        batches = []
        with packed(model, batch_size * window * (2 if guided else 1)) if pack else nullcontext():
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                codes, kept, numbers = given[part].to(device), keep[part].to(device), uniform[part].to(device)
                choice = Choice(samplings[part], lead, length, failed)
                run.batch(states, prompts[part], codes, kept, numbers, lead, choice, step)
                choice.check()
                batches.append(codes)
    finally:
        model.train(training)
    return torch.cat(batches).view(-1, height, width)


Step = Callable[[Tensor, int, int], None]
"""Told of codes [B, N], how many of the first N are drawn, and how many have come over all candidates in this step."""


class _Run:
    """Draws batch after batch with one model."""

    def __init__(self, model: DALLE, engine: EngineOptions, window: int, blocks: FusedBlocks | None) -> None:
        self.model, self.engine, self.window, self.blocks = model, engine, window, blocks
        self.recorded: tuple[SamplingConfig, cuda_graph.CudaGraphDecoder | None] | None = None

    def batch(
        self,
        states: _TextStates,
        prompts: list[int],
        codes: Tensor,
        keep: Tensor,
        uniform: Tensor,
        lead: int,
        choice: Choice,
        step: Step,
    ) -> None:
        """Fill in one batch of codes [B, N] where `keep` [B, N] is False, by uniform numbers [B, N]."""
        length = codes.shape[1]
        cache, first = states.start(prompts, choice.guided.tolist())
        logits = first[:, None]  # [rows, 1, V]
        graphs = self._graphs(choice)

        def run(ids: Tensor, start: int) -> Tensor:
            cache.position = self.model.config.prefix_length + start
            return self.model.extend_each(choice.expand(ids, cache.keys.shape[1]), cache, self.blocks)

        if 0 < lead < length:
            ids = choice.expand(codes[:, :lead], cache.keys.shape[1])
            logits = self.model.extend(ids, cache, self.blocks)[:, None]
        ends = [*choice.ends, length]
        for begin, end in zip([lead, *ends], ends, strict=False):  # with fewer guided candidates from one to the next
            if begin == end:
                continue
            if begin > lead:
                cache = cache.rows(0, choice.rows(begin))
                logits = run(codes[:, begin - 1 : begin], begin - 1)
            part = codes[:, :end], keep[:, :end], uniform[:, :end]

            def told(count: int, settled: int) -> None:
                step(codes, settled, count)

            if self.window > 1:
                jacobi_decode(run, choice.choose, logits, *part, begin, self.window, _counted(told, begin, len(codes)))
            elif graphs is not None:
                graphs.draw(cache, logits, *part, begin, _counted(told, begin, len(codes)), choice.expand)
            else:
                _one_by_one(run, choice.choose, logits, *part, begin, _counted(told, begin, len(codes)))

    def _graphs(self, choice: Choice) -> cuda_graph.CudaGraphDecoder | None:
        """How recorded steps draw such a batch: what is recorded has the options in it."""
        sampling = choice.samplings[0]
        if self.recorded is None or not choice.uniform or self.recorded[0] != sampling:
            self.recorded = sampling, cuda_graph.cuda_graph_decoder(self.model, choice.choose, self.engine.compiled)
        return self.recorded[1]


def _counted(told: Callable[[int, int], None], begin: int, batch: int) -> Callable[[int], None]:
    """Told of counts over all candidates, tells of them and of how many tokens each candidate has by then."""
    settled = begin

    def step(count: int) -> None:
        nonlocal settled
        settled += count // batch
        told(count, settled)

    return step


def _one_by_one(
    run: Callable[[Tensor, int], Tensor],
    choose: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    codes: Tensor,
    keep: Tensor,
    uniform: Tensor,
    lead: int,
    step: Callable[[int], None],
) -> None:
    """As `jacobi_decode`, a token a step; nothing waits for the device."""
    for i in range(lead, codes.shape[1]):
        if i > lead:
            logits = run(codes[:, i - 1 : i], i - 1)
        drawn = choose(logits, uniform[:, i : i + 1])
        codes[:, i : i + 1] = torch.where(keep[:, i : i + 1], codes[:, i : i + 1], drawn)
        step(len(codes))


class _TextStates:
    """What the model holds after each prompt's text; each is computed once and dropped after its last candidate."""

    def __init__(self, model: DALLE, text: Tensor) -> None:
        null = model.null_text(text)
        shared = bool((null == null[:1]).all())
        self.model, self.texts = model, torch.cat((text, null[:1] if shared else null))
        self.nulls = [len(text) + (0 if shared else prompt) for prompt in range(len(text))]  # a prompt's row of `texts`
        self.held: dict[int, tuple[KVCache, Tensor]] = {}  # row of `texts` -> cache of one row, logits [V]
        self.whole: KVCache | None = None

    def start(self, prompts: list[int], guided: list[int]) -> tuple[KVCache, Tensor]:
        """A full-size cache that holds these candidates' text, and a null caption for each one of `guided`.

        With logits [rows, V]. It is the cache of the batch before, where that had as many rows.
        """
        rows = prompts + [self.nulls[prompts[candidate]] for candidate in guided]
        self.held = {row: state for row, state in self.held.items() if row in rows}
        fresh = sorted(set(rows) - set(self.held))
        if fresh:
            logits, cache = self.model.prefill(self.texts[fresh])
            self.held |= {row: (cache.row(i), logits[i]) for i, row in enumerate(fresh)}
        states = [self.held[row] for row in rows]
        if self.whole is None or self.whole.keys.shape[1] != len(states):
            self.whole = None  # given back first
            self.whole = self.model.new_cache(len(states))
        self.whole.fill([state for state, _ in states])
        return self.whole, torch.stack([logits for _, logits in states])


def _forced(
    model: DALLE, forced: Tensor | None, forced_mask: Tensor | None, prompt_count: int, prompts: list[int]
) -> tuple[Tensor, Tensor, int]:
    """Codes [B, N], which of them to keep [B, N] bool, and how many tokens at the start all candidates keep; on CPU."""
    length = model.config.image_length
    if forced is None and forced_mask is None:
        shape = (len(prompts), length)
        return torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool), 0
    if forced is None or forced_mask is None:
        raise ValueError("forced and forced_mask go together: give the codes and which of them to keep")
    if forced_mask.dtype != torch.bool:
        raise ValueError(f"forced_mask is {forced_mask.dtype}; it must be bool, True where a code is kept")
    codes = _per_candidate(forced, "forced", model.config.grid, prompt_count, prompts).to(torch.int64)
    keep = _per_candidate(forced_mask, "forced_mask", model.config.grid, prompt_count, prompts)
    kept = codes[keep]
    if len(kept) and (kept.min() < 0 or kept.max() >= model.config.image_vocab):
        raise ValueError(
            f"forced has codes from {kept.min()} to {kept.max()}; "
            f"the model's go from 0 to {model.config.image_vocab - 1}"
        )
    lead = int(keep.all(0).int().cumprod(0).sum())
    return codes, keep, lead


def _per_candidate(values: Tensor, name: str, grid: tuple[int, int], prompt_count: int, prompts: list[int]) -> Tensor:
    """Bring [N], [P, N] or [B, N], or these with h, w in place of N, to a new [B, N] on the CPU."""
    length = grid[0] * grid[1]
    shape = tuple(values.shape)
    rows = shape[:-2] if shape[-2:] == grid else shape[:-1]
    fits = shape[-2:] == grid or shape[-1:] == (length,)
    flat = values.detach().cpu().reshape(-1, length) if fits and len(rows) < 2 else values
    if not fits or len(rows) > 1 or len(flat) not in (1, prompt_count, len(prompts)):
        raise ValueError(
            f"{name} has shape {list(shape)}; expected [{length}] or {list(grid)}, "
            f"with {prompt_count} (prompts) or {len(prompts)} (candidates) in front or nothing"
        )
    if len(flat) == len(prompts):
        return flat.clone()
    return flat[prompts] if len(flat) == prompt_count else flat.repeat(len(prompts), 1)
