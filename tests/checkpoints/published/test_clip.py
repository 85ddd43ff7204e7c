"""Published CLIPs give the embeddings that their own code gives, which references/clips.py has kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dalle
from dalle.__main__ import main
from dalle.checkpoints.modules import check_fit
from dalle.checkpoints.published.clip import read_clip
from dalle.models.clip import CLIP
from support.published.clips import EXPECTED, SHAPES, hub_folder, state
from support.published.references.clips import DIMENSIONS, LENGTH, PATCH, SIDE, VOCAB, ids, images


def merges(folder: Path) -> None:
    """A text tokenizer of as many ids as the models here have: none of its merges is met."""
    (folder / "merges.txt").write_text("#version: 0.2\n")


class Archived(nn.Module):
    """A module with the names of a state, to be made a TorchScript archive of."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            head, dot, rest = name.partition(".")
            if dot:
                parts.setdefault(head, {})[rest] = value
            else:
                self.register_buffer(head, value)
        for head, own in parts.items():
            self.add_module(head, Archived(own))

    def forward(self, x: Tensor) -> Tensor:
        return x


def embeddings(clip: CLIP) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (clip.config.mean, clip.config.std))
    with torch.no_grad():
        return clip.encode_image(images() * std + mean), clip.encode_text(ids())


def check(source: Path, name: str, tolerance: float = 2e-5, **given: Any) -> CLIP:
    found = read_clip(source, given)
    clip = CLIP(found.config)
    check_fit(clip, found.tensors, name)
    clip.load_state_dict({k: v() if callable(v) else v for k, v in found.tensors.items()})
    config = clip.config
    assert (config.image_size, config.patch_size, config.text_vocab) == (SIDE, PATCH, VOCAB)
    assert (config.text_length, config.embed_dim) == (LENGTH, DIMENSIONS)
    made = embeddings(clip.eval())
    for value, part in zip(made, ("images", "texts")):
        torch.testing.assert_close(value, EXPECTED[f"{name}.{part}"], rtol=0, atol=tolerance)
        assert value.std() > 0.05 and not torch.allclose(value[0], value[1], atol=0.05)
    return clip


def test_openai_torchscript_archive_in_half_precision_loads(tmp_path: Path) -> None:
    numbers = {"input_resolution": SIDE, "context_length": LENGTH, "vocab_size": VOCAB}
    whole = {name: value.half() if value.ndim > 1 else value for name, value in state("openai").items()}
    archived = Archived(whole | {name: torch.tensor(number) for name, number in numbers.items()})
    torch.jit.script(archived).save(str(tmp_path / "ViT-B-32.pt"))
    clip = check(tmp_path / "ViT-B-32.pt", "openai", 2e-3)
    assert clip.config.vision.feed_forward == "quick_gelu"
    found = read_clip(tmp_path / "ViT-B-32.pt")
    assert sorted(found.dropped) == sorted(numbers) and found.family == "OpenAI's CLIP"
    # heads are 64 channels wide there: the reference has two for a text width of 128, one for 64
    assert (clip.config.vision.heads, clip.config.text.heads) == (1, 2)


def test_bare_state_dict_needs_the_kind_of_gelu(tmp_path: Path) -> None:
    torch.save(state("openai"), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="give feed_forward=quick_gelu"):
        read_clip(tmp_path / "a.pt")
    check(tmp_path / "a.pt", "openai", feed_forward="quick_gelu")
    with pytest.raises(ValueError, match="its activation 'relu' is not supported"):
        read_clip(tmp_path / "a.pt", {"feed_forward": "relu"})


@pytest.mark.parametrize("name", ["hugging_face", "hugging_face_gelu"])
def test_hugging_face_folders_load(name: str, tmp_path: Path) -> None:
    clip = check(hub_folder(tmp_path, name), name)
    assert clip.config.mean == (0.5, 0.5, 0.5) and clip.config.vision.heads == 2 and clip.config.text.heads == 4


