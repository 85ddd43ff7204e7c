"""OpenAI's own client draws, edits, varies, streams, embeds; each image is the pipeline's, bit for bit."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from PIL import Image

import sample
from dalle.apps.server.bodies import EditBody, GenerationBody, ImagesBody, VariationBody
from dalle.evaluation.zero_shot import embed_texts
from dalle.generation.options import SamplingConfig
from dalle.pipelines.text_to_image import TextToImage
from support.server import Running, running
from support.tiny_model import GRID, IMAGE_SIZE


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Running]:
    with running(tiny_model) as one:
        yield one


def image_of(data: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data.b64_json)))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def noise(mode: str = "RGB") -> Image.Image:
    values = torch.randint(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), generator=torch.Generator().manual_seed(3))
    return Image.fromarray(values.to(torch.uint8).numpy()).convert(mode)


@pytest.mark.parametrize("body", [GenerationBody, EditBody, VariationBody])
def test_bodies_take_every_sampling_option(body: type[ImagesBody]) -> None:
    given = {"guidance": 3.0, "guidance_until": 4, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "agreement": 0.5}
    assert given.keys() == {one.name for one in fields(SamplingConfig)}
    assert body.model_validate({"prompt": "a", **given}).sampling() == given
    assert body.model_validate({"prompt": "a", "top_k": 7}).sampling() == {"top_k": 7}
    with pytest.raises(ValueError, match="top_k"):
        body.model_validate({"prompt": "a", "top_k": "many"})


def test_generations_equal_the_pipelines_images(served: Running, tiny_pipe: TextToImage) -> None:
    own = {"seed": 7, "guidance": 2.0, "top_k": 9}
    answer = served.openai().images.generate(prompt="a red heart", n=3, extra_body=own)
    (alone,) = tiny_pipe("a red heart", n=3, seed=7, guidance=2.0, top_k=9)
    expected = {seed: image.tobytes() for seed, image in zip(alone.seeds, alone.images)}
    assert answer.data is not None and [one.seed for one in answer.data] == [7, 8, 9]  # type: ignore[attr-defined]
    for one in answer.data:
        assert image_of(one).convert("RGB").tobytes() == expected[one.seed]  # type: ignore[attr-defined]
    assert answer.usage is not None and answer.usage.output_tokens == 3 * GRID[0] * GRID[1]


def test_png_metadata_reproduces_the_image(served: Running, tiny_pipe: TextToImage) -> None:
    answer = served.openai().images.generate(prompt="लाल दिल", extra_body={"temperature": 0.8})
    assert answer.data is not None
    image = image_of(answer.data[0])
    texts: dict[str, str] = image.text  # type: ignore[attr-defined]
    options = {k: v for k, v in json.loads(texts["options"]).items() if k in tiny_pipe.sampling.__dataclass_fields__}
    (again,) = tiny_pipe(texts["prompt"], seed=int(texts["seed"]), **options)
    assert texts["prompt"] == "लाल दिल" and texts["model"] == tiny_pipe.model_hash and options["temperature"] == 0.8
    assert again.images[0].tobytes() == image.convert("RGB").tobytes()


def test_seeds_above_2_to_the_53_may_be_text(served: Running, tiny_pipe: TextToImage) -> None:
    """JavaScript has no such numbers, so the page sends and keeps seeds as text."""
    seed = 2**53 + 1
    answer = served.openai().images.generate(prompt="a", n=2, extra_body={"seed": str(seed)})
    (alone,) = tiny_pipe("a", n=2, seed=seed)
    assert answer.data is not None
    for number, one in enumerate(answer.data):
        place = [seed, seed + 1].index(one.seed)  # type: ignore[attr-defined]
        image = image_of(one)
        assert image.text["seed"] == str(seed + place)  # type: ignore[attr-defined]
        expected = alone.images[alone.seeds.index(seed + place)]
        assert image.convert("RGB").tobytes() == expected.tobytes(), number


def test_the_last_of_all_seeds_is_taken(served: Running) -> None:
    answer = served.openai().images.generate(prompt="a", extra_body={"seed": str(2**63 - 1)})
    assert answer.data is not None and [one.seed for one in answer.data] == [2**63 - 1]  # type: ignore[attr-defined]


def test_images_have_the_requested_size_and_format(served: Running) -> None:
    images = served.openai().images
    answer = images.generate(prompt="a", size="1024x1024", output_format="webp", output_compression=50)  # type: ignore[call-overload]
    assert image_of(answer.data[0]).size == (1024, 1024) and image_of(answer.data[0]).format == "WEBP"
    answer = images.generate(prompt="a", size="40x24", output_format="jpeg", response_format="url")  # type: ignore[call-overload]
    head, _, data = answer.data[0].url.partition(",")
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 24)


def test_clip_chooses_among_candidates(served: Running, tiny_pipe: TextToImage) -> None:
    answer = served.openai().images.generate(prompt="two green stars", n=2, extra_body={"seed": 3, "candidates": 6})
    (best,) = tiny_pipe("two green stars", n=6, keep=2, seed=3)
    assert answer.data is not None and [one.seed for one in answer.data] == best.seeds  # type: ignore[attr-defined]
    assert [one.score for one in answer.data] == pytest.approx(best.scores, abs=1e-5)  # type: ignore[attr-defined]


def test_edits_inpaint_transparent_pixels(served: Running, tiny_pipe: TextToImage) -> None:
    original, white = noise(), Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    white.paste(255, (4, 8, 16, 16))
    clear = original.copy()
    clear.putalpha(white.point(lambda value: 255 - value))
    (alone,) = tiny_pipe("a red heart", seed=5, image=original, mask=white)
    images = served.openai().images
    whole, hole = ("image.png", png(original)), ("mask.png", png(clear))
    answer = images.edit(image=whole, mask=hole, prompt="a red heart", n=1, extra_body={"seed": 5})
    assert answer.data is not None
    assert image_of(answer.data[0]).convert("RGB").tobytes() == alone.images[0].tobytes()
    (upper,) = tiny_pipe("a red heart", seed=5, image=original, keep_rows=2)
    answer = images.edit(image=[whole], prompt="a red heart", extra_body={"seed": 5, "keep_rows": 2})
    assert answer.data is not None
    assert image_of(answer.data[0]).convert("RGB").tobytes() == upper.images[0].tobytes()


@pytest.mark.parametrize("name", ["image", "mask"])
def test_an_edit_comes_again_from_its_png_with_a_mask_of_the_command(
    name: str,
    served: Running,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server's mask, or the image itself, is transparent where that of the command is white."""
    clear, white = noise(), Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    white.paste(255, (4, 8, 16, 16))
    clear.putalpha(white.point(lambda value: 255 - value))
    files = {"image": png(clear if name == "image" else noise()), "mask": png(clear)}
    sent = {one: (f"{one}.png", file) for one, file in files.items() if one in ("image", name)}
    answer = served.openai().images.edit(**sent, prompt="a red heart", extra_body={"seed": 5})  # type: ignore[call-overload]
    edited = tmp_path / "edited.png"
    edited.write_bytes(base64.b64decode(answer.data[0].b64_json))
    hole = {"file": name, "sha256": hashlib.sha256(files[name]).hexdigest(), "transparent": True}
    assert json.loads(Image.open(edited).text["options"])["mask"] == hole  # type: ignore[attr-defined]
    for one, file in files.items():
        (tmp_path / f"{one}.png").write_bytes(file)
    white.save(tmp_path / "white.png")
    again = ["--from", str(edited), "--image", str(tmp_path / "image.png"), "--model", str(tiny_model), "--no-grid"]
    assert sample.main([*again, "--mask", str(tmp_path / f"{name}.png")]) == 2
    assert f"was drawn where its {name} is transparent: give as --mask an image that is" in capsys.readouterr().err
    with caplog.at_level(logging.WARNING):
        out = tmp_path / "again"
        assert sample.main([*again, "--mask", str(tmp_path / "white.png"), "--out", str(out)]) == 0
    (file,) = out.glob("*/*.png")
    assert Image.open(file).convert("RGB").tobytes() == Image.open(edited).convert("RGB").tobytes()
    assert "is not the" not in caplog.text


