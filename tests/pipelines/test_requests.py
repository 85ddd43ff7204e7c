"""Requests with options of their own in one batch: each candidate is the one that it is alone."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from dalle.generation.options import EngineOptions, SamplingConfig
from dalle.pipelines.init_image import InitImage
from dalle.pipelines.request import Request
from dalle.pipelines.text_to_image import TextToImage
from support.tiny_model import GRID, IMAGE_SIZE

LENGTH = GRID[0] * GRID[1]


def noise() -> Image.Image:
    values = torch.randint(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), generator=torch.Generator().manual_seed(3))
    return Image.fromarray(values.to(torch.uint8).numpy())


def different(pipe: TextToImage) -> list[Request]:
    """Every option differs from one to the next; guidance ends in the middle, at the start and never."""
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    mask.paste(255, (4, 8, 16, 16))
    return [
        Request("a red heart", (7,), SamplingConfig()),
        Request("two green stars", (1, 2), SamplingConfig(guidance=3.0, guidance_until=5)),
        Request("", (4,), SamplingConfig(guidance=2.0, temperature=0.0)),
        Request(
            "लाल दिल",
            (9,),
            SamplingConfig(guidance=1.5, temperature=0.7, top_k=7),
            pipe.encode_init_image(noise(), 0.5, None),
        ),
        Request(
            "a red heart",
            (7,),
            SamplingConfig(guidance=0.0, top_p=0.8),
            pipe.encode_init_image(noise(), None, mask),
            False,
        ),
        Request("two green stars", (5,), SamplingConfig(guidance=4.0, guidance_until=11, top_p=0.9)),
    ]


@pytest.mark.parametrize("engine", [EngineOptions(), EngineOptions(window=4), EngineOptions(batch_size=3)])
def test_images_do_not_depend_on_the_batch(tiny_pipe: TextToImage, engine: EngineOptions) -> None:
    requests = different(tiny_pipe)
    for request, together in zip(requests, tiny_pipe.draw(requests, engine)):
        (alone,) = tiny_pipe.draw([request])
        assert torch.equal(together.codes, alone.codes)
        assert [one.tobytes() for one in together.images] == [one.tobytes() for one in alone.images]
        assert together.seeds == list(request.seeds)
        assert (together.scores is None) == (not request.scored)


def test_watched_codes_are_a_prefix_of_the_result(tiny_pipe: TextToImage) -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    requests = different(tiny_pipe)[:3]
    results = tiny_pipe.draw(requests, watch=lambda codes, settled: seen.append((settled, codes.clone())))
    final = torch.cat([result.codes.flatten(1) for result in results])
    assert [settled for settled, _ in seen] == list(range(1, LENGTH + 1))
    for settled, codes in seen:
        assert torch.equal(codes[:, :settled], final[:, :settled])


def test_stopped_generation_continues_to_the_same_codes(tiny_pipe: TextToImage) -> None:
    class Stop(Exception):
        pass

    held: list[torch.Tensor] = []

    def stop(codes: torch.Tensor, settled: int) -> None:
        if settled == 6:
            held.append(codes.clone())
            raise Stop

    request = Request("a red heart", (7, 8), SamplingConfig(guidance=3.0, guidance_until=9))
    (whole,) = tiny_pipe.draw([request])
    with pytest.raises(Stop):
        tiny_pipe.draw([request], watch=stop)
    kept = torch.zeros(GRID, dtype=torch.bool)
    kept.view(-1)[:6] = True
    begun = InitImage(held[0].view(-1, *GRID), kept)
    (rest,) = tiny_pipe.draw([Request(request.prompt, request.seeds, request.sampling, begun)])
    assert torch.equal(rest.codes, whole.codes)


def test_sampling_configs_are_one_or_one_per_prompt(tiny_pipe: TextToImage) -> None:
    from dalle.generation.generate import generate

    with pytest.raises(ValueError, match="got 1 sampling configs for 2 prompts"):
        generate(tiny_pipe.model, torch.ones(2, 3, dtype=torch.int64), [[0], [1]], [SamplingConfig()])
