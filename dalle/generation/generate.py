"""Generates image codes with a DALLE: prefill, then one or a few tokens per step. Knows no pixels, words or files.

Shapes: P prompts, B candidates of all prompts, T text length, N = h * w image tokens, V image vocabulary.
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
from dalle.generation.prefill import PrefilledPrompts
from dalle.generation.progress import Progress
from dalle.generation.token_sampler import TokenSampler
from dalle.generation.token_stream import TokenStream
from dalle.kernels.linear import packed
from dalle.models.dalle import DALLE

Watch = Callable[[Tensor, int], None]
"""Called after each step with the codes [B, N] being generated, and how many of the first N are finished; read only.
What it raises ends the work."""


@torch.no_grad()
def generate(
    model: DALLE,
    text: Tensor,
    seeds: Sequence[Sequence[int]],
    sampling: SamplingConfig | Sequence[SamplingConfig] = SamplingConfig(),
    engine: EngineOptions = EngineOptions(),
    *,
    negative: Tensor | None = None,
    known_codes: Tensor | None = None,
    known_mask: Tensor | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Generate one image's codes for each seed.

    A candidate depends only on the model, its prompt, its seed and the options: its N uniform numbers come from its own
    CPU generator, so it does not change with the rest of the batch or with how the batch is split (up to floating-point
    ties). Each prompt's text is run once.

    Args:
        model: run in eval mode; its mode is restored.
        text: the prompts' ids, int [P, <= T], or features, float [P, <= T, F].
        seeds: for each prompt, the seeds of its candidates, at least one.
        sampling: how codes are sampled from logits, one for all prompts or one for each. Classifier-free guidance is
            applied to the image logits, `u + guidance * (c - u)` with u from the null caption (`DALLE.null_text`); 1
            skips the null caption, 0 uses only it.
        engine: speed and memory, which do not affect the codes.
        negative: ids of what guidance leads away from, shaped like `text`; None: the null captions.
        known_codes: int codes to keep, for all candidates, per prompt or per candidate: [N], [P, N] or [B, N] (or with
            h, w instead of N).
        known_mask: bool, in any of these shapes; True = keep the code in `known_codes`. To continue an image from its
            first rows, mark these rows.
        progress: called after each step with the image tokens (row ends too) generated so far and in all, over all
            candidates; the number of calls is the number of steps.
        watch: called after each step with the codes so far.

    Returns:
        int64 codes [B, h, w] on the model's device: all candidates of the first prompt in the order of its seeds, then
        those of the second.

    Raises:
        ValueError: an option is out of range, shapes do not match, a prompt has no seed, or the model's logits are not
            finite, which is checked once per batch.
    """
    if len(seeds) != len(text) or not seeds or not all(seeds):
        counts = [len(one) for one in seeds]
        raise ValueError(f"got {len(text)} prompts with {counts} seeds; give each prompt at least one seed")
    if negative is not None and negative.shape != text.shape:
        raise ValueError(f"negative is {list(negative.shape)}, the text {list(text.shape)}: give one row per prompt")
    per_prompt = [sampling] * len(text) if isinstance(sampling, SamplingConfig) else list(sampling)
    if len(per_prompt) != len(text):
        raise ValueError(f"got {len(per_prompt)} sampling configs for {len(text)} prompts; give one, or one per prompt")
    stream = TokenStream(model.config)
    length = stream.length
    per_prompt = [stream.of_options(one) for one in per_prompt]
    prompts = [prompt for prompt, own in enumerate(seeds) for _ in own]  # [B] the prompt of each candidate
    codes, kept = _known(model, known_codes, known_mask, len(text), prompts)
    known, mask = stream.of_codes(codes), stream.of_codes(kept, True)  # row ends are always known
    # A prefix that all candidates know is run at once; known tokens after it only replace what is sampled there
    known_prefix = int(mask.all(0).int().cumprod(0).sum())
    # All uniform numbers in advance: number i belongs to token i, however many tokens a step generates
    uniform = torch.stack(
        [
            torch.rand(model.config.image_length, generator=torch.Generator().manual_seed(seed))
            for several in seeds
            for seed in several
        ]
    )
    uniform = stream.of_codes(uniform, 0.0)  # row ends draw nothing
    device = model.image_head.weight.device
    window = min(engine.window, length)
    # Set on the device and read once per batch: reading it in each step would make the host wait
    failed = torch.zeros((), dtype=torch.bool, device=device)
    samplings = [per_prompt[prompt] for prompt in prompts]
    guided = any(one.guides(known_prefix) for one in per_prompt)
    batch_size, pack = plan_batches(
        model, len(prompts), known_prefix, guided, engine.batch_size, engine.max_memory, window
    )
    generator = _BatchGenerator(model, engine, window, FusedBlocks(model.transformer) if device.type == "cpu" else None)
    done, total = 0, len(prompts) * (length - known_prefix)

    def on_step(codes: Tensor, finished: int, count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)
        if watch is not None:
            watch(stream.to_codes(codes), stream.count_codes(finished))

    training = model.training  # dropout would make candidates depend on the batch
    model.eval()
    try:
        prefixes = PrefilledPrompts(model, text.to(device), None if negative is None else negative.to(device))
        batches = []
        with packed(model, batch_size * window * (2 if guided else 1)) if pack else nullcontext():
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                batch = _Batch(prompts[part], known[part].to(device), mask[part].to(device), uniform[part].to(device))
                sampler = TokenSampler(samplings[part], known_prefix, length, failed)
                generator.run(prefixes, batch, known_prefix, sampler, on_step)
                sampler.check()
                batches.append(batch.codes)
    finally:
        model.train(training)
    return stream.to_codes(torch.cat(batches)).view(-1, *model.config.grid)


