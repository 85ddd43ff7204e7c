"""Steps of drawing that a GPU could repeat alone: the tokens of the plain way, without waiting for the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dalle.generation import cuda_graph
from dalle.generation import generate as _generate
from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.kernels import switches
from support.generation import generate
from support.published.references.transformers import CASES, features, inputs
from support.published.transformers import built, read, reference
from support.tiny_transformers import KINDS, OPTIONS, SEEDS, TEXT, tiny


def both(monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """What recorded steps draw, and the plain way."""
    drawn = generate(*args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graph, "cuda_graph_decoder", lambda *_: None)
        return drawn, generate(*args, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graph_tokens_equal_eager(kind: dict, recorded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_KEY_BUCKET", 4)
    drawn, plain = both(monkeypatch, tiny(kind), TEXT, SEEDS, guidance=2.0)
    assert torch.equal(drawn, plain)
    assert len(recorded) > 1 and recorded == sorted(set(recorded))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lead", [0, 5])
def test_cuda_graph_tokens_equal_eager_with_known_codes_and_options(
    options: dict[str, Any], lead: int, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask.view(-1)[:lead] = True
    mask[2, 1] = True
    forced = torch.arange(12).view(3, 4) % 11
    drawn, plain = both(monkeypatch, tiny({}), TEXT, SEEDS, known_codes=forced, known_mask=mask, **options)
    assert torch.equal(drawn, plain) and recorded
    assert torch.equal(drawn[:, mask], forced[mask].expand(len(drawn), -1))


def test_batches_of_the_same_size_share_a_recording(recorded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, plain = both(monkeypatch, tiny({}), TEXT[:1], [[1, 2, 3, 4]], batch_size=2)
    assert torch.equal(drawn, plain) and len(recorded) == 1


def test_a_batch_of_several_options_leaves_its_recording_to_no_other(
    recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of the options A B, then A alone, then A B and A A: the second of each has the first's first options."""
    one, other = SamplingConfig(temperature=0.5, guidance=2.0), SamplingConfig(top_k=2, guidance=3.0)
    for samplings in ([one, other, one], [one, other, one, one]):
        arguments = tiny({}), TEXT[:1].expand(len(samplings), -1), [[i] for i in range(len(samplings))], samplings
        drawn = _generate.generate(*arguments, EngineOptions(batch_size=2))
        with monkeypatch.context() as patch:
            patch.setattr(cuda_graph, "cuda_graph_decoder", lambda *_: None)
            assert torch.equal(drawn, _generate.generate(*arguments, EngineOptions(batch_size=2)))
    assert recorded


@pytest.mark.parametrize("case", CASES)
def test_cuda_graph_tokens_of_published_models_equal_eager(
    case: str, tmp_path: Path, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(read(case, reference(case)[0], tmp_path)).double()
    text = inputs()[0]
    if case.startswith("llamagen"):
        text = features().double() if case == "llamagen-t2i" else torch.tensor([[3], [7]])
    drawn, plain = both(monkeypatch, model, text, [[0, 1], [1]], guidance=2.0, temperature=0.7, batch_size=2)
    assert torch.equal(drawn, plain) and recorded


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(KINDS[4], {}, marks=pytest.mark.slow),
        pytest.param(KINDS[4], {"temperature": 0}, marks=pytest.mark.slow),
        (KINDS[5], {"guidance": 2.0, "top_k": 5, "top_p": 0.9}),
    ],
)
def test_no_host_sync_while_decoding(
    kind: dict, options: dict[str, Any], recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as one graph: a number that Python had to know of the device would have cut it, which is an error."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with switches.force_backend(native="off"):
        drawn, plain = both(monkeypatch, tiny(kind), TEXT[:1], [[1, 2]], compiled=True, **options)
    assert torch.equal(drawn, plain) and recorded


@pytest.mark.slow
def test_compiled_cuda_graph_tokens_equal_eager(recorded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_KEY_BUCKET", 4)
    with switches.force_backend(native="off"):
        drawn, plain = both(monkeypatch, tiny(KINDS[4]), TEXT, SEEDS, compiled=True, guidance=2.0, batch_size=3)
    assert torch.equal(drawn, plain) and recorded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graph_tokens_equal_eager_on_a_gpu(kind: dict, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind).to("cuda")
    options = {"guidance": 2.5, "guidance_until": 5, "batch_size": 2, "compiled": compiled}
    drawn, plain = both(monkeypatch, model, TEXT, SEEDS, **options)
    assert torch.equal(drawn, plain)
