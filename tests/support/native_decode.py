"""A small model whose decode steps run in native code, and what tells whether they did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dalle.generation.cpu_step import FusedBlocks
from dalle.generation.token_stream import TokenStream
from dalle.kernels.kv_cache import KVCache
from dalle.kernels.native import bindings
from dalle.kernels.native.decode_attention import prepared
from dalle.kernels.native.decode_step import Step
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from support.tiny_configs import dalle_config, random_dalle, transformer_config

compiled = pytest.mark.skipif(not bindings.functions(), reason="there is no C++ compiler here")
SHAPE = transformer_config(width=64, depth=3)
CONFIG = dalle_config(transformer=SHAPE, image_vocab=33, grid=(4, 5))
TEXT = torch.tensor([[3, 8, 1, 0, 0], [5, 5, 19, 7, 2]])


def filled(config: DALLEConfig) -> DALLE:
    return random_dalle(config, std=0.15, center_norms=True)


class Decoder:
    """A model whose blocks run in one call where they can."""

    def __init__(self, model: DALLE) -> None:
        self.model, self.blocks = model, FusedBlocks(model.transformer)

    def extend(self, ids: Tensor, cache: KVCache) -> Tensor:
        return self.model.extend(ids, cache, self.blocks)

    def extend_each(self, ids: Tensor, cache: KVCache) -> Tensor:
        return self.model.extend_each(ids, cache, self.blocks)

    def fused(self) -> bool:
        """Whether the last step was one call."""
        return isinstance(self.blocks.step, Step)


def attended(cache: KVCache) -> bool:
    """Whether native attention has read this cache."""
    return any(one is not None for one in prepared.get(cache, {}).values())


def steps(model: DALLE, batch: int, text: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, KVCache, Decoder]:
    """Logits of image tokens that are added some at a time, the cache that holds them, and what added them."""
    decoder = Decoder(model)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.image_vocab, (batch, sum(sizes)), generator=generator)
    _, state = model.prefill(text)
    cache = model.new_cache(batch)
    cache.load_prefixes([state.row(row % len(text)) for row in range(batch)])
    found, start = [], 0
    for size in sizes:
        found.append(decoder.extend_each(ids[:, start : start + size], cache))
        start += size
    return torch.cat(found, dim=1), cache, decoder


@torch.no_grad()
def check_fused_step(model: DALLE, text: Tensor, codes: Tensor) -> None:
    """Decode the codes [1, N] of an image one at a time in native code: the logits are those of one pass over all.

    Of a model that reads row ends too, these run as it draws them.
    """
    blocks, stream = FusedBlocks(model.transformer), TokenStream(model.config)
    _, cache = model.prefill(text)
    whole = model.new_cache(1)
    whole.load_prefixes([cache])
    tokens = stream.of_codes(codes)
    found = torch.stack([model.extend(tokens[:, i : i + 1], whole, blocks)[0] for i in range(stream.length - 1)])
    if blocks.step is None:
        pytest.skip("no native code here")
    # What is behind token i predicts token i + 1: only that of codes is asked for
    places = stream.of_codes(torch.ones_like(codes), 0)[0, 1:] == 1
    expected = model(text, codes)[0, 1:]
    span = float(expected.max() - expected.min())  # of some models 80, and float32 rounds in the order of its sums
    torch.testing.assert_close(found[places], expected, atol=max(1e-4, 1e-5 * span), rtol=1e-4)
