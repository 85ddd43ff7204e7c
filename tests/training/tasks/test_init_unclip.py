"""Fine-tuning the parts of an unCLIP: what is taken over from our folders and published ones, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

import dalle
import train
from dalle.checkpoints.model_folder import ModelFolder
from dalle.checkpoints.published.unclip import read_unclip
from dalle.config import from_dict, to_dict
from dalle.generation.diffusion_decoder import DiffusionSamplingConfig
from dalle.generation.prior import PriorSamplingConfig
from dalle.models.clip import CLIP
from dalle.models.diffusion_prior import DiffusionPriorConfig
from dalle.training.init_config import with_initial_config
from dalle.training.tasks.clip_space import check_clip
from support.published import unclips
from support.short_runs import TWO_STEPS
from support.tiny_configs import clip_config
from support.unclip_parts import SHAPE, TINY, make_unclip_parts


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Accelerate holds the first settings of a process for good."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def folders(clip: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_unclip_parts(tmp_path_factory.mktemp("parts"), Path(clip))


def recipe(folder: Path, source: Path, stage: str, **changes: Any) -> str:
    content = {"stage": stage, "init_from": str(source), "data": {"kind": "shapes", "size": 40}}
    run = TWO_STEPS["run"] | {"dir": str(folder / "run")}
    file = folder / "finetune.yaml"
    file.write_text(json.dumps(content | {"optim": {"lr": 1e-2, "warmup": 1, "ema": None}, "run": run} | changes))
    return str(file)


def load(folder: Path, stage: str) -> nn.Module:
    return dalle.load_prior(folder) if stage == "prior" else dalle.load_diffusion(folder)


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    old = before.state_dict()
    return {name for name, value in after.state_dict().items() if not torch.equal(value, old[name])}


CASES = {
    "prior": ("prior", "prior", {}),
    "prior-ar": ("prior-ar", "prior", {}),
    "decoder": ("decoder", "diffusion", {}),
    "upsampler": ("upsampler", "diffusion", {"crop": 0.5}),
    "prior of a whole": ("whole", "prior", {}),
    "decoder of a whole": ("whole", "diffusion", {}),
    "upsampler of a whole": ("whole", "diffusion", {"crop": 0.5, "model": {"kind": "upsampler"}}),
}
FAST = ("prior", "decoder", "upsampler of a whole")  # each kind of part, and both kinds of source


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_training_goes_on_from_the_part(name: str, folders: dict[str, Path], clip: str, tmp_path: Path) -> None:
    """All that is trained moves, statistics stay, and architecture, CLIP and sampling options are those of the part."""
    source, stage, changes = CASES[name]
    part = folders[name.split()[0]]
    file = recipe(tmp_path, folders[source], stage, **changes)
    assert train.main([file, "optim.lr=0", "optim.weight_decay=0"]) == 0
    before = load(part, stage)
    assert not moved(before, load(tmp_path / "run/model", stage))
    AcceleratorState._reset_state()
    assert train.main([file, f"run.dir={tmp_path / 'trained'}"]) == 0
    after = load(tmp_path / "trained/model", stage)
    buffers = {key for key, _ in before.named_buffers()}
    changed = moved(before, after)
    assert changed and not changed & buffers
    made, old = ModelFolder(tmp_path / "trained/model"), ModelFolder(part)
    assert made.config["model"] == old.config["model"]
    schema = PriorSamplingConfig if stage == "prior" else DiffusionSamplingConfig
    assert made.config["sampling"] == to_dict(from_dict(schema, old.config["sampling"], "sampling"))
    if "upsampler" not in name:
        assert made.component("clip").sha256 == ModelFolder(Path(clip)).sha256


def test_parts_that_do_not_fit_give_a_one_line_error(
    folders: dict[str, Path], clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, stage, options, told in (
        ("decoder", "prior", [], "is of stage 'diffusion'; expected prior, or a whole unclip"),
        ("prior", "diffusion", [], "is of stage 'prior'; expected diffusion, or a whole unclip"),
        ("prior", "prior", ["model.kind=autoregressive"], "is of kind diffusion, and model.kind is autoregressive"),
        ("prior", "prior", ["model.transformer.width=32"], "does not fit this architecture"),
        ("decoder", "diffusion", ["model.unet.channels=16"], "model.safetensors"),
    ):
        AcceleratorState._reset_state()
        assert train.main([recipe(tmp_path, folders[source], stage), *options]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error
    AcceleratorState._reset_state()
    assert train.main([recipe(tmp_path, Path(clip), "prior")]) == 2
    assert "is of stage 'clip'" in capsys.readouterr().err


def test_damaged_parts_are_not_trained_on(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, stage in (("prior", "prior"), ("decoder", "diffusion")):
        damaged = Path(shutil.copytree(folders[part], tmp_path / part))
        content = bytearray((damaged / "model.safetensors").read_bytes())
        content[-5] ^= 1
        (damaged / "model.safetensors").write_bytes(content)
        AcceleratorState._reset_state()
        assert train.main([recipe(tmp_path, damaged, stage)]) == 2
        error = capsys.readouterr().err
        assert f"{damaged} is damaged or was changed" in error and error.count("\n") == 1, error


def test_clip_without_image_tower_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    lone = CLIP(clip_config(depth=1, text_vocab=4096, missing="image"))
    lone.tokenizer = dalle.load_text_tokenizer(folders["prior"] / "clip/text_tokenizer")
    with pytest.raises(ValueError, match="karlo/clip has no image tower: set clip to one of that CLIP"):
        check_clip(DiffusionPriorConfig(transformer=TINY, **SHAPE), lone, "karlo/clip")


def test_published_prior_and_decoder_are_converted_first(tmp_path: Path) -> None:
    """Karlo's networks begin with Karlo's weights, on a CLIP that has both towers."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    karlo = unclips.write(tmp_path / "karlo", "Karlo", unclips.karlo_parts())

    run = {"dir": str(tmp_path / "run")}
    for stage, part in (("prior", "prior"), ("diffusion", "decoder")):
        settled = with_initial_config({"stage": stage, "init_from": str(karlo), "run": run})
        assert settled["clip"] == str(tmp_path / "run/initial/clip")
        assert settled["model"] == to_dict(read_unclip(karlo).parts[part].config)
    kept = with_initial_config({"stage": "prior", "init_from": str(karlo), "run": run, "clip": "mine"})
    assert kept["clip"] == "mine"
    with pytest.raises(ValueError, match="variations has no prior"):
        variations = unclips.karlo_parts()
        for name in ("prior", "prior_scheduler"):
            del variations[name]
        folder = unclips.write(
            tmp_path / "variations", "variations", variations | {"image_encoder": unclips.towers()[1]}
        )
        with_initial_config({"stage": "prior", "init_from": str(folder), "run": run})
