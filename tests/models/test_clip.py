"""CLIP: embeddings, the symmetric loss against a slow loop, gathering over processes, features."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dalle.models.clip import CLIP, CLIPConfig
from dalle.models.contrastive import contrastive_loss, gather_with_gradient
from dalle.models.transformer import Context
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig
from support.tiny_configs import clip_config

CONFIG = clip_config(width=32, patch_size=4, text_vocab=320, embed_dim=24)
EOS = 3


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(CONFIG).eval()


def pairs(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 16, 16, generator=random)
    ids = torch.randint(4, 320, (count, 12), generator=random)
    for row in range(count):
        end = 2 + row % 9
        ids[row, end], ids[row, end + 1 :] = EOS, 0
    return images, ids


def slow_loss(images: Tensor, texts: Tensor, scale: float) -> float:
    """Figure 3 of the CLIP paper, one pair at a time."""
    count, total = len(images), 0.0
    for i in range(count):
        right = scale * (images[i] @ texts[i]).item()
        by_text = [scale * (images[i] @ texts[j]).item() for j in range(count)]
        by_image = [scale * (images[j] @ texts[i]).item() for j in range(count)]
        total += math.log(sum(map(math.exp, by_text))) - right + math.log(sum(map(math.exp, by_image))) - right
    return total / (2 * count)


def test_loss_equals_a_slow_loop(clip: CLIP) -> None:
    image_embeds, text_embeds, scale = clip(*pairs(5))
    loss = contrastive_loss(image_embeds, text_embeds, scale)
    assert scale.item() == pytest.approx(1 / 0.07)
    assert loss.item() == pytest.approx(slow_loss(image_embeds, text_embeds, 1 / 0.07), rel=1e-5)
    assert contrastive_loss(torch.ones(1, 4), torch.ones(1, 4), scale).item() == 0


def test_loss_is_exact_under_autocast() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (nn.functional.normalize(torch.randn(6, 8, generator=random), dim=-1) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(a, b, torch.tensor(100.0))
    assert float(loss) == pytest.approx(slow_loss(a, b, 100.0), rel=1e-5)


def test_embeddings_are_float32_unit_vectors(clip: CLIP) -> None:
    images, ids = pairs(4)
    for embeds in (clip.encode_image(images), clip.encode_text(ids)):
        assert embeds.shape == (4, 24)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4))
    clip = clip.double()
    assert clip.encode_image(images).dtype == clip.encode_text(ids).dtype == torch.float32


def test_raw_embeddings_are_parallel_to_the_unit_vectors(clip: CLIP) -> None:
    images, ids = pairs(4)
    for encode, batch in ((clip.encode_image, images), (clip.encode_text, ids)):
        raw = encode(batch, normalize=False)
        assert raw.dtype == torch.float32
        assert (raw.norm(dim=-1) - 1).abs().min() > 0.01
        torch.testing.assert_close(raw / raw.norm(dim=-1, keepdim=True), encode(batch))


def test_the_state_at_eos_projects_to_the_embedding(clip: CLIP) -> None:
    _, ids = pairs(5)
    states, mask, embeds = clip.text_states(ids)
    assert states.shape == (5, 12, 32) and mask.shape == (5, 12)
    for row in range(5):
        end = ids[row].tolist().index(EOS)
        assert mask[row].tolist() == [True] * (end + 1) + [False] * (11 - end)
        torch.testing.assert_close(clip.text.projection.weight @ states[row, end], embeds[row])
    torch.testing.assert_close(embeds, clip.encode_text(ids, normalize=False))
    without_end = torch.full((1, 12), 7)
    assert clip.text_states(without_end).mask.all()


def test_states_of_real_tokens_do_not_depend_on_padding(clip: CLIP) -> None:
    _, ids = pairs(4)
    states, mask, _ = clip.text_states(ids)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = clip.text_states(ids[row : row + 1, :length])
        torch.testing.assert_close(alone.states[0], states[row, :length])
        assert alone.mask.all()


def test_tokens_after_eos_do_not_matter(clip: CLIP) -> None:
    _, ids = pairs(4)
    expected = clip.encode_text(ids)
    for row, end in enumerate(ids.eq(EOS).int().argmax(dim=1)):
        short = clip.encode_text(ids[row : row + 1, : end + 1])
        torch.testing.assert_close(short[0], expected[row])
        noise = ids[row : row + 1].clone()
        noise[:, end + 1 :] = EOS
        torch.testing.assert_close(clip.encode_text(noise)[0], expected[row])


def test_tokens_before_eos_matter(clip: CLIP) -> None:
    _, ids = pairs(2)
    changed = ids.clone()
    changed[:, 0] = 4 + (changed[:, 0] - 3) % 300
    assert not torch.allclose(clip.encode_text(changed), clip.encode_text(ids), atol=1e-3)


def test_embeddings_do_not_depend_on_the_batch(clip: CLIP) -> None:
    images, ids = pairs(6)
    for i in range(6):
        torch.testing.assert_close(clip.encode_image(images[i : i + 1])[0], clip.encode_image(images)[i])
        torch.testing.assert_close(clip.encode_text(ids[i : i + 1])[0], clip.encode_text(ids)[i])


def test_vision_embedding_equals_the_definition(clip: CLIP) -> None:
    """The tower's input, patch by patch, from the definition."""
    images, _ = pairs(1)
    mean, std = torch.tensor(CONFIG.mean).view(3, 1, 1), torch.tensor(CONFIG.std).view(3, 1, 1)
    vision = clip.vision
    got = vision.embed(images)[0]  # [1 + 16, C]
    for row in range(4):
        for column in range(4):
            patch = (images[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] - mean) / std
            token = torch.stack([(kernel * patch).sum() for kernel in vision.patches.weight])
            place = 1 + 4 * row + column
            expected = vision.norm(token + vision.positions[place])
            torch.testing.assert_close(got[place], expected, rtol=1e-4, atol=1e-5)