def test_variations_keep_the_upper_half(served: Running, tiny_pipe: TextToImage) -> None:
    image = ("image.png", png(noise()))
    answer = served.openai().images.create_variation(image=image, n=2, extra_body={"seed": 1})
    (alone,) = tiny_pipe("", n=2, seed=1, image=noise(), keep_rows=0.5)
    assert answer.data is not None
    got = {one.seed: image_of(one).convert("RGB").tobytes() for one in answer.data}  # type: ignore[attr-defined]
    assert got == {seed: one.tobytes() for seed, one in zip(alone.seeds, alone.images)}


@pytest.mark.parametrize("edit", [False, True])
def test_streams_send_partial_images_by_row(served: Running, tiny_pipe: TextToImage, edit: bool) -> None:
    images = served.openai().images
    common: dict[str, Any] = {"prompt": "a red heart", "stream": True, "partial_images": 3, "extra_body": {"seed": 2}}
    if edit:
        common["extra_body"]["keep_rows"] = 1
        events = list(images.edit(image=("image.png", png(noise())), **common))
        (alone,) = tiny_pipe("a red heart", seed=2, image=noise(), keep_rows=1)
        kind, lines = "image_edit", [2, 3]
    else:
        events = list(images.generate(**common))
        (alone,) = tiny_pipe("a red heart", seed=2)
        kind, lines = "image_generation", [1, 2, 3]
    assert [event.type for event in events] == [f"{kind}.partial_image"] * len(lines) + [f"{kind}.completed"]
    step = IMAGE_SIZE // GRID[0]
    for event, rows in zip(events, lines):
        partial = image_of(event).convert("RGB")
        below = partial.crop((0, rows * step, IMAGE_SIZE, IMAGE_SIZE))
        assert below.getextrema() == ((235, 235),) * 3
    assert image_of(events[-1]).convert("RGB").tobytes() == alone.images[0].tobytes()


