"""The VQGAN: taming's shape, the contract of images and codes, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.image_tokenizers import FSQConfig, GumbelConfig, VQConfig, VQGANConfig, build
from dalle.image_tokenizers.vqgan import VQGAN
from dalle.image_tokenizers.vqgan_layers import AttentionBlock
from dalle.kernels.group_norm import Norm

TAMING_VQ = {"code_channels": 256, "update": "gradient", "distance": "euclidean"}
F16 = {
    "image_size": 256,
    "channels": 128,
    "channel_multipliers": [1, 1, 2, 2, 4],
    "blocks": 2,
    "attention_resolutions": [16],
    "latent_channels": 256,
}
F8 = F16 | {"channel_multipliers": [1, 1, 2, 4], "attention_resolutions": [32]}


def tiny(**options: object) -> VQGAN:
    torch.manual_seed(0)
    base = {"image_size": 16, "channels": 8, "channel_multipliers": [1, 2], "latent_channels": 12}
    small = VQConfig(codebook_size=32, code_channels=4)
    model = build(VQGANConfig(**(base | {"attention_resolutions": [8], "quantizer": small} | options)))
    assert isinstance(model, VQGAN)
    return model


def random_images(batch: int = 3, side: int = 16) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (VQGANConfig(**F16, quantizer=VQConfig(codebook_size=1024, **TAMING_VQ)), 72_141_699),
        (VQGANConfig(**F16, quantizer=VQConfig(codebook_size=16384, **TAMING_VQ)), 76_073_859),
        (VQGANConfig(**F8, quantizer=GumbelConfig(codebook_size=8192, code_channels=256)), 68_995_971),
    ],
    ids=["f16-1024", "f16-16384", "gumbel-f8"],
)
def test_parameter_counts_equal_tamings(config: VQGANConfig, parameters: int) -> None:
    with torch.device("meta"):
        model = build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


QUANTIZERS = [
    VQConfig(codebook_size=32, code_channels=4),
    VQConfig(codebook_size=32, code_channels=4, update="gradient", distance="euclidean"),
    GumbelConfig(codebook_size=32, code_channels=4),
    FSQConfig(levels=[4, 4, 2]),
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda config: config.kind)
@pytest.mark.parametrize("patch", [1, 2])
def test_outputs_have_their_shapes_ranges_and_gradients(
    quantizer: VQConfig | GumbelConfig | FSQConfig, patch: int
) -> None:
    model = tiny(quantizer=quantizer, patch=patch)
    side = 16 // 2 // patch
    assert (model.grid, model.codebook_size, model.image_size) == ((side, side), 32, 16)
    images = random_images()
    made = model(images, temperature=0.7)
    assert made.images.shape == images.shape
    assert made.codes.shape == (3, side, side)
    assert set(made.losses) == {"vq": {"codebook"}, "gumbel": {"kl"}, "fsq": set()}[quantizer.kind]
    loss = (made.images - images).abs().mean() + sum(made.losses.values(), torch.zeros(()))
    loss.backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.last_layer.grad.abs().sum() > 0
    codes = model.encode(images)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < 32
    again = model.decode(codes)
    assert again.shape == images.shape
    assert again.dtype == torch.float32
    assert 0 <= again.min() <= again.max() <= 1


def test_rectangular_images_are_encoded() -> None:
    model = tiny()
    codes = model.encode(torch.rand(1, 3, 8, 24))
    assert codes.shape == (1, 4, 12)
    assert model.decode(codes).shape == (1, 3, 8, 24)


def test_codes_do_not_depend_on_the_batch() -> None:
    model = tiny().eval()
    images = random_images(6)
    codes = model.encode(images)
    for index in range(6):
        assert torch.equal(model.encode(images[index : index + 1])[0], codes[index])
    assert torch.equal(model.encode(images.flip(0)), codes.flip(0))


def test_outputs_do_not_depend_on_memory_format() -> None:
    model, images = tiny(), random_images()
    plain = model(images).images
    last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last)).images
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).images.dtype == torch.float32


@pytest.mark.parametrize(("width", "groups"), [(128, 32), (32, 32), (48, 16), (8, 8), (12, 4)])
def test_group_norm_equals_the_formula(width: int, groups: int) -> None:
    norm = Norm(width)
    assert norm.num_groups == groups
    x = torch.randn(2, width, 4, 4)
    expected = torch.empty_like(x)
    for b in range(2):
        for part, place in zip(x[b].chunk(groups), expected[b].chunk(groups), strict=True):
            place.copy_((part - part.mean()) / (part.var(unbiased=False) + 1e-6).sqrt())
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(norm(given), expected)


def test_attention_is_over_all_cells_with_one_head() -> None:
    torch.manual_seed(0)
    block, x = AttentionBlock(8), torch.randn(2, 8, 3, 2)
    normed = block.norm(x).flatten(2)  # [B, C, N]
    q, k, v = (
        torch.einsum("oc,bcn->bon", conv.weight[:, :, 0, 0], normed) + conv.bias[:, None]
        for conv in (block.q, block.k, block.v)
    )
    weights = (torch.einsum("bci,bcj->bij", q, k) * 8**-0.5).softmax(2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view(2, 8, 3, 2)
    torch.testing.assert_close(block(x), x + block.proj_out(mixed))


def test_downsampling_pads_right_and_bottom() -> None:
    model = tiny()
    down = model.encoder.down[0].resample
    assert isinstance(down, nn.Module)
    x = torch.randn(1, 8, 6, 6)
    y = down(x)
    assert y.shape == (1, 8, 3, 3)
    corner = torch.zeros(1, 8, 3, 3)
    corner[..., :2, :2] = x[..., 4:, 4:]
    torch.testing.assert_close(y[..., 2:, 2:], F.conv2d(corner, down.conv.weight, down.conv.bias))


def test_attention_is_at_the_given_resolutions() -> None:
    model = tiny(image_size=32, channel_multipliers=[1, 1, 2], attention_resolutions=[16, 8])
    assert [len(level.attn) for level in model.encoder.down] == [0, 1, 1]
    assert [len(level.attn) for level in model.decoder.up] == [0, 2, 2]
    folded = tiny(image_size=32, patch=2, channel_multipliers=[1, 1], attention_resolutions=[8])
    assert [len(level.attn) for level in folded.encoder.down] == [0, 1]


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.rand(2, 1, 16, 16), "shape"),
        (torch.rand(3, 16, 16), "shape"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.rand(2, 3, 15, 16), "multiples of 2"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: Tensor, match: str) -> None:
    for call in (tiny(), tiny().encode):
        with pytest.raises(ValueError, match=match) as raised:
            call(images)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "codes",
    [torch.zeros(2, 4, dtype=torch.int64), torch.zeros(1, 8, 8), torch.full((1, 8, 8), 32), torch.full((1, 8, 8), -1)],
)
def test_codes_out_of_range_are_refused(codes: Tensor) -> None:
    with pytest.raises(ValueError, match="codes"):
        tiny().decode(codes)


@pytest.mark.parametrize(
    "options", [{"image_size": 30, "channel_multipliers": [1, 1, 1]}, {"channel_multipliers": []}, {"blocks": 0}]
)
def test_impossible_shapes_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        VQGANConfig(**options)


@pytest.mark.slow
def test_overfits_four_images() -> None:
    colors = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    images = F.interpolate(colors, scale_factor=4.0)
    model = tiny(channels=16, latent_channels=16, quantizer=VQConfig(codebook_size=64, code_channels=8))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        made = model(images)
        loss = (made.images - images).abs().mean() + made.losses["codebook"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.on_step_end()
    model.eval()
    assert (model.decode(model.encode(images)) - images).abs().mean() < 0.03
