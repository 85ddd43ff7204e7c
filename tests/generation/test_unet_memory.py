"""Estimates of the memory of sampling against what torch's profiler sees, and the batches that follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dalle.generation import unet_memory
from dalle.generation.unet_memory import movq_row_bytes, rows_that_fit, unet_row_bytes
from dalle.models.diffusion_decoder import DecoderConfig, DiffusionDecoder
from dalle.models.movq import MoVQ, MoVQConfig
from dalle.models.unet import UNet, UNetConfig
from support.memory_peaks import peak_of

SHAPES = {
    "small": (
        UNetConfig(channels=32, channel_multipliers=[1, 2, 3], layers=1, attention_levels=[2], head_channels=32),
        32,
    ),
    "deep": (UNetConfig(channels=32, channel_multipliers=[1, 2], layers=3, attention_levels=[1], head_channels=64), 32),
    "plain": (UNetConfig(channels=48, channel_multipliers=[1, 2], layers=2, attention_levels=[]), 64),
}


@pytest.mark.parametrize("name", SHAPES)
def test_estimate_covers_the_measured_peak_and_is_not_twice_as_high(name: str, tmp_path: Path) -> None:
    config, side = SHAPES[name]
    torch.manual_seed(0)
    width = 16 if config.attention_levels else None
    net = UNet(config, 3, 3, width).eval()

    @torch.no_grad()
    def run(rows: int) -> None:
        context = None if width is None else torch.randn(rows, 12, width)
        net(torch.randn(rows, 3, side, side), torch.randn(rows, config.vector_width), context)

    run(1)  # what is prepared once stays out of the measurement
    peaks = {rows: peak_of(lambda rows=rows: run(rows), tmp_path) for rows in (2, 6)}  # type: ignore[misc]
    measured = (peaks[6] - peaks[2]) / 4
    assert measured <= unet_row_bytes(config, side, 12 if width else 0) <= 2 * measured


def test_estimate_of_the_autoencoder_covers_the_measured_peak(tmp_path: Path) -> None:
    config = MoVQConfig(channels=32, channel_multipliers=[1, 2], blocks=1)
    torch.manual_seed(0)
    autoencoder = MoVQ(config).eval()

    @torch.no_grad()
    def run(rows: int) -> None:
        autoencoder.decode(torch.randn(rows, 4, 16, 16))

    run(1)
    peaks = {rows: peak_of(lambda rows=rows: run(rows), tmp_path) for rows in (2, 6)}  # type: ignore[misc]
    measured = (peaks[6] - peaks[2]) / 4
    assert measured <= movq_row_bytes(config, 16) <= 2 * measured


def test_batches_follow_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = SHAPES["small"]
    decoder = DiffusionDecoder(DecoderConfig(image_size=32, unet=config, image_tokens=4, text_length=24))
    row = unet_row_bytes(config, 32, 28)
    for free, guided, expected in ((0, False, 1), (6 * row, False, 3), (16 * row, True, 4), (10**12, True, 16)):
        monkeypatch.setattr(unet_memory, "free_memory", lambda _, free=free: free)
        assert rows_that_fit(decoder, None, None, guided) == expected
