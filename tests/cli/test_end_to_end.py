"""Slow: a DALL-E learns images by heart and draws them back; the shapes recipes one after the other; every command.

The commands are those of the README, run as a user runs them; where they would train for long, with a few options more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import dalle
import sample
import train
from dalle.checkpoints.hub import SHIPPED
from dalle.data import ShapesConfig, open_data
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHORT = ["run.steps=2", "run.batch_size=4", "run.validation_images=4", "run.tracker=none", "run.device=cpu"]


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a command prints; it must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(*arguments: str) -> str:
    return run(sys.executable, *arguments)


def figures(folder: Path) -> dict[str, float]:
    """The last value of each figure in a run's log."""
    last: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        last |= json.loads(line)
    return last


def test_dalle_overfits_16_pairs_token_for_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ShapesConfig(size=16, shift=0)
    parts = {
        "bpe": {"stage": "text_tokenizer", "model": {"vocab_size": 300}, "data": {"kind": "shapes"}, "dir": "bpe"},
        "vqgan": {
            "stage": "image_tokenizer",
            "model": {
                "kind": "vqgan",
                "image_size": 16,
                "patch": 2,
                "channels": 32,
                "channel_multipliers": [1],
                "attention_resolutions": [],
                "latent_channels": 32,
                "quantizer": {"kind": "vq", "codebook_size": 32, "code_channels": 4},
            },
            "data": {"kind": "shapes"},
            "optim": {"lr": 2e-3, "warmup": 10, "ema": 0.9},
            "run": {
                "dir": "vqgan",
                "steps": 60,
                "batch_size": 16,
                "precision": "fp32",
                "tracker": "none",
                "device": "cpu",
            },
        },
        "dalle": {
            "stage": "dalle",
            "text_tokenizer": "bpe/model",
            "image_tokenizer": "vqgan/model",
            "model": {
                "transformer": {"width": 64, "depth": 2, "heads": 2},
                "text_vocab": 300,
                "text_length": 20,
                "image_vocab": 32,
                "grid": [8, 8],
                "attention": ["full", "column"],
            },
            "data": {"kind": "shapes", "size": 16, "shift": 0},
            "optim": {"lr": 3e-3, "warmup": 20, "weight_decay": 0.0, "ema": None},
            "bpe_dropout": 0.0,
            "caption_dropout": 0.0,
            "sampling": {"guidance": 1.0},
            "run": {
                "dir": "dalle",
                "steps": 300,
                "batch_size": 16,
                "precision": "fp32",
                "tracker": "none",
                "device": "cpu",
            },
        },
    }
    for name, recipe in parts.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        assert train.main([f"{name}.yaml"]) == 0
    pipe = dalle.TextToImage.from_pretrained("dalle/model", device="cpu")
    learned = open_data(data, "train", 16)
    pairs = [learned.pair(index, 0) for index in range(16)]
    images = torch.stack([torch.from_numpy(pair.image) for pair in pairs]).permute(0, 3, 1, 2).float() / 255
    codes = pipe.image_tokenizer.encode(images)  # [16, 8, 8]
    assert len({tuple(one.flatten().tolist()) for one in codes}) == 16
    for options in ({"temperature": 0}, {"top_k": 1, "seed": 5}, {"top_k": 1, "batch_size": 3}):
        results = pipe([pair.caption for pair in pairs], **options)
        assert torch.equal(torch.cat([result.codes for result in results]), codes), options
    drawn = torch.stack([torch.frombuffer(bytearray(r.images[0].tobytes()), dtype=torch.uint8) for r in results])
    expected = pipe.image_tokenizer.decode(codes).mul(255).round().byte().permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(drawn, expected)


def test_shapes_recipes_train_a_dalle_that_draws_colors(tmp_path: Path) -> None:
    bpe, vqgan, clip, model = (tmp_path / name for name in ("bpe", "vqgan", "clip", "dalle"))
    words = f"text_tokenizer={bpe}/model"
    python("train.py", "configs/shapes/bpe.yaml", f"dir={bpe}")
    python("train.py", "configs/shapes/vqgan.yaml", f"run.dir={vqgan}")
    assert figures(vqgan)["validation/psnr"] > 25
    python("train.py", "configs/shapes/clip.yaml", words, f"run.dir={clip}")
    assert figures(clip)["validation/text_to_image@1"] > 0.5
    stands_on = [words, f"image_tokenizer={vqgan}/model", f"clip={clip}/model"]
    python("train.py", "configs/shapes/dalle.yaml", *stands_on, f"run.dir={model}")
    assert figures(model)["validation/image_nats"] < 1.6  # log(64) = 4.2 is chance
    options = ["--n", "8", "--keep", "2", "--seed", "7", "--model", f"{model}/model", "--out", f"{tmp_path}/out"]
    grid = python("sample.py", "a red circle", "a blue square", *options).strip()
    assert Image.open(grid).size == (3 * 128, Image.open(grid).height)
    pipe = dalle.TextToImage.from_pretrained(model / "model", device="cpu")
    for prompt, channel in (("a red circle", 0), ("a green square", 1), ("a blue diamond", 2)):
        (result,) = pipe(prompt, n=8, keep=1, top_k=8)
        pixels = torch.frombuffer(bytearray(result.images[0].tobytes()), dtype=torch.uint8).view(16, 16, 3).float()
        assert pixels[6:10, 6:10].mean((0, 1)).argmax() == channel, prompt
    table = python("-m", "dalle", "eval", f"{model}/model", "kind=shapes")
    assert "image_nats" in table and "nats per image token" in table


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with CLIP, in model/, and what it stands on."""
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny")).parent
    (folder / "text_tokenizer" / "config.yaml").write_text("stage: text_tokenizer\nmodel: {vocab_size: 300}\n")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The user's own: dog.png, face.png and a mask for it."""
    for name in ("dog", "face"):
        Image.effect_noise((80, 80), 90).convert("RGB").save(tmp_path / f"{name}.png")
    mask = Image.new("L", (80, 80))
    mask.paste(255, (20, 0, 60, 40))
    mask.save(tmp_path / "mask.png")
    return tmp_path