def test_scale_is_clamped_and_its_gradient_can_lower_it(clip: CLIP) -> None:
    with torch.no_grad():
        clip.logit_scale.fill_(6.0)
    assert clip.scale.item() == pytest.approx(100)
    clip.scale.backward()  # descent would lower it: let through
    assert clip.logit_scale.grad is not None
    assert float(clip.logit_scale.grad) == pytest.approx(100)
    clip.logit_scale.grad = None
    (-clip.scale).backward()  # descent would raise it further
    assert float(clip.logit_scale.grad) == 0


def test_features_are_block_outputs_with_gradients(clip: CLIP) -> None:
    images, _ = pairs(2)
    images.requires_grad_()
    maps = clip.features(images)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 4)] * 2
    x = clip.vision.embed(images)
    for block, got in zip(clip.vision.transformer.blocks, maps, strict=True):
        x = block(x, None, Context(), 0)
        for place in range(16):
            torch.testing.assert_close(got[:, :, place // 4, place % 4], x[:, 1 + place])
    sum(m.square().sum() for m in maps).backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    with torch.no_grad():
        clip.encode_image(images)
    assert len(maps) == 2  # no hook is left


def test_every_parameter_is_trained(clip: CLIP) -> None:
    contrastive_loss(*clip(*pairs(4))).backward()
    assert [name for name, p in clip.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_overfits_8_pairs(clip: CLIP) -> None:
    images, ids = pairs(8)
    clip.train()
    optimizer = torch.optim.Adam(clip.parameters(), 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        contrastive_loss(*clip(images, ids)).backward()
        optimizer.step()
    clip.eval()
    similarity = clip.encode_image(images) @ clip.encode_text(ids).T
    assert similarity.argmax(dim=1).tolist() == similarity.argmax(dim=0).tolist() == list(range(8))


def test_strings_are_encoded_by_the_text_tokenizer(clip: CLIP) -> None:
    captions = ["a red heart", "a blue car and a red car", "गुलाबी हात्ती"]
    with pytest.raises(ValueError, match=r"load_clip") as error:
        clip.encode_text(captions)
    assert "\n" not in str(error.value)
    tokenizer = clip.tokenizer = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=320), captions * 5)
    torch.testing.assert_close(clip.encode_text(captions), clip.encode_text(tokenizer.encode(captions, 12)))


def test_wrong_shapes_give_a_one_line_error(clip: CLIP) -> None:
    calls: list[tuple[Callable[[Tensor], object], Tensor, str]] = [
        (clip.encode_image, torch.zeros(1, 3, 16, 24), "16, 24"),
        (clip.features, torch.zeros(3, 16, 16), "3, 16, 16"),
        (clip.encode_text, torch.full((1, 13), EOS), "13"),
    ]
    for call, given, part in calls:
        with pytest.raises(ValueError) as error:
            call(given)
        assert part in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="patch_size"):
        CLIPConfig(image_size=16, patch_size=5)


def test_gather_without_processes_is_the_identity() -> None:
    local = torch.randn(2, 3)
    assert gather_with_gradient(local) is local


def _worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.manual_seed(0)
    clip = CLIP(CONFIG)
    images, ids = pairs(6)
    mine = slice(rank * 3, rank * 3 + 3)
    image_embeds, text_embeds, scale = clip(images[mine], ids[mine])
    loss = contrastive_loss(image_embeds, text_embeds, scale, gather_with_gradient)
    loss.backward()
    grads = {}
    for name, parameter in clip.named_parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)  # DDP's mean
        grads[name] = parameter.grad / world
    torch.save({"loss": loss.detach(), "grads": grads}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(2, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    clip = CLIP(CONFIG)
    loss = contrastive_loss(*clip(*pairs(6)))
    loss.backward()
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(result["loss"], loss.detach())
        for name, parameter in clip.named_parameters():
            torch.testing.assert_close(result["grads"][name], parameter.grad, rtol=1e-4, atol=1e-6)
