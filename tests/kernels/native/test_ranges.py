"""What compiled code takes for places in memory is checked first: ids, masks, angles, positions, shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle.generation.cpu_step import FusedBlocks
from dalle.kernels import switches
from dalle.kernels.cross_entropy import mean_loss, token_scores
from dalle.kernels.ids import check_ids
from dalle.kernels.linear import Int8Linear, Linear
from dalle.kernels.native import bindings
from dalle.kernels.native import linear as native_linear
from dalle.kernels.native import sample as native_sample
from dalle.kernels.native.attention import attend_sequences, usable
from dalle.kernels.native.cross_entropy import cross_entropy_grad_
from dalle.kernels.native.decode_attention import prepared
from dalle.kernels.native.group_norm import group_norm
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from support.generation import sample
from support.tiny_configs import clip_config, dalle_config

compiled = pytest.mark.skipif(not bindings.functions(), reason="there is no C++ compiler here")
CONFIG = dalle_config(width=64, image_vocab=64, grid=(4, 5))
TEXT = torch.tensor([[3, 8, 1, 0, 0], [5, 5, 19, 7, 2]])
BAD = (-1, 64, 10_000, -(2**63), 2**63 - 1)


@pytest.fixture
def model() -> DALLE:
    torch.manual_seed(0)
    return DALLE(CONFIG).eval()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, -1])
def test_targets_out_of_range_are_refused(bad: int, place: int) -> None:
    head, hidden = Linear(32, 64), torch.randn(3, 32)
    ids = torch.tensor([0, 63, 5])
    assert mean_loss(head, hidden, ids).loss.isfinite()
    ids[place] = bad
    for plain in (False, True):
        for score in (mean_loss, token_scores):
            with (
                switches.force_backend(native="off") if plain else torch.enable_grad(),
                pytest.raises(IndexError, match=f"{bad}.*below 64"),
            ):
                score(head, hidden, ids)


@compiled
@pytest.mark.parametrize("bad", BAD)
def test_cross_entropy_changes_nothing_where_a_target_is_out_of_range(bad: int) -> None:
    logits = torch.randn(2, 64)
    before = logits.clone()
    with pytest.raises(IndexError, match=f"{bad}.*below 64"):
        cross_entropy_grad_(logits, torch.tensor([3, bad]), 0.0, None)
    for ids, to in ((torch.tensor([1]), None), (torch.tensor([1, 2]), torch.zeros(63))):
        with pytest.raises(ValueError, match="ids|bias_gradient"):
            cross_entropy_grad_(logits, ids, 0.0, to)
    assert torch.equal(logits, before)


def test_meta_and_vmapped_ids_are_not_checked() -> None:
    check_ids(torch.empty(0, dtype=torch.int64), 1, "ids")
    check_ids(torch.tensor([0, 0]), 1, "ids")
    check_ids(torch.tensor([7], device="meta"), 1, "ids")
    found = torch.vmap(lambda ids: (check_ids(ids, 1, "ids"), ids)[1])(torch.tensor([[1], [2]]))  # type: ignore[func-returns-value]
    assert found.tolist() == [[1], [2]]
    with pytest.raises(IndexError, match="ids run from 0 to 1; they must be at least 0 and below 1"):
        check_ids(torch.tensor([0, 1]), 1, "ids")


@pytest.mark.parametrize("bad", [-1, 64, 10_000])
def test_token_ids_of_a_model_out_of_range_are_refused(model: DALLE, bad: int) -> None:
    codes = torch.zeros(2, 20, dtype=torch.int64)
    wrong = codes.clone()
    wrong[1, -1] = bad  # the last is no input, only a target
    for call in (model.losses, model.token_losses_and_predictions, model):
        with pytest.raises(IndexError, match="image codes.*below 64"):
            call(TEXT, wrong)
    text = TEXT.clone()
    text[0, 0] = 20 if bad > 0 else bad  # above the vocabulary lie the padding words of positions
    with pytest.raises(IndexError, match="text ids.*below 20"):
        model.losses(text, codes)
    with torch.no_grad():
        _, cache = model.prefill(TEXT)
        with pytest.raises(IndexError, match="image codes"):
            model.extend(wrong[:, -1:], cache)


def test_text_ids_of_a_clip_out_of_range_are_refused() -> None:
    clip = CLIP(clip_config(width=32, depth=1, text_vocab=20, text_length=5))
    with pytest.raises(IndexError, match="text ids run from 1 to 20; .* below 20"):
        clip.encode_text(torch.tensor([[1, 20]]))


@pytest.mark.parametrize("position", [-1, -20, 22, 24, 2**31, -(2**31)])
@pytest.mark.parametrize("batch", [2, 20])  # all blocks in one call, attention alone
@torch.no_grad()
def test_cache_positions_out_of_range_are_refused(model: DALLE, position: int, batch: int) -> None:
    cache = model.new_cache(batch)
    cache.position = 5
    cache.keys.zero_(), cache.values.zero_()
    ids = torch.zeros(batch, 2, dtype=torch.int64)
    model.extend(ids, cache)
    assert cache.position == 7
    cache.position = position
    before = cache.keys.clone(), cache.values.clone()
    for plain in (False, True):
        with (
            switches.force_backend(native="off") if plain else torch.no_grad(),
            pytest.raises(IndexError, match="room for 24"),
        ):
            model.transformer(torch.randn(batch, 3, 64), "causal", cache=cache, blocks=FusedBlocks(model.transformer))
    assert torch.equal(cache.keys, before[0]) and torch.equal(cache.values, before[1])


@compiled
@pytest.mark.parametrize("batch", [2, 20])
@torch.no_grad()
def test_masks_and_rotary_angles_of_wrong_shape_are_refused(model: DALLE, batch: int) -> None:
    cache = model.new_cache(batch)
    cache.keys.normal_(), cache.values.normal_()
    x, blocks = torch.randn(batch, 2, 64), FusedBlocks(model.transformer)

    def run(mask: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        cache.position = 5
        return model.transformer(x, mask, rope=rope, cache=cache, blocks=blocks)

    angles = torch.ones(2, 16), torch.zeros(2, 16)  # that turn nothing
    whole = torch.ones(2, 7, dtype=torch.bool)
    expected = run(whole)
    assert blocks.step is not None or prepared[cache][0] is not None
    torch.testing.assert_close(run(whole, angles), expected)
    torch.testing.assert_close(run(whole.expand(batch, 1, 2, 7)), expected)
    torch.testing.assert_close(run(whole[None, None]), expected)
    for mask in (whole[:, :6], whole[:1], whole.expand(3, 1, 2, 7), whole[None], whole.int(), whole.expand(1, 2, 2, 7)):
        with pytest.raises(ValueError, match="the mask is"):
            run(mask)
    for rope in ((angles[0][:1], angles[1][:1]), (angles[0], angles[1][:, :8])):
        with pytest.raises(ValueError, match="rope is"):
            run(whole, rope)


@compiled
@torch.no_grad()
def test_blocks_of_other_sizes_are_left_to_torch(model: DALLE) -> None:
    wide = DALLE(replace(CONFIG, transformer=replace(CONFIG.transformer, hidden=512))).eval()
    model.transformer.blocks[1] = wide.transformer.blocks[1]
    ids = torch.zeros(2, 1, dtype=torch.int64)
    found = []
    for plain in (False, True):
        with switches.force_backend(native="off") if plain else torch.no_grad():
            _, state = model.prefill(TEXT)
            cache = model.new_cache(2)
            cache.load_prefixes([state.row(0), state.row(1)])
            blocks = FusedBlocks(model.transformer)
            found.append(model.extend(ids, cache, blocks))
        assert blocks.step is None
    torch.testing.assert_close(*found)


@compiled
@torch.no_grad()
def test_mismatched_vectors_are_left_to_torch_which_refuses_them() -> None:
    x, weight = torch.randn(2, 32), torch.randn(7, 32)
    eight = Int8Linear(Linear(32, 7))
    for bias in (torch.zeros(6), torch.zeros(7, dtype=torch.float64)):
        assert native_linear.linear(x, weight, bias) is None
        assert native_linear.linear(x, eight.weight, None, bias) is None
    images = torch.randn(1, 48, 3, 3).contiguous(memory_format=torch.channels_last)
    one = torch.ones(48)
    assert group_norm(images, one, one, 3, 1e-6, False) is not None
    for groups, scale, shift in ((0, one, one), (49, one, one), (5, one, one), (3, one[:32], one), (3, one, one[:47])):
        assert group_norm(images, scale, shift, groups, 1e-6, False) is None


def test_training_attention_refuses_wrong_masks() -> None:
    qkv = torch.randn(3, 1, 2, 40, 32, dtype=torch.bfloat16)
    for other in (qkv[..., :16], qkv[:2], qkv.float()):
        with pytest.raises(ValueError, match="native attention takes"):
            attend_sequences(other, None, True)
    if not usable(qkv[0]):  # then qkv is refused before any mask is looked at
        pytest.skip("PyTorch's own attention is taken on this CPU")
    for mask in (torch.ones(40, 39, dtype=torch.bool), torch.ones(40, 40), torch.ones(39, 40, dtype=torch.bool)):
        with pytest.raises(ValueError, match="mask"):
            attend_sequences(qkv, mask, False)


def test_sampling_options_out_of_range_are_refused() -> None:
    logits, uniform = torch.randn(2, 40), torch.rand(2)
    for options in ({"top_k": 0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": float("nan")}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="it must be"):
            sample(logits, uniform, **options)  # type: ignore[arg-type]
        name, value = next(iter(options.items()))
        if name == "top_k":
            assert native_sample.sample_tokens(logits, uniform, 1.0, value, None) is None  # type: ignore[arg-type]
    assert torch.equal(F.one_hot(sample(logits, uniform, top_k=10**12), 40).sum(1), torch.ones(2, dtype=torch.int64))