SAMPLE = [
    ["a red heart, 3d style", "--n", "16", "--keep", "4", "--seed", "7"],
    [
        *("गुलाबी हात्ती", "a cat in noto style on a yellow background"),
        *("--guidance", "4", "--top-k", "256", "--temperature", "0.9"),
    ],
    ["a dog", "--image", "IMAGES/dog.png", "--keep-rows", "0.5"],
    ["a hat", "--image", "IMAGES/face.png", "--mask", "IMAGES/mask.png"],
]


@pytest.mark.parametrize("arguments", SAMPLE)
@pytest.mark.parametrize("shipped", [False, True])
def test_sample_commands_of_the_readme_run(arguments: list[str], shipped: bool, tiny: Path, images: Path) -> None:
    if shipped and not (SHIPPED / "model.safetensors").is_file():
        pytest.skip("no model ships with this copy of the repository")
    arguments = [argument.replace("IMAGES", str(images)) for argument in arguments]
    arguments += ["--out", str(images / "out")] + ([] if shipped else ["--model", str(tiny / "model")])
    grid = Path(python("sample.py", *arguments).strip())
    content = json.loads((grid.parent / "scores.json").read_text(encoding="utf-8"))
    prompts = [argument for argument in arguments[:2] if not argument.startswith("--")]
    assert [p["prompt"] for p in content["images"]] == [prompt for prompt in prompts for _ in range(4)]
    assert Image.open(grid).width == 4 * (128 + 8) + 8


def stands_on(tiny: Path) -> list[str]:
    """Overrides by which configs/emoji/dalle.yaml stands on the tiny tokenizers: no weights need to ship for this."""
    transformer = "model.transformer={width: 16, depth: 1, heads: 2}"
    parts = [f"{name}={tiny / name}" for name in ("text_tokenizer", "image_tokenizer", "clip")]
    return [*parts, transformer, "model.text_vocab=300", "model.image_vocab=24", "model.grid=[4, 4]"]


def test_train_command_runs_and_resumes(tiny: Path, tmp_path: Path) -> None:
    command = ["train.py", "configs/emoji/dalle.yaml", "optim.lr=3e-4", f"run.dir={tmp_path / 'mine'}", *SHORT]
    python(*command, *stands_on(tiny))
    assert f"weights: {tmp_path / 'mine' / 'model'}" in python(*command, *stands_on(tiny), "resume=true", "run.steps=3")
    assert figures(tmp_path / "mine")["step"] == 3
    assert Image.open(tmp_path / "mine" / "samples" / "00000003.png").width == 8 * (16 + 2) + 2
    assert sample.main(["a dog", "--model", str(tmp_path / "mine" / "model"), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("config", "side"), [("tokenizers/emoji-vqgan/config.yaml", 16), ("tokenizers/emoji-dvae/config.yaml", 8)]
)
def test_image_tokenizer_commands_run(config: str, side: int, tmp_path: Path) -> None:
    python("train.py", config, f"run.dir={tmp_path / 'run'}", *SHORT)
    table = python("-m", "dalle", "eval", str(tmp_path / "run" / "model"), "--limit", "8")
    assert "test_concept" in table and "psnr" in table and "kept_pixel_shift" in table
    python("-m", "dalle", "export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "int8")
    assert dalle.load_image_tokenizer(tmp_path / "out").grid == (side, side)


def test_text_tokenizer_and_clip_commands_run(tmp_path: Path) -> None:
    python("train.py", "tokenizers/emoji-bpe/config.yaml", f"dir={tmp_path / 'bpe'}")
    command = ["train.py", "configs/emoji/clip.yaml", f"text_tokenizer={tmp_path / 'bpe'}/model"]
    python(*command, f"run.dir={tmp_path / 'clip'}", *SHORT)
    printed = json.loads(python("-m", "dalle", "eval", f"{tmp_path / 'clip'}/model", "--limit", "20", "--json"))
    found = printed["splits"]["test_pair"]
    assert 0 <= found["image_to_text@1"] <= found["image_to_text@10"] <= 1 and found["images"] == 20


def test_train_command_takes_a_folder_of_images(tiny: Path, images: Path) -> None:
    mine = images / "my_images"
    mine.mkdir()
    for index in range(12):
        Image.effect_noise((40, 30), 10 * index).convert("RGB").save(mine / f"{index}.jpg")
        (mine / f"{index}.txt").write_text(f"image number {index}\n")
    command = ["train.py", "configs/folder/dalle.yaml", f"data.path={mine}/", f"run.dir={images / 'run'}"]
    python(*command, *SHORT, *stands_on(tiny))
    assert figures(images / "run")["step"] == 2


def test_two_processes_by_accelerate_equal_one(tiny: Path, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2", "--cpu"]
    command = ["train.py", "configs/emoji/dalle.yaml", f"run.dir={tmp_path / 'run'}", *SHORT, *stands_on(tiny)]
    python(*launch, *command)
    assert figures(tmp_path / "run")["step"] == 2
    two = figures(tmp_path / "run")["train/image"]
    python("train.py", *command[1:2], f"run.dir={tmp_path / 'one'}", *command[3:])
    assert two == pytest.approx(figures(tmp_path / "one")["train/image"], rel=1e-2)