def test_streams_of_several_images_and_of_reranked_candidates(served: Running) -> None:
    create = served.openai().images.generate
    events = list(create(prompt="a", n=3, stream=True, extra_body={"seed": 4}))
    assert sorted(event.seed for event in events) == [4, 5, 6]  # type: ignore[union-attr]
    events = list(create(prompt="a", n=1, stream=True, extra_body={"seed": 4, "candidates": 5}))
    assert len(events) == 1 and events[0].score is not None  # type: ignore[union-attr]


def test_clients_nulls_and_options_of_other_models_change_nothing(served: Running, tiny_pipe: TextToImage) -> None:
    """None in the client's call is null in JSON and an empty field in a form."""
    nothing: dict[str, Any] = {"prompt": "a", "n": None, "size": None, "background": None, "style": None}
    own = {"seed": 2, "complexity": "low"}
    images = served.openai().images
    drawn = images.generate(**nothing | {"quality": "max", "style": "vivid"}, extra_body=own)
    del nothing["style"]
    edited = images.edit(image=("a.png", png(noise())), **nothing, extra_body=own | {"keep_rows": 2})
    for answer, options in ((drawn, {}), (edited, {"image": noise(), "keep_rows": 2})):
        (alone,) = tiny_pipe("a", seed=2, **options)
        assert image_of(answer.data[0]).convert("RGB").tobytes() == alone.images[0].tobytes()


def test_clients_are_told_what_is_cut_off_their_image(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    wide = png(noise().resize((24, 16)))
    notes = ["image of 24x16 cropped to its central square"]
    answer = served.openai().images.edit(image=("a.png", wide), prompt="", extra_body={"keep_rows": 2})
    assert answer.notes == notes  # type: ignore[attr-defined]
    events = list(
        served.openai().images.edit(image=("a.png", wide), prompt="", stream=True, extra_body={"keep_rows": 2})
    )
    assert events[-1].notes == notes  # type: ignore[union-attr]
    answer = served.openai().images.create_variation(image=("a.png", png(noise())))
    assert not hasattr(answer, "notes") and "cropped" not in caplog.text


def test_several_images_to_edit_are_refused(served: Running) -> None:
    """What OpenAI's models do with them, this one cannot: nothing is left out in silence."""
    both = [("a.png", png(noise())), ("b.png", png(noise()))]
    with pytest.raises(openai.BadRequestError, match="2 files in image") as error:
        served.openai().images.edit(image=both, prompt="a", extra_body={"keep_rows": 2})
    assert error.value.param == "image" and error.value.code == "too_many_images"


def test_models_are_listed_and_retrieved(served: Running, tiny_model: Path, tiny_pipe: TextToImage) -> None:
    client = served.openai()
    (model,) = client.models.list().data
    assert model.id == tiny_model.name and model.sha256 == tiny_pipe.model_hash  # type: ignore[attr-defined]
    assert client.models.retrieve(tiny_model.name).image_size == IMAGE_SIZE  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("dall-e-9")
    assert error.value.code == "model_not_found"


def test_embeddings_and_classification_equal_the_library(served: Running, tiny_pipe: TextToImage) -> None:
    assert tiny_pipe.clip is not None
    client = served.openai()
    both = [
        client.embeddings.create(model="model", input=["a red heart", "लाल दिल"], **form)
        for form in ({}, {"encoding_format": "float"})
    ]  # type: ignore[arg-type]
    expected = embed_texts(tiny_pipe.clip, ["a red heart", "लाल दिल"])
    for answer in both:
        assert torch.allclose(torch.tensor([one.embedding for one in answer.data]), expected, atol=1e-6)
    url = "data:image/png;base64," + base64.b64encode(png(noise())).decode()
    with served.http() as http:
        (image,) = http.post("/v1/embeddings", json={"input": url}).json()["data"]
        assert sum(value**2 for value in image["embedding"]) == pytest.approx(1, abs=1e-4)
        answer = http.post("/v1/classify", json={"image": url, "labels": ["heart", "star"], "templates": "plain"})
        labels = answer.json()["data"][0]["labels"]
        assert {one["label"] for one in labels} == {"heart", "star"}
        assert sum(one["probability"] for one in labels) == pytest.approx(1, abs=1e-5)
        assert http.post("/v1/search", json={"text": "heart"}).status_code == 404  # no index