def test_open_clip_folders_load(tmp_path: Path) -> None:
    save_file(state("open_clip"), tmp_path / "open_clip_model.safetensors")
    vision, text = {"width": 64, "head_width": 16, "layers": 2}, {"heads": 2}
    config = {"model_cfg": {"embed_dim": DIMENSIONS, "vision_cfg": vision, "text_cfg": text}}
    config["preprocess_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = check(tmp_path, "open_clip")
    assert clip.config.vision.heads == 4 and clip.config.mean == (0.1, 0.2, 0.3)
    torch.save({"state_dict": state("open_clip")}, tmp_path / "b.pt")
    (tmp_path / "open_clip_config.json").unlink()
    check(tmp_path / "b.pt", "open_clip", feed_forward="gelu", heads=4, text_heads=2)


def test_hugging_face_folder_loads_its_text_tokenizer_and_converts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = 512 + 1 + 2  # bytes, these at the end of a word, a merge, start and end
    folder = hub_folder(tmp_path, "hugging_face", words)
    merges(folder)
    with pytest.raises(ValueError, match="the merges file is empty"):
        dalle.load_clip(folder)
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "a CLIP of Hugging Face" in told and f"{LENGTH} tokens of {words}; {DIMENSIONS} dimensions" in told
    clip = dalle.load_clip(folder)
    assert clip.tokenizer is not None and not clip.training
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    again = dalle.load_clip(tmp_path / "ours", dtype=torch.float64)
    assert again.tokenizer is not None and again.tokenizer.encode_ragged(["ab"]) == clip.tokenizer.encode_ragged(["ab"])
    for one, other in zip(embeddings(clip), embeddings(again)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_options_that_a_clip_does_not_use_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state("openai"), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="heds is of no use: this CLIP takes feed_forward, heads, text_heads"):
        dalle.load_clip(tmp_path / "a.pt", feed_forward="quick_gelu", heds=12)
    for words, message in (
        (["heds=12"], "heds is of no use"),
        (["--image-tokenizer", "x"], "image_tokenizer is not for a CLIP: leave it out"),
    ):
        assert main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "out"), "feed_forward=quick_gelu", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, parameters", [("ViT-B/32", 151_277_313), ("ViT-L/14", 427_616_513)])
def test_published_shapes_fit_at_full_width(
    name: str, parameters: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_meta = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}
    monkeypatch.setattr("dalle.checkpoints.published.clip.read_state", lambda source: on_meta)
    found = read_clip(tmp_path, {"feed_forward": "quick_gelu"})
    with torch.device("meta"):
        clip = CLIP(found.config)
    check_fit(clip, found.tensors, name)
    assert sum(parameter.numel() for parameter in clip.parameters()) == parameters
    assert found.config.vision.heads == found.config.vision.width // 64


def test_files_that_are_no_clips_give_a_one_line_error(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "it has no tensor vision.projection.weight"),
        ({"something": torch.zeros(1)}, "it is no CLIP: of its 1 tensors (something ...) none is one of a CLIP's"),
        (state("openai") | {"something": torch.zeros(1)}, "it has unknown tensor names: something"),
        (state("openai") | {"visual.proj": torch.zeros(3, 3)}, ""),
    ]
    for tensors, message in cases:
        torch.save(tensors, file)
        with pytest.raises(ValueError) as caught:
            found = read_clip(file, {"feed_forward": "gelu"})
            check_fit(CLIP(found.config), found.tensors, str(file))
        assert message in str(caught.value) and "\n" not in str(caught.value) and str(file) in str(caught.value)
    missing = state("openai")
    del missing["visual.positional_embedding"]
    torch.save(missing, file)
    with pytest.raises(ValueError, match=r"a.pt cannot be loaded as a CLIP: it has no tensor vision\.positions"):
        read_clip(file, {"feed_forward": "gelu"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="nor contains published weights"):
        read_clip(tmp_path / "folder")
    save_file(state("openai"), tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="or is truncated"):
        read_clip(tmp_path / "cut.safetensors")


WRAPPERS = {"DDP": "module.{}", "torch.compile": "_orig_mod.{}", "Lightning": "model.{}"}
WRAPPERS |= {"DDP of a compiled one": "module._orig_mod.{}", "compiled DDP": "_orig_mod.module.{}"}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_training_code_are_removed(
    wrapper: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a training script saves a CLIP: names with a prefix, in a checkpoint with other things."""
    names = {WRAPPERS[wrapper].format(name): value for name, value in state("openai").items()}
    file = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "name": "x", "state_dict": names, "optimizer": {}}, file)
    check(file, "openai", feed_forward="quick_gelu")
    assert main(["inspect", str(file), "feed_forward=quick_gelu"]) == 0
    removed = WRAPPERS[wrapper].removesuffix("{}").split(".")[:-1]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("- removed from its names: ") and all(f"{part}." in last for part in removed)
