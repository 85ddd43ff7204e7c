"""Attention of sequences at different positions: each comes out as it does alone, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dalle.kernels.attention import rope_table_1d
from dalle.kernels.block_weights import Rope
from dalle.kernels.decode_attention import decode_attention
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.native.decode_attention import prepared
from dalle.kernels.ragged_cache import RaggedCache
from dalle.kernels.switches import force_backend
from support.native_decode import compiled

HEADS, GROUPS, ROOM, WIDTH, SLOTS = 4, 2, 20, 32, 6
PLACES = ([4, 0, 5], [7, 1, 19])  # slots and positions


def caches() -> tuple[KVCache, RaggedCache]:
    """The buffers, nan behind what each sequence has stored, and a view of some of their rows."""
    whole = KVCache(1, SLOTS, GROUPS, ROOM, WIDTH)
    whole.keys.fill_(float("nan"))
    whole.values.fill_(float("nan"))
    for slot, position in zip(*PLACES, strict=True):
        whole.keys[:, slot, :, :position] = torch.randn(1, GROUPS, position, WIDTH)
        whole.values[:, slot, :, :position] = torch.randn(1, GROUPS, position, WIDTH)
    view = RaggedCache(whole)
    view.place(*PLACES)
    return whole, view


def alone(whole: KVCache, row: int, qkv: Tensor, rope: Rope, norms: list[nn.Module], mask: Tensor) -> Tensor:
    slot, position = PLACES[0][row], PLACES[1][row]
    one = KVCache(1, 1, GROUPS, ROOM, WIDTH)
    one.keys[:], one.values[:] = whole.keys[:, slot : slot + 1], whole.values[:, slot : slot + 1]
    one.position = position
    own = tuple(table[position : position + 1] for table in rope)
    visible = mask[position : position + 1, : position + 1]
    return decode_attention(qkv[row : row + 1], visible, one, 0, *norms, (own[0], own[1]), False)


@pytest.mark.parametrize("native", ["off", pytest.param("on", marks=compiled)])
@torch.no_grad()
def test_each_sequence_is_attended_to_as_alone(native: str) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 1, (HEADS + 2 * GROUPS) * WIDTH)
    norms: list[nn.Module] = [nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)]
    rope, mask = rope_table_1d(ROOM, WIDTH, 10_000.0), torch.rand(ROOM, ROOM) < 0.7
    mask.fill_diagonal_(True)
    with force_backend(native=native):
        whole, view = caches()
        wanted = torch.cat([alone(whole, row, qkv, rope, norms, mask) for row in range(3)])
        positions = view.next_positions(1)
        visible, causal = positions.mask_block(mask), positions.causal
        assert isinstance(causal, Tensor)
        angles = positions.angles(rope[0]), positions.angles(rope[1])
        found = decode_attention(qkv, visible & causal, view, 0, *norms, angles, False)
        assert (view in prepared) == (native == "on")
    if native == "on":
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for slot, position in zip(*PLACES, strict=True):
        assert whole.keys[0, slot, :, position].isfinite().all()
        assert position + 1 == ROOM or whole.keys[0, slot, :, position + 1].isnan().all()
    assert whole.keys[0, 1].isnan().all()  # a row that was not chosen
    view.advance(1)
    with pytest.raises(IndexError, match="at position 20"):
        view.next_positions(1)
