"""Draws image codes from a DALLE: prefill, then one token or a few a step. Knows nothing of pixels, words or files.

Letters: P prompts, B candidates of all prompts, T text length, N = h * w image tokens, V image vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from dalle.generation import cuda_graph
from dalle.generation.batching import plan_batches
from dalle.generation.cpu_step import FusedBlocks
from dalle.generation.jacobi import jacobi_decode
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.generation.sampling import guide, sample
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.linear import packed
from dalle.models.dalle import DALLE

Progress = Callable[[int, int], None]
"""Called after each step with the image tokens drawn so far and in all, over all candidates."""


@torch.no_grad()
def generate(
    model: DALLE,
    text: Tensor,
    seeds: Sequence[Sequence[int]],
    sampling: SamplingConfig = SamplingConfig(),
    engine: EngineOptions = EngineOptions(),
    *,
    forced: Tensor | None = None,
    forced_mask: Tensor | None = None,
    progress: Progress | None = None,
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
            (c - u)` with u from the null caption (`DALLE.null_text`); 1 runs no null caption, 0 is that alone.
        engine: speed and memory, on which the codes do not depend.
        forced: int codes to keep, for all candidates, for each prompt's or for each candidate: [N], [P, N] or [B, N]
            (or with h, w in place of N).
        forced_mask: bool, shaped in one of these ways too; True = keep the code of `forced`. To go on from the first
            rows of an image, mark these rows.
        progress: called after each step, so that its calls count the steps.

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
    height, width = model.config.grid
    prompts = [prompt for prompt, own in enumerate(seeds) for _ in own]  # [B] whose candidate
    given, keep, lead = _forced(model, forced, forced_mask, len(text), prompts)
    uniform = torch.stack(
        [torch.rand(height * width, generator=torch.Generator().manual_seed(seed)) for own in seeds for seed in own]
    )
    device = model.image_head.weight.device
    window = min(engine.window, height * width)
    options = _Choice(sampling, torch.zeros((), dtype=torch.bool, device=device))
    steps = cuda_graph.cuda_graph_decoder(model, options.choose, engine.compiled)
    blocks = FusedBlocks(model.transformer) if device.type == "cpu" else None
    batch_size, pack = plan_batches(
        model, len(prompts), lead, sampling.guides(lead), engine.batch_size, engine.max_memory, window
    )
    rows = batch_size * window * (2 if sampling.guides(lead) else 1)
    done, total = 0, len(prompts) * (height * width - lead)

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    training = model.training
    model.eval()
    try:
        states = _TextStates(model, text.to(device))
        batches = []
        with packed(model, rows) if pack else nullcontext():
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                codes, kept, numbers = given[part].to(device), keep[part].to(device), uniform[part].to(device)
                _draw(model, states, prompts[part], codes, kept, numbers, lead, options, window, step, steps, blocks)
                options.check()
                batches.append(codes)
    finally:
        model.train(training)
    return torch.cat(batches).view(-1, height, width)


class _Choice(NamedTuple):
    """Codes from logits."""

    sampling: SamplingConfig
    failed: Tensor
    """Bool scalar on the model's device: some logits were no distribution."""

    def check(self) -> None:
        """Refuse what was drawn from logits that are not finite; this waits for the device."""
        if self.failed:
            raise ValueError(
                "the model's logits are nan or infinite, so no code can be drawn from them: its training has diverged, "
                "or it overflows in float16 (then draw in float32 or bfloat16)"
            )

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Codes [B, n] that uniform numbers [B, n] draw from logits [B, n, V], or from [2 B, n, V] with guidance."""
        own = logits.float()
        if len(own) > len(uniform):
            conditional, unconditional = own.chunk(2)
            own = guide(conditional, unconditional, self.sampling.guidance)
        drawn = sample(own.flatten(0, 1), uniform.flatten(), self.sampling, self.failed)
        return drawn.view(uniform.shape)


def _draw(
    model: DALLE,
    states: _TextStates,
    prompts: list[int],
    codes: Tensor,
    keep: Tensor,
    uniform: Tensor,
    lead: int,
    options: _Choice,
    window: int,
    step: Callable[[int], None],
    steps: cuda_graph.CudaGraphDecoder | None,
    blocks: FusedBlocks | None,
) -> None:
    """Fill in one batch of codes [B, N] where `keep` [B, N] is False, by uniform numbers [B, N]."""
    sampling, length = options.sampling, codes.shape[1]
    guided = sampling.guides(lead)
    cache, first = states.start(prompts, guided)
    logits = first[:, None]  # [rows, 1, V]

    def both(ids: Tensor) -> Tensor:
        return torch.cat((ids, ids)) if guided else ids

    def run(ids: Tensor, start: int) -> Tensor:
        cache.position = model.config.prefix_length + start
        return model.extend_each(both(ids), cache, blocks)

    if 0 < lead < length:
        logits = model.extend(both(codes[:, :lead]), cache, blocks)[:, None]
    change = lead if not guided else length if sampling.guidance_until is None else min(sampling.guidance_until, length)
    for begin, end in ((lead, change), (change, length)):  # with guidance, without it
        if begin == end:
            continue
        if guided and not sampling.guides(begin):
            guided, cache = False, cache.rows(0, len(codes))
        if begin > lead:
            logits = run(codes[:, begin - 1 : begin], begin - 1)
        part = codes[:, :end], keep[:, :end], uniform[:, :end]
        if window > 1:
            jacobi_decode(run, options.choose, logits, *part, begin, window, step)
        elif steps is not None:
            steps.draw(cache, logits, *part, begin, step)
        else:
            _one_by_one(run, options.choose, logits, *part, begin, step)


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

    def start(self, prompts: list[int], guided: bool) -> tuple[KVCache, Tensor]:
        """A full-size cache that holds these candidates' text (and as many null captions), and logits [rows, V].

        It is the one of the batch before, where that had as many rows.
        """
        rows = prompts + ([self.nulls[prompt] for prompt in prompts] if guided else [])
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
