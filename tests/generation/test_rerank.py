"""Reranking: cosines of the right pairs, CLIP's resizing, stable order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.generation.rerank import best, score
from dalle.images.transforms import resize_batch
from dalle.models.clip import CLIP
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig
from support.tiny_configs import clip_config

PROMPTS = ["a red heart", "a blue car", "a red heart", "गुलाबी हात्ती"]


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    clip = CLIP(clip_config(depth=1, text_length=16)).eval()
    clip.tokenizer = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=300), PROMPTS * 5)
    return clip


def test_scores_are_the_cosines_of_image_and_prompt(clip: CLIP) -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    scores = score(clip, images, PROMPTS)
    assert scores.shape == (4,) and scores.dtype == torch.float32 and not scores.requires_grad
    for i, prompt in enumerate(PROMPTS):
        a, b = clip.encode_image(images[i : i + 1])[0], clip.encode_text([prompt])[0]
        assert scores[i].item() == pytest.approx(torch.dot(a, b).item(), abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_image_is_refused(clip: CLIP, value: float) -> None:
    """NaN sorts before every score: such an image would be the best."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images[2, 0, 3, 3] = value
    with pytest.raises(ValueError, match="image 3 of 4 has no score"):
        score(clip, images, PROMPTS)
    others = [0, 1, 3]
    embeds = clip.encode_image(images).detach()
    assert embeds[2].isnan().all() and embeds[others].isfinite().all()


def test_larger_images_are_resized(clip: CLIP) -> None:
    images = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(score(clip, images, PROMPTS[:2]), score(clip, resize_batch(images, 16), PROMPTS[:2]))


@pytest.mark.parametrize(("height", "width"), [(48, 80), (33, 21), (8, 12), (64, 64)])
def test_resize_equals_pillows_bicubic_and_center_crop(height: int, width: int) -> None:
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    got = resize_batch(images, 16)
    short = min(height, width)
    new = (round(width * 16 / short), round(height * 16 / short))
    top, left = (new[1] - 16) // 2, (new[0] - 16) // 2
    for channel, values in enumerate(images[0].numpy()):
        resized = np.asarray(Image.fromarray(values).resize(new, Image.Resampling.BICUBIC))
        expected = torch.tensor(resized[top : top + 16, left : left + 16]).clamp(0, 1)
        torch.testing.assert_close(got[0, channel], expected, rtol=0, atol=1e-5)


def test_resize_leaves_images_of_the_right_size_unchanged() -> None:
    images = torch.rand(1, 3, 16, 16)
    assert resize_batch(images, 16) is images


def test_best_is_sorted_and_stable() -> None:
    assert best(torch.tensor([0.1, 0.5, 0.5, 0.9, 0.1]), 4) == [3, 1, 2, 0]
    assert best([0.2, 0.1, 0.2]) == [0, 2, 1]
    assert best([1.0] * 40, 3) == [0, 1, 2]


def test_wrong_inputs_give_a_one_line_error(clip: CLIP) -> None:
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        score(clip, torch.rand(2, 3, 16, 16), PROMPTS[:1])
    for keep in (0, 3, -1):
        with pytest.raises(ValueError, match=f"keep {keep} of 2"):
            best([0.1, 0.2], keep)