OnStep = Callable[[Tensor, int, int], None]
"""Called with codes [B, N], how many of the first N are finished, and how many codes this step finished in total."""


class _Batch(NamedTuple):
    """Candidates that are generated together."""

    prompts: list[int]
    """The prompt of each of the B candidates."""
    codes: Tensor
    """Int64 [B, N], filled in where `known_mask` is False."""
    known_mask: Tensor
    """Bool [B, N]."""
    uniform: Tensor
    """[B, N] in [0, 1)."""


class _BatchGenerator:
    """Generates batch after batch with one model."""

    def __init__(self, model: DALLE, engine: EngineOptions, window: int, blocks: FusedBlocks | None) -> None:
        self.model, self.engine, self.window, self.blocks = model, engine, window, blocks
        self.recorded: tuple[SamplingConfig, cuda_graph.CudaGraphDecoder | None] | None = None  # of uniform batches

    def run(
        self, prefixes: PrefilledPrompts, batch: _Batch, known_prefix: int, sampler: TokenSampler, on_step: OnStep
    ) -> None:
        """Fill in the codes of one batch where they are not known; all know the first `known_prefix`."""
        codes, length = batch.codes, batch.codes.shape[1]
        # Rows: the candidates, then those of them that need guidance once more, with the null caption
        cache, first = prefixes.start(batch.prompts, sampler.guided.tolist())
        logits = first[:, None]  # [rows, 1, V]
        graphs = self._graphs(sampler)

        def run(ids: Tensor, start: int) -> Tensor:
            # Set back to `start`, as Jacobi decoding runs tokens again whose predecessors were guessed wrong
            cache.position = cache.prefix + start
            return self.model.extend_each(sampler.expand(ids, cache.keys.shape[1]), cache, self.blocks)

        if 0 < known_prefix < length:  # all known tokens in one pass, instead of a step each
            ids = sampler.expand(codes[:, :known_prefix], cache.keys.shape[1])
            logits = self.model.extend(ids, cache, self.blocks)[:, None]
        # One round up to each token where guidance ends for some candidates: from there on their unconditional rows
        # are dropped, so that the next round runs with fewer rows
        ends = [*sampler.ends, length]
        for begin, end in zip([known_prefix, *ends], ends, strict=False):
            if begin == end:
                continue
            if begin > known_prefix:
                cache = cache.rows(0, sampler.rows(begin))
                # The last round ended with its last code sampled but not run, as a decoder never feeds the last one
                logits = run(codes[:, begin - 1 : begin], begin - 1)
            part = codes[:, :end], batch.known_mask[:, :end], batch.uniform[:, :end]

            def report(count: int, finished: int) -> None:
                on_step(codes, finished, count)

            on_progress = _count_finished(report, begin, len(codes))
            if self.window > 1:
                jacobi_decode(run, sampler.sample_tokens, logits, *part, begin, self.window, on_progress)
            elif graphs is not None:
                graphs.decode(cache, logits, *part, begin, on_progress, sampler.expand)
            else:
                _decode_sequentially(run, sampler.sample_tokens, logits, *part, begin, on_progress)

    def _graphs(self, sampler: TokenSampler) -> cuda_graph.CudaGraphDecoder | None:
        """The CUDA graphs for such a batch. They have the sampling options in them, so others need new ones."""
        sampling = sampler.samplings[0]
        if sampler.uniform and self.recorded is not None and self.recorded[0] == sampling:
            return self.recorded[1]
        graphs = cuda_graph.cuda_graph_decoder(self.model, sampler.sample_tokens, self.engine.compiled)
        # One of candidates with different options is of these candidates alone
        self.recorded = (sampling, graphs) if sampler.uniform else None
        return graphs


