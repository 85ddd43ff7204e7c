"""What the pipeline does, it does for every family of language models that draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dalle
from dalle.generation.batching import row_bytes
from dalle.images.transforms import to_tensor
from dalle.kernels.linear import Int8Linear
from dalle.pipelines.request import Request
from support.native_decode import check_fused_step
from support.published.families import WRITERS
from support.tiny_model import make_tiny_model

pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
pytest.importorskip("regex")
GRID: dict[str, Any] = {"grid": 4}
PROMPTS = ["a fox", "two cats, 12 dogs in the snow"]
NEGATIVE = ("emu3", "emu35", "simplear")
# Rows and columns, of those that draw others than 4 x 4 within the same number
SIZES = {"lumina": (8, 2), "emu3": (3, 5), "emu35": (2, 5), "simplear": (3, 3)}


@pytest.fixture(scope="module", params=WRITERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    made = WRITERS[request.param](tmp_path_factory.mktemp(request.param))
    images = {} if made.images is None else {"image_tokenizer": made.images}
    return request.param, {"source": made.model, "device": "cpu", **images, **GRID}


@pytest.fixture(scope="module")
def pipe(family: tuple[str, dict[str, Any]]) -> dalle.TextToImage:
    found = dalle.TextToImage.from_pretrained(**family[1])
    # Random weights are sure of few codes
    found.sampling = found.sampling.updated(temperature=30.0, top_k=None, top_p=None)
    return found


def test_a_candidate_is_its_prompt_and_seed(pipe: dalle.TextToImage) -> None:
    together = pipe(PROMPTS, n=3, seed=5)
    for engine in ({}, {"window": 3}):
        for result, prompt in zip(together, PROMPTS, strict=True):
            (alone,) = pipe(prompt, n=1, seed=6, **engine)
            assert torch.equal(alone.codes[0], result.codes[1]), engine
    drawn = torch.cat([result.codes for result in together]).flatten(1)
    assert len(drawn.unique(dim=0)) == 6


def test_known_rows_and_masked_parts_stay(pipe: dalle.TextToImage) -> None:
    (first,) = pipe(PROMPTS[0], seed=1)
    image = first.images[0]
    known = pipe.image_tokenizer.encode(to_tensor(image, *pipe.size))[0]
    for count, keep in ((1, 1), (2, 0.5)):
        for result in pipe(PROMPTS, n=2, seed=3, image=image, keep_rows=keep):
            assert torch.equal(result.codes[:, :count], known[:count].expand(2, -1, -1))
            assert not torch.equal(result.codes[0, count:], result.codes[1, count:])
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, image.width // 2, image.height))
    for engine in ({}, {"window": 4}):
        (result,) = pipe(PROMPTS[1], n=2, seed=3, image=image, mask=mask, **engine)
        assert torch.equal(result.codes[:, :, 2:], known[:, 2:].expand(2, -1, -1))
        assert not torch.equal(result.codes[0, :, :2], result.codes[1, :, :2])
        box = (image.width // 2, 0, image.width, image.height)
        assert result.images[0].crop(box).tobytes() == image.crop(box).tobytes()


def test_previews_have_the_codes_so_far(pipe: dalle.TextToImage) -> None:
    seen: list[tuple[torch.Tensor, int]] = []
    told: list[tuple[int, int]] = []
    requests = [Request(prompt, (5,), pipe.sampling) for prompt in PROMPTS]
    results = pipe.draw(
        requests,
        watch=lambda codes, count: seen.append((codes.clone(), count)),
        progress=lambda count, whole: told.append((count, whole)),
    )
    final = torch.cat([result.codes for result in results]).flatten(1)
    for codes, count in seen:
        assert codes.shape == final.shape and torch.equal(codes[:, :count], final[:, :count])
    assert [count for _, count in seen][-1] == 16 and told[-1][0] == told[-1][1]
    assert torch.equal(torch.cat([one.codes for one in pipe(PROMPTS, seed=5)]).flatten(1), final)


def test_negative_prompts_lead_away_or_are_refused(family: tuple[str, dict[str, Any]], pipe: dalle.TextToImage) -> None:
    assert pipe.takes_negative == (family[0] in NEGATIVE)
    if not pipe.takes_negative:
        with pytest.raises(ValueError, match="this model takes no negative prompt: leave it out"):
            pipe(PROMPTS[0], negative="blurry")
        return
    plain, named = (pipe(PROMPTS, n=2, seed=1, negative=negative) for negative in (None, "blurry, low quality"))
    assert all(not torch.equal(one.codes, other.codes) for one, other in zip(plain, named, strict=True))
    (alone,) = pipe(PROMPTS[1], seed=2, negative="blurry, low quality", batch_size=1)
    assert torch.equal(alone.codes[0], named[1].codes[1])


def test_other_sizes_are_drawn_or_refused(family: tuple[str, dict[str, Any]], pipe: dalle.TextToImage) -> None:
    factor = pipe.image_tokenizer.factor
    rows, columns = SIZES.get(family[0], (3, 5))
    size = columns * factor, rows * factor
    if family[0] not in SIZES:
        with pytest.raises(ValueError, match=r"this model draws|sides must be multiples of 32"):
            pipe(PROMPTS[0], size=size)
        return
    results = pipe(PROMPTS, n=2, seed=1, size=size)
    assert all(one.codes.shape[1:] == (rows, columns) and one.images[0].size == size for one in results)
    for engine in ({"batch_size": 1}, {"window": 4}):
        (alone,) = pipe(PROMPTS[1], seed=2, size=size, **engine)
        assert torch.equal(alone.codes[0], results[1].codes[1])


def test_clip_ranks_its_candidates(pipe: dalle.TextToImage, tmp_path: Path) -> None:
    ranked = dalle.TextToImage(
        pipe.model,
        pipe.text_tokenizer,
        pipe.image_tokenizer,
        dalle.load_clip(make_tiny_model(tmp_path / "tiny") / "clip"),
        pipe.sampling,
    )
    (whole,) = ranked(PROMPTS[0], n=4, seed=2)
    (best,) = ranked(PROMPTS[0], n=4, keep=2, seed=2, distinct=False)
    assert whole.scores is not None and best.scores is not None
    order = torch.tensor(whole.scores).argsort(descending=True)[:2].tolist()
    assert [whole.seeds[i] for i in order] == list(best.seeds)


def test_in_8_bits_it_says_nearly_the_same(family: tuple[str, dict[str, Any]], pipe: dalle.TextToImage) -> None:
    small = dalle.TextToImage.from_pretrained(**family[1], dtype=torch.int8)
    assert sum(isinstance(one, Int8Linear) for one in small.model.modules()) >= 4 * pipe.model.config.transformer.depth
    codes = torch.randint(pipe.model.config.image_vocab, (2, 16), generator=torch.Generator().manual_seed(0))
    text = pipe.text_tokenizer.encode(PROMPTS, pipe.model.config.text_length)  # type: ignore[union-attr]
    with torch.no_grad():
        wanted, found = pipe.model(text, codes), small.model(text, codes)
    assert (found - wanted).std() < 0.1 * wanted.std()
    (result,) = small(PROMPTS[0], n=2, seed=1)
    assert result.codes.shape == (2, 4, 4) and row_bytes(small.model, 0) == row_bytes(pipe.model, 0)


def test_the_compiled_step_gives_its_logits(pipe: dalle.TextToImage) -> None:
    text = pipe.text_tokenizer.encode(PROMPTS[:1], 100)  # type: ignore[union-attr]
    codes = torch.randint(pipe.model.config.image_vocab, (1, 16), generator=torch.Generator().manual_seed(1))
    check_fused_step(pipe.model, text, codes)
