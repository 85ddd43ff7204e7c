"""The discriminator judges each image alone; losses and the adaptive weight equal their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dalle.training.losses.adversarial import (
    AdversarialConfig,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    last_layer_gradients,
)


def small() -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(AdversarialConfig(channels=8))


def test_discriminator_has_the_shapes_of_tamings() -> None:
    assert small()(torch.rand(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    model = PatchDiscriminator(AdversarialConfig())
    # pix2pix prints 2.769 M for pairs of images (6 channels); GroupNorm has as many parameters as BatchNorm
    assert sum(p.numel() for p in model.parameters()) == 2_768_705 - 3 * 64 * 4 * 4


def test_receptive_field_is_70_pixels() -> None:
    model = PatchDiscriminator(AdversarialConfig(channels=4))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    field, step = 1, 1
    for m in convolutions:
        field += (m.kernel_size[0] - 1) * step
        step *= m.stride[0]
    assert field == 70


def test_two_micro_batches_equal_one_batch() -> None:
    model = small()
    real, fake = torch.rand(2, 4, 3, 64, 64)
    discriminator_loss(model(real), model(fake)).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        (discriminator_loss(model(real[part]), model(fake[part])) / 2).backward()
    for a, p in zip(whole, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a, rtol=1e-4, atol=1e-6)


def test_hinge_losses_equal_a_loop() -> None:
    real, fake = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    a = sum(max(0.0, 1 - v) for v in real.flatten().tolist()) / real.numel()
    b = sum(max(0.0, 1 + v) for v in fake.flatten().tolist()) / fake.numel()
    torch.testing.assert_close(discriminator_loss(real, fake).item(), (a + b) / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(generator_loss(fake).item(), -fake.mean().item())


def test_adaptive_weight_of_micro_batches_equals_that_of_the_batch() -> None:
    torch.manual_seed(0)
    layer, critic = nn.Conv2d(3, 3, 3, padding=1), small()
    images = torch.rand(4, 3, 64, 64)

    def gradients(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made = layer(part)
        return last_layer_gradients((made - part).abs().mean(), generator_loss(critic(made)), layer.weight)

    reconstruction, adversarial = gradients(images)
    whole = adaptive_weight(reconstruction, adversarial)
    first, second = gradients(images[:2]), gradients(images[2:])
    summed = adaptive_weight((first[0] + second[0]) / 2, (first[1] + second[1]) / 2)
    torch.testing.assert_close(whole, summed, rtol=1e-4, atol=0)
    torch.testing.assert_close(whole, reconstruction.norm() / (adversarial.norm() + 1e-6))
    assert not whole.requires_grad


def test_gradients_of_large_batches_survive_float16() -> None:
    torch.manual_seed(0)
    layer, critic = nn.Conv2d(8, 3, 3, padding=1), small()
    features, images = torch.rand(2, 8, 96, 96), torch.rand(2, 3, 96, 96)

    def gradients(half: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.float16, enabled=half):
            made = layer(features)
            logits = critic(made)
            losses = (made - images).abs().mean() / 400, generator_loss(logits) / 400  # as of 400 times as many pixels
        assert logits.dtype == torch.float32
        return last_layer_gradients(*losses, layer.weight)

    for half, whole in zip(gradients(True), gradients(False), strict=True):
        assert float(half.norm()) == pytest.approx(float(whole.norm()), rel=0.01)


def test_adaptive_weight_is_bounded() -> None:
    assert adaptive_weight(torch.ones(3), torch.zeros(3)) == 1e4
    assert adaptive_weight(torch.zeros(3), torch.ones(3)) == 0


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 24x24, got 16x16"):
        small()(torch.rand(1, 3, 16, 16))
    assert small()(torch.rand(1, 3, 24, 24)).shape == (1, 1, 1, 1)


def test_discriminator_learns_to_separate_two_kinds_of_images() -> None:
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    real, fake = torch.rand(4, 3, 24, 24), torch.rand(4, 3, 1, 1).expand(-1, -1, 24, 24)
    first = discriminator_loss(model(real), model(fake)).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = discriminator_loss(model(real), model(fake))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
