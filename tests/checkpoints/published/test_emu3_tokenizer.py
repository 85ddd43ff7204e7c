"""Emu3's image tokenizer in both layouts has the codes and images of transformers' video model, on random weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dalle
from dalle.__main__ import main
from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.published import emu3_tokenizer
from dalle.checkpoints.published.image_tokenizers import read_image_tokenizer
from dalle.image_tokenizers import Emu3VQ
from support.published.emu3 import project_names
from support.published.language_models import randomize

transformers = pytest.importorskip("transformers", reason='pip install "dalle[t5]"')
ROWS, CODES = 4, 40


def video_model(
    seed: int = 0, multipliers: tuple[int, ...] = (1, 2), blocks: int = 2, codes: int = CODES, latents: int = 4
) -> Any:
    config = transformers.Emu3VQVAEConfig(
        codebook_size=codes, base_channels=32, channel_multiplier=list(multipliers), num_res_blocks=blocks,
        attn_resolutions=[len(multipliers) - 1], hidden_size=32 * multipliers[-1], embed_dim=latents,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.Emu3VQVAE(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.3, 2)
            elif name.endswith("embedding.weight"):
                value.normal_()
            elif value.is_floating_point() and value.ndim == 1:
                value.add_(0.3 * torch.randn_like(value))
    return model.eval()


def write(model: Any, folder: Path, layout: str) -> Path:
    folder.mkdir()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(project_names(state) if layout == "project" else state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("layout", ["project", "transformers"])
def test_codes_and_images_are_those_of_the_video_model(layout: str, tmp_path: Path) -> None:
    reference = video_model()
    folder = write(reference, tmp_path / "emu3", layout)
    ours = dalle.load_image_tokenizer(folder, rows=ROWS)
    assert isinstance(ours, Emu3VQ) and ours.grid == (ROWS, ROWS) and ours.factor == 2
    images = torch.rand(2, 3, 2 * ROWS, 2 * ROWS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = torch.stack(reference.encode(2 * images - 1, torch.tensor([[2 * ROWS] * 2] * 2)).image_tokens)
    assert torch.equal(ours.encode(images), wanted) and len(wanted.unique()) > 4
    codes = torch.randint(CODES, (2, ROWS, ROWS + 1), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        decoded = (reference.decode(codes) + 1) / 2
    torch.testing.assert_close(ours.decode_latents(ours.embed_codes(codes)), decoded, atol=2e-5, rtol=1e-5)
    assert decoded.std() > 0.05


def reference_codes(reference: Any, images: Tensor) -> Tensor:
    """Of the video model, [B, h, w]."""
    sizes = torch.tensor([list(images.shape[-2:])] * len(images))
    with torch.no_grad():
        return torch.stack(list(reference.encode(2 * images - 1, sizes).image_tokens)).view(len(images), *GRID)


GRID = (3, 2)


@pytest.mark.parametrize(
    "seed, multipliers, blocks, codes", [(1, (1, 1, 2), 1, 97), (2, (1, 2, 2, 4), 2, 300), (3, (1, 3), 3, 40)]
)
def test_codes_and_images_at_other_sizes(
    seed: int, multipliers: tuple[int, ...], blocks: int, codes: int, tmp_path: Path
) -> None:
    reference = video_model(seed, multipliers, blocks, codes)
    ours = dalle.load_image_tokenizer(write(reference, tmp_path / "emu3", "project"), rows=ROWS)
    rows, columns = (side * ours.factor for side in GRID)
    images = torch.rand(4, 3, rows, columns, generator=torch.Generator().manual_seed(seed))
    wanted = reference_codes(reference, images)
    assert torch.equal(ours.encode(images), wanted) and len(wanted.unique()) > 2
    with torch.no_grad():
        decoded = (reference.decode(wanted) + 1) / 2
    torch.testing.assert_close(ours.decode_latents(ours.embed_codes(wanted)), decoded, atol=2e-5, rtol=1e-5)


def test_codes_of_weights_that_are_scaled_up_are_equal_in_float64() -> None:
    """Latents of 10^6 and more: in float32 the nearest of vectors of usual size is a matter of rounding."""
    reference = randomize(video_model(4), seed=3, scale=3.0).double()
    found = emu3_tokenizer.read(dict(reference.state_dict()), ROWS)
    ours = Emu3VQ(found.config).double()
    ours.load_state_dict(
        {name: value() if isinstance(value, LazyTensor) else value for name, value in found.tensors.items()}
    )
    images = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        latents = ours.eval()._latents(images)
    assert latents.abs().max() > 1e5
    # One after the other: the sum of squares less the product is as imprecise as float32 here
    distances = (
        latents.movedim(1, -1)[..., None, :] - ours.quantize.lookup(torch.arange(CODES)[None, None])[0, :, 0].T
    ).norm(dim=-1)
    assert torch.equal(distances.argmin(-1), reference_codes(reference, images))


def test_at_full_size_it_has_the_published_parameters() -> None:
    config = transformers.Emu3VQVAEConfig()
    with torch.device("meta"):
        reference = transformers.Emu3VQVAE(config)
    state = dict(reference.state_dict())
    found = dalle.checkpoints.published.emu3_tokenizer.read(state)
    found.check(dalle.checkpoints.published.image_tokenizers.without_weights(found), "emu3")
    assert sum(value.numel() for value in reference.parameters()) == 270_740_287
    assert found.config.image_size == 720 and found.config.codebook_size == 32768


def test_converted_it_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(video_model(), tmp_path / "emu3", "project")
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "the image tokenizer of Emu3" in told and "Apache-2.0" in told
    assert main(["convert", str(folder), str(tmp_path / "ours"), "image_size=8"]) == 0
    one, two = dalle.load_image_tokenizer(folder, rows=ROWS), dalle.load_image_tokenizer(tmp_path / "ours")
    images = torch.rand(1, 3, 8, 8)
    assert two.image_size == 8 and torch.equal(one.encode(images), two.encode(images))


def test_it_trains() -> None:
    ours = Emu3VQ(dalle.image_tokenizers.Emu3VQConfig(image_size=8, channels=32, channel_multipliers=[1, 1], blocks=1))
    made = ours(torch.rand(2, 3, 8, 8))
    (made.images.square().mean() + made.losses["codebook"]).backward()
    assert all(value.grad is not None for value in ours.parameters())


def test_damaged_files_are_one_line_errors(tmp_path: Path) -> None:
    folder = write(video_model(), tmp_path / "emu3", "project")
    state = load_file(folder / "model.safetensors")

    def refused(message: str, **changes: Tensor | None) -> None:
        new = {name: value for name, value in (state | changes).items() if value is not None}
        save_file(new, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message) as caught:
            dalle.load_image_tokenizer(folder)
        assert "\n" not in str(caught.value)

    statistics = "encoder.time_res_stack.0.norm1.running_var"
    refused(rf"missing: .*{re.escape(statistics)}", **{statistics: None})
    refused("unknown tensor names: encoder.extra", **{"encoder.extra": torch.ones(1)})
    refused("has no tensor quantize.embedding.weight", **{"quantize.embedding.weight": None})
    refused("does not take 4 frames to 1", **{"encoder.time_conv.2.conv.conv.bias": torch.ones(4)})
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_image_tokenizer(folder)