def _count_finished(report: Progress, begin: int, batch: int) -> Callable[[int], None]:
    """A callback for counts over all candidates that adds how many tokens each candidate has finished."""
    finished = begin

    def on_progress(count: int) -> None:
        nonlocal finished
        finished += count // batch
        report(count, finished)

    return on_progress


def _decode_sequentially(
    run: Callable[[Tensor, int], Tensor],
    sample_tokens: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    codes: Tensor,
    known_mask: Tensor,
    uniform: Tensor,
    start: int,
    on_progress: Callable[[int], None],
) -> None:
    """Like `jacobi_decode`, with one token per step.

    Sampling writes into `codes` on the device, from which the next step reads: the host queues all steps without
    waiting for any of them.
    """
    for i in range(start, codes.shape[1]):
        if i > start:
            logits = run(codes[:, i - 1 : i], i - 1)
        sampled = sample_tokens(logits, uniform[:, i : i + 1])
        # Known codes are sampled too and dropped: which are known differs between candidates
        codes[:, i : i + 1] = torch.where(known_mask[:, i : i + 1], codes[:, i : i + 1], sampled)
        on_progress(len(codes))


def _known(
    model: DALLE, known_codes: Tensor | None, known_mask: Tensor | None, prompt_count: int, prompts: list[int]
) -> tuple[Tensor, Tensor]:
    """Codes [B, N], and which of them are known, bool [B, N]; on the CPU."""
    length = model.config.image_length
    # Nothing is known: all codes are generated
    if known_codes is None and known_mask is None:
        shape = (len(prompts), length)
        return torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    if known_codes is None or known_mask is None:
        raise ValueError("known_codes and known_mask go together: give the codes and which of them to keep")
    if known_mask.dtype != torch.bool:
        raise ValueError(f"known_mask is {known_mask.dtype}; it must be bool, True where a code is kept")
    codes = _per_candidate(known_codes, "known_codes", model.config.grid, prompt_count, prompts).to(torch.int64)
    mask = _per_candidate(known_mask, "known_mask", model.config.grid, prompt_count, prompts)
    known = codes[mask]
    if len(known) and (known.min() < 0 or known.max() >= model.config.image_vocab):
        raise ValueError(
            f"known_codes has codes from {known.min()} to {known.max()}; "
            f"the model's are 0 to {model.config.image_vocab - 1}"
        )
    return codes, mask


def _per_candidate(values: Tensor, name: str, grid: tuple[int, int], prompt_count: int, prompts: list[int]) -> Tensor:
    """Expand [N], [P, N] or [B, N], or these with h, w instead of N, to a new [B, N] on the CPU."""
    length = grid[0] * grid[1]
    shape = tuple(values.shape)
    rows = shape[:-2] if shape[-2:] == grid else shape[:-1]
    fits = shape[-2:] == grid or shape[-1:] == (length,)
    flat = values.detach().cpu().reshape(-1, length) if fits and len(rows) < 2 else values
    if not fits or len(rows) > 1 or len(flat) not in (1, prompt_count, len(prompts)):
        raise ValueError(
            f"{name} has shape {list(shape)}; expected [{length}] or {list(grid)}, "
            f"optionally with a first dimension of {prompt_count} (prompts) or {len(prompts)} (candidates)"
        )
    if len(flat) == len(prompts):
        return flat.clone()
    return flat[prompts] if len(flat) == prompt_count else flat.repeat(len(prompts), 1)
