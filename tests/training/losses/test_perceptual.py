"""LPIPS equals a slow loop over its weights file in every published layout; the CLIP distance equals its definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dalle.models.clip import CLIP
from dalle.training.losses.perceptual import (
    LPIPS,
    CLIPPerceptual,
    EfficientNetPerceptual,
    EfficientNetPerceptualConfig,
    LPIPSConfig,
    NonePerceptual,
    build_perceptual,
    load_lpips,
)
from support.tiny_configs import clip_config

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of torchvision's vgg16().features
POOLS = (4, 9, 16, 23)
OUTPUTS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
STAGES = (2, 2, 3, 3, 3)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG16 with a sixteenth of its channels."""
    monkeypatch.setattr(LPIPS, "CHANNELS", tuple((4 * 2**i,) * n for i, n in enumerate(STAGES)))


def random_weights() -> dict[str, Tensor]:
    """Random weights as torchvision names VGG16's and `lpips` names the linear layers."""
    generator = torch.Generator().manual_seed(0)
    tensors, width, index = {}, 3, iter(CONVOLUTIONS)
    for i, n in enumerate(STAGES):
        for _ in range(n):
            name, channels = f"features.{next(index)}", 4 * 2**i
            tensors[f"{name}.weight"] = 0.2 * torch.randn(channels, width, 3, 3, generator=generator)
            tensors[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=generator)
            width = channels
        tensors[f"lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return tensors


def reference(tensors: dict[str, Tensor], a: Tensor, b: Tensor) -> float:
    """LPIPS position by position, as its paper writes it. a, b [B, 3, H, W] in [0, 1]."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = 0.0
    for one, other in zip(a, b, strict=True):
        x = torch.stack([((2 * image - 1).permute(1, 2, 0) - shift) / scale for image in (one, other)])
        x = x.permute(0, 3, 1, 2)
        for index in range(30):
            if index in CONVOLUTIONS:
                x = F.conv2d(x, tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"], padding=1)
            elif index in POOLS:
                x = F.max_pool2d(x, 2)
            else:
                x = x.clamp(min=0)
            if index in OUTPUTS:
                weight = tensors[f"lin{OUTPUTS.index(index)}.model.1.weight"].flatten()
                positions = [(u, v) for u in range(x.shape[2]) for v in range(x.shape[3])]
                for u, v in positions:
                    p, q = (y[:, u, v] / (y[:, u, v].norm() + 1e-10) for y in x)
                    total += (weight * (p - q) ** 2).sum().item() / len(positions)
    return total / len(a)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 24, 16, generator=generator)
    return a, (a + 0.3 * torch.randn(2, 3, 24, 16, generator=generator)).clamp(0, 1)


def as_lpips_package(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for name, value in tensors.items():
        if name.startswith("features."):
            index = int(name.split(".")[1])
            part = next(i for i, last in enumerate(OUTPUTS, 1) if index <= last)
            named[name.replace("features", f"net.slice{part}")] = value
        else:
            named[name] = value
            named[f"lins.{name[3]}.model.1.weight"] = value.clone()
    return named


@pytest.mark.usefixtures("narrow")
def test_lpips_equals_a_slow_loop_in_every_layout(tmp_path: Path) -> None:
    tensors = random_weights()
    a, b = images()
    expected = reference(tensors, a, b)
    assert expected > 0.01
    package = as_lpips_package(tensors)
    checkpoint = {f"loss.perceptual_loss.{k}": v for k, v in package.items()} | {"quantize.weight": torch.zeros(2, 2)}
    linear = {k: v for k, v in tensors.items() if k.startswith("lin")}
    vgg = {k: v for k, v in tensors.items() if k.startswith("features.")} | {"classifier.0.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "flat.safetensors")
    torch.save(package, tmp_path / "package.pth")
    torch.save({"state_dict": checkpoint}, tmp_path / "last.ckpt")
    torch.save(vgg, tmp_path / "vgg16.pth")
    torch.save(linear, tmp_path / "vgg.pth")
    for name in ("flat.safetensors", "package.pth", "last.ckpt"):
        loss = build_perceptual(LPIPSConfig(weights=tmp_path / name))
        assert loss is not None
        assert loss(a, b).item() == pytest.approx(expected, rel=1e-4)
    loss = build_perceptual(LPIPSConfig(weights=tmp_path / "vgg16.pth", linear=tmp_path / "vgg.pth"))
    assert loss is not None
    assert loss(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_lpips_has_the_shape_of_vgg16() -> None:
    with torch.device("meta"):
        model = LPIPS()
    names = set(model.state_dict())
    assert names == {f"features.{i}.{k}" for i in CONVOLUTIONS for k in ("weight", "bias")} | {
        f"linear.{i}.weight" for i in range(5)
    }
    # torchvision's vgg16 has 138,357,544 parameters, of which its classifier has 123,642,856
    assert sum(p.numel() for p in model.features.parameters()) == 138_357_544 - 123_642_856
    assert [m.weight.shape[1] for m in model.linear] == [64, 128, 256, 512, 512]


@pytest.mark.usefixtures("narrow")
def test_lpips_refuses_other_files(tmp_path: Path) -> None:
    tensors = random_weights()
    with pytest.raises(ValueError, match="no such file"):
        load_lpips(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match=r"text\.pth: contains more than tensors") as error:
        load_lpips(tmp_path / "text.pth")
    assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="expected named tensors"):
        load_lpips(tmp_path / "list.pth")
    torch.save({k: v for k, v in tensors.items() if k != "features.28.bias"}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"features\.28\.bias"):
        load_lpips(tmp_path / "short.pth")
    torch.save(tensors | {"features.30.weight": torch.zeros(1)}, tmp_path / "long.pth")
    with pytest.raises(ValueError, match=r"features\.30\.weight"):
        load_lpips(tmp_path / "long.pth")


def small_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(clip_config(patch_size=4, text_vocab=16, text_length=32))


def test_clip_distance_equals_its_definition() -> None:
    clip = small_clip()
    loss = CLIPPerceptual(clip)
    a, b = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    layers = []
    for x, y in zip(clip.features(a), clip.features(b), strict=True):
        distances = [
            (x[n, :, u, v] / x[n, :, u, v].norm() - y[n, :, u, v] / y[n, :, u, v].norm()).square().sum().item()
            for n in range(3)
            for u in range(4)
            for v in range(4)
        ]
        layers.append(sum(distances) / len(distances))
    assert len(layers) == 2
    assert loss(a, b).item() == pytest.approx(sum(layers) / 2, rel=1e-4)
    assert loss(F.interpolate(a, scale_factor=2), F.interpolate(b, scale_factor=2)).item() > 0  # resized to CLIP's size


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", ["lpips", "clip"])
def test_network_is_frozen_and_images_get_gradients(kind: str) -> None:
    loss = LPIPS() if kind == "lpips" else CLIPPerceptual(small_clip())
    loss.train()
    assert not any(m.training for m in loss.modules())
    a, b = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    a[0] = 0  # a flat image too
    a.requires_grad_(True)
    loss(a, b).backward()
    assert a.grad is not None and torch.isfinite(a.grad).all() and a.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())
    assert loss(b, b).item() == 0
    torch.testing.assert_close(loss(a, b), (loss(a[:1], b[:1]) + loss(a[1:], b[1:])) / 2)


def test_perceptual_kind_none_builds_no_loss() -> None:
    assert build_perceptual(NonePerceptual()) is None


def test_efficientnet_distance_equals_its_definition() -> None:
    loss = build_perceptual(EfficientNetPerceptualConfig())
    assert isinstance(loss, EfficientNetPerceptual)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 3, 64, 64, generator=generator)
    maps = [(one, other) for one, other in zip(loss.network.maps(a), loss.network.maps(b))]
    assert [tuple(one.shape[1:]) for one, _ in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    slow = 0.0
    for one, other in maps:
        cosine = F.cosine_similarity(one, other, dim=1)  # |u - v|^2 = 2 - 2 u.v of unit vectors
        slow += (2 - 2 * cosine).mean().item() / len(maps)
    assert loss(a, b).item() == pytest.approx(slow, rel=1e-4)
    assert loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert not loss.train().training and not any(p.requires_grad for p in loss.parameters())
    changed = a.clone().requires_grad_(True)
    loss(changed, b).backward()
    assert changed.grad is not None and changed.grad.abs().sum() > 0
