"""Loading: what comes back is what was saved, and each wrong folder is named in one line."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dalle
from dalle.checkpoints import model_folder
from dalle.checkpoints.components import load_components
from dalle.checkpoints.hub import SHIPPED
from dalle.checkpoints.load import load_clip, load_image_tokenizer, load_model, load_text_tokenizer
from dalle.config import to_dict
from dalle.image_tokenizers import VQGANConfig, build
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig
from support.tiny_configs import clip_config, dalle_config

CAPTIONS = ["a red heart", "a blue car on a red car", "गुलाबी हात्ती"]
VQGAN = VQGANConfig(image_size=16, channels=32, channel_multipliers=[1, 1], attention_resolutions=[], latent_channels=8)
CLIP_CONFIG = clip_config(width=32, text_length=16)
DALLE_CONFIG = dalle_config(width=32, text_vocab=300, text_length=8, image_vocab=16, grid=(2, 2))


class Shelf:
    """One saved folder of each stage, and what was saved in it."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        self.root = root
        self.tokenizer = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=300), CAPTIONS * 5)
        self.tokenizer.save(root / "text")
        self.image, self.clip, self.model = build(VQGAN).eval(), CLIP(CLIP_CONFIG).eval(), DALLE(DALLE_CONFIG).eval()
        parts = {"text_tokenizer": root / "text"}
        self.save("image", "image_tokenizer", VQGAN, self.image)
        self.save("clip", "clip", CLIP_CONFIG, self.clip, parts=parts)
        parts |= {"image_tokenizer": root / "image", "clip": root / "clip"}
        self.save("model", "dalle", DALLE_CONFIG, self.model, parts=parts)

    def save(self, name: str, stage: str, config: Any, module: torch.nn.Module, **options: Any) -> None:
        content = {"stage": stage, "model": to_dict(config), "origin": "a test"}
        model_folder.save(self.root / name, content, module.state_dict(), **options)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def test_loaded_text_tokenizer_equals_the_saved(shelf: Shelf) -> None:
    loaded = load_text_tokenizer(shelf.root / "text")
    assert torch.equal(loaded.encode(CAPTIONS), shelf.tokenizer.encode(CAPTIONS))


def test_loaded_image_tokenizer_equals_the_saved(shelf: Shelf) -> None:
    loaded = load_image_tokenizer(shelf.root / "image")
    images = torch.rand(2, 3, 16, 16)
    codes = shelf.image.encode(images)
    assert not loaded.training
    assert torch.equal(loaded.encode(images), codes)
    assert torch.equal(loaded.decode(codes), shelf.image.decode(codes))


def test_loaded_clip_equals_the_saved_and_takes_strings(shelf: Shelf) -> None:
    loaded = load_clip(str(shelf.root / "clip"))
    images = torch.rand(2, 3, 16, 16)
    assert not loaded.training
    assert torch.equal(loaded.encode_image(images), shelf.clip.encode_image(images))
    ids = shelf.tokenizer.encode(CAPTIONS, 16)
    assert torch.equal(loaded.encode_text(CAPTIONS), shelf.clip.encode_text(ids))


def test_loaded_model_equals_the_saved(shelf: Shelf) -> None:
    loaded = load_model(shelf.root / "model")
    text, codes = torch.randint(4, 300, (2, 8)), torch.randint(16, (2, 4))
    assert not loaded.training
    assert loaded.config == DALLE_CONFIG
    assert torch.equal(loaded(text, codes), shelf.model(text, codes))


def test_components_of_a_model_load(shelf: Shelf) -> None:
    folder = shelf.root / "model"
    assert load_text_tokenizer(model_folder.ModelFolder(folder).component("text_tokenizer").path).vocab_size == 300
    assert load_image_tokenizer(model_folder.ModelFolder(folder).component("image_tokenizer").path).image_size == 16
    assert load_clip(model_folder.ModelFolder(folder).component("clip").path).tokenizer is not None


def test_half_precision_weights_load_in_the_requested_dtype(shelf: Shelf) -> None:
    shelf.save("half", "dalle", DALLE_CONFIG, shelf.model, storage="bfloat16")
    loaded = load_model(shelf.root / "half")
    for key, value in shelf.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.bfloat16().float())
    assert {p.dtype for p in load_model(shelf.root / "half", dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("load", "name", "parts"),
    [
        (load_model, "clip", ["a CLIP", "dalle.load_clip"]),
        (load_clip, "model", ["a DALL-E", "dalle.load_model"]),
        (load_image_tokenizer, "text", ["a text tokenizer", "dalle.load_text_tokenizer"]),
        (load_text_tokenizer, "image", ["an image tokenizer", "dalle.load_image_tokenizer"]),
    ],
)
def test_folder_of_another_stage_is_named(
    shelf: Shelf, load: Callable[[Path], object], name: str, parts: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        load(shelf.root / name)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in [*parts, name])


@pytest.mark.parametrize("content", ["stage: soup\n", "model: {}\n", "stage: dalle\n", "stage: dalle\nmodel: 3\n"])
def test_foreign_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value) and "config.yaml" in str(error.value)


def test_weights_of_another_shape_are_named(shelf: Shelf) -> None:
    wider = replace(DALLE_CONFIG, image_vocab=32)
    shelf.save("wrong", "dalle", wider, shelf.model)
    with pytest.raises(ValueError, match="image_head") as error:
        load_model(shelf.root / "wrong")
    assert "\n" not in str(error.value)


def test_public_names_load_lazily() -> None:
    assert dalle.load_model is load_model
    assert dalle.load_clip is load_clip
    names = {"TextToImage", "load_clip", "load_image_tokenizer", "load_model", "load_text_tokenizer", "__version__"}
    assert names <= set(dir(dalle))
    with pytest.raises(AttributeError, match="load_nothing"):
        dalle.load_nothing  # noqa: B018


def test_importing_dalle_imports_no_torch() -> None:
    code = "import sys, dalle; print(dalle.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{dalle.__version__} False\n"


def test_each_config_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shipped model: its own and those of its components, which lie in it as folders of their own."""
    read: Counter[str] = Counter()
    plain = Path.read_text

    def counted(path: Path, *args: Any, **options: Any) -> str:
        if path.name == "config.yaml":
            read[str(path)] += 1
        return plain(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", counted)
    load_components(SHIPPED, torch.device("cpu"))
    names = (".", "text_tokenizer", "image_tokenizer", "clip", "clip/text_tokenizer")
    assert read == Counter({str(SHIPPED / name / "config.yaml"): 1 for name in names})


def test_a_text_encoder_is_for_models_that_read_one(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="leave text_encoder out"):
        dalle.TextToImage.from_pretrained(tiny_model, device="cpu", text_encoder="some/t5")
