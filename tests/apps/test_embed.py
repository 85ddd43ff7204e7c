"""Images and texts to vectors: those of the plain loop, however batched and read; broken ones are told of."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import dalle
from dalle.apps.embed import embed_images, fingerprint
from dalle.data.base import read_image
from dalle.data.custom.records import FileSpan, Record, as_record
from dalle.evaluation.zero_shot import embed_texts
from dalle.models.clip import CLIP
from support.tiny_model import make_tiny_model


def noise(seed: int, size: tuple[int, int] = (20, 14)) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [0, 2])
def test_embeddings_equal_a_slow_loop(tiny_clip: CLIP, workers: int) -> None:
    files = [noise(seed) for seed in range(7)]
    records = [Record(f"{number}", image=file) for number, file in enumerate(files)]
    records.insert(3, Record("bad", image=b"\xff\xd8\xff"))
    batches = list(embed_images(tiny_clip, records, batch_size=3, workers=workers))
    assert [batch.numbers for batch in batches] == [[0, 1, 2], [4, 5], [6, 7]]
    assert [str(error)[:5] for batch in batches for error in batch.broken.values()] == ["bad: "]
    vectors = torch.cat([batch.vectors for batch in batches])
    for file, vector in zip(files, vectors, strict=True):
        pixels = torch.tensor(read_image(file, "", 8)).permute(2, 0, 1)[None] / 255
        torch.testing.assert_close(vector, tiny_clip.encode_image(pixels)[0].detach(), rtol=0, atol=1e-5)
    facts = [fact for batch in batches for fact in batch.facts]
    assert {(fact.width, fact.height) for fact in facts} == {(20, 14)}
    assert [fact.sha256 for fact in facts] == [hashlib.sha256(file).hexdigest() for file in files]


def test_batch_of_broken_images_has_no_embeddings(tiny_clip: CLIP) -> None:
    (batch,) = embed_images(tiny_clip, [Record("a", image=b""), Record("b", fault="there is no image")])
    assert batch.vectors.shape == (0, 8) and not batch.numbers
    assert [error.reason for error in batch.broken.values()] == ["the file is empty", "there is no image"]


def test_text_embeddings_do_not_depend_on_the_batch(tiny_clip: CLIP) -> None:
    texts = ["a red heart", "two green stars", "लाल दिल", "a"]
    together, alone = embed_texts(tiny_clip, texts), embed_texts(tiny_clip, texts, batch_size=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    assert embed_texts(tiny_clip, []).shape == (0, 8)


def test_images_are_accepted_as_path_bytes_or_pil(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(noise(1))
    assert as_record(tmp_path / "a.png").image == FileSpan(str(tmp_path / "a.png"))
    assert as_record(noise(1), "name") == Record("name", image=noise(1))
    for mode in ("RGB", "RGBA", "P", "L", "1", "CMYK", "I;16"):
        content = as_record(Image.new(mode, (9, 9))).image
        assert isinstance(content, bytes) and read_image(content, "", 4).shape == (4, 4, 3), mode


def test_fingerprint_depends_on_weights_and_architecture(tiny_clip: CLIP, tmp_path: Path) -> None:
    again = dalle.load_clip(make_tiny_model(tmp_path / "same").parent / "clip")
    assert fingerprint(again) == fingerprint(tiny_clip)
    with torch.no_grad():
        again.logit_scale.add_(1e-3)
    assert fingerprint(again) != fingerprint(tiny_clip)


def test_options_out_of_range_are_refused(tiny_clip: CLIP) -> None:
    for options in ({"batch_size": 0}, {"workers": -1}):
        with pytest.raises(ValueError, match="at least 1 and 0"):
            list(embed_images(tiny_clip, [], **options))
