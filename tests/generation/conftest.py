"""What several tests of decoding use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dalle.generation import cuda_graph
from dalle.models.dalle import DALLE


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes `generate` draw by recorded steps, played back in Python; a list of the key buckets that were recorded."""
    buckets: list[int] = []

    def drawing(model: DALLE, sample_tokens: cuda_graph.SampleTokens, compiled: bool) -> cuda_graph.CudaGraphDecoder:
        def record(warmup: Callable[[], None], run: Callable[[], None]) -> Callable[[], object]:
            cache = next(reversed(made.steps.values())).step.cache
            bucket = cache.key_bucket
            buckets.append(bucket)
            warmup()
            warmup()

            def replay() -> None:
                cache.key_bucket = bucket
                run()

            return replay

        made = cuda_graph.CudaGraphDecoder(model, sample_tokens, compiled, record)
        return made

    monkeypatch.setattr(cuda_graph, "cuda_graph_decoder", drawing)
    return buckets
