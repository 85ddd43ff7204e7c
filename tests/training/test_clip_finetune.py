"""CLIPs that go on from what is there: ours, published, another loss; locked towers, rates by layer, interpolation."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import dalle
import train
from dalle.__main__ import main
from dalle.apps.zeroshot import ZeroShotClassifier
from dalle.apps.zeroshot.accuracy import evaluate_classifier
from dalle.checkpoints.tensors import read_tensors
from dalle.data.batch import Batch
from dalle.data.labeled import open_labeled_images
from dalle.models.clip import CLIP
from dalle.training.frozen_towers import freeze
from dalle.training.optim import OptimConfig, build_optimizer, set_learning_rate
from dalle.training.tasks.clip import CLIPTask, Inputs
from support.published.clips import hub_folder
from support.tiny_configs import clip_config


@pytest.fixture
def source(tiny_copy: Path) -> Path:
    return tiny_copy / "clip"


def recipe(folder: Path, source: Path, **changes: Any) -> str:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for color in ("red", "blue", "green", "black"):
        Image.new("RGB", (8, 8), color).save(images / f"{color}.png")
        (images / f"{color}.txt").write_text(f"a {color} square")
    content: dict[str, Any] = {
        "stage": "clip",
        "init_from": str(source),
        "data": {"kind": "pairs", "path": str(images), "validation_share": 0.25},
        "optim": {"lr": 1e-2, "warmup": 1, "ema": None},
        "run": {"dir": str(folder / "run"), "steps": 2, "batch_size": 2, "tracker": "none", "device": "cpu"},
    }
    file = folder / "clip.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return str(file)


def moved(before: CLIP, after: CLIP) -> set[str]:
    old = before.state_dict()
    return {name for name, value in after.state_dict().items() if not torch.equal(value, old[name])}


def test_learning_rate_0_leaves_the_weights_unchanged(source: Path, tmp_path: Path) -> None:
    assert train.main([recipe(tmp_path, source), "optim.lr=0", "optim.weight_decay=0"]) == 0
    before, after = dalle.load_clip(source), dalle.load_clip(tmp_path / "run/model")
    assert not moved(before, after) and before.config == after.config
    assert before.tokenizer is not None and after.tokenizer is not None
    assert before.tokenizer.encode_ragged(["a red heart"]) == after.tokenizer.encode_ragged(["a red heart"])


@pytest.mark.parametrize(("lock", "stays"), [("image", "vision."), ("text", "text.")])
def test_locked_tower_is_unchanged_and_the_other_trains(lock: str, stays: str, source: Path, tmp_path: Path) -> None:
    options = [f"lock={lock}", "optim.weight_decay=0.1", "optim.ema=0.9", "run.accumulation=1", "augment=0.5"]
    file = recipe(tmp_path, source)
    assert train.main([file, *options]) == 0
    before, after = dalle.load_clip(source), dalle.load_clip(tmp_path / "run/model")
    changed = moved(before, after)
    assert not [name for name in changed if name.startswith(stays)] and "logit_scale" in changed
    other = [name for name in before.state_dict() if not name.startswith(stays)]
    assert len(changed) > 0.8 * len(other)
    assert train.main([file, *options, "resume=true", "run.steps=3"]) == 0
    assert not [name for name in moved(before, dalle.load_clip(tmp_path / "run/model")) if name.startswith(stays)]


def test_another_loss_resets_scale_and_bias(source: Path, tmp_path: Path) -> None:
    still = ["optim.lr=0", "optim.weight_decay=0"]
    assert train.main([recipe(tmp_path, source), "loss=sigmoid", *still]) == 0
    sigmoid = dalle.load_clip(tmp_path / "run/model")
    assert sigmoid.logit_bias is not None and sigmoid.config.sigmoid
    assert (sigmoid.scale.item(), sigmoid.logit_bias.item()) == (pytest.approx(10), -10)
    state = sigmoid.state_dict()
    kept = {n: v for n, v in dalle.load_clip(source).state_dict().items() if n != "logit_scale"}
    assert all(torch.equal(value, state[name]) for name, value in kept.items())

    own = f"run.dir={tmp_path / 'again'}"
    assert train.main([recipe(tmp_path, tmp_path / "run/model"), own, *still]) == 0  # the loss is its own
    assert not moved(sigmoid, dalle.load_clip(tmp_path / "again/model"))
    own = f"run.dir={tmp_path / 'back'}"
    assert train.main([recipe(tmp_path, tmp_path / "run/model"), own, "loss=softmax", *still]) == 0
    back = dalle.load_clip(tmp_path / "back/model")
    assert back.logit_bias is None and back.scale.item() == pytest.approx(1 / 0.07)


def test_published_clip_is_finetuned(tmp_path: Path) -> None:
    published = tmp_path / "theirs"
    published.mkdir()
    hub_folder(published, "hugging_face", 512 + 1 + 2)
    (published / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    assert train.main([recipe(tmp_path, published), "lock=image"]) == 0
    before, after = dalle.load_clip(published), dalle.load_clip(tmp_path / "run/model")
    changed = moved(before, after)
    assert changed and not [name for name in changed if name.startswith("vision.")]
    assert (tmp_path / "run/initial/README.md").is_file() and after.tokenizer is not None
    half = tmp_path / "half"
    assert main(["export", str(tmp_path / "run"), str(half), "--interpolate", "0.25", "--with", str(published)]) == 0
    mixed, one, other = (clip.state_dict() for clip in (dalle.load_clip(half), before, after))
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * one[name] + 0.25 * other[name])


def test_weight_interpolation_ends_at_both_models(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([recipe(tmp_path, source), "run.save_every=1"]) == 0
    run, ends = tmp_path / "run", {}
    for share in ("0", "1"):
        assert main(["export", str(run), str(tmp_path / share), "--interpolate", share, "--with", str(source)]) == 0
        ends[share] = dalle.load_clip(tmp_path / share)
    assert not moved(ends["0"], dalle.load_clip(source)) and not moved(ends["1"], dalle.load_clip(run / "model"))
    checkpoint = str(run / "checkpoints/step-00000001")
    assert main(["export", checkpoint, str(tmp_path / "early"), "--interpolate", "0.5", "--with", str(source)]) == 0
    other = make_other(tmp_path)
    capsys.readouterr()
    wrong = {
        ("--interpolate", "1.5", "--with", str(source)): "--interpolate is 1.5: give a weight from 0",
        ("--interpolate", "0.5"): "go together",
        ("--with", str(source)): "go together",
        ("--interpolate", "0.5", "--with", str(tmp_path / "parts/model")): "holds a DALL-E, expected a CLIP",
        ("--interpolate", "0.5", "--with", str(other)): "its architecture differs from",
    }
    for options, message in wrong.items():
        assert main(["export", str(run), str(tmp_path / "out"), *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_batch_larger_than_the_data_set_is_refused(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An image would be contrasted with its own copies."""
    assert train.main([recipe(tmp_path, source), "run.batch_size=8", "data.validation_share=0"]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("train.py: run.batch_size is 8, and the data set has 4 images: each would be contrasted")
    assert not (tmp_path / "run").exists()


def test_a_single_pair_is_refused(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "alone").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "alone/a.png")
    (tmp_path / "alone/a.txt").write_text("a square")
    data = {"kind": "pairs", "path": str(tmp_path / "alone"), "validation_share": 0}
    assert train.main([recipe(tmp_path, source, data=data)]) == 2
    assert "the data set has 1 image: pairs are contrasted with others; give 2 at least" in capfd.readouterr().err


@pytest.mark.parametrize("accumulation", [1, 2])
def test_step_with_nan_images_is_skipped(
    accumulation: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of one micro-batch, too: its embeddings are in the loss of all."""
    inputs, seen = CLIPTask.inputs, []

    def nan_in_the_last(self: CLIPTask, batch: Batch) -> Inputs:
        made = inputs(self, batch)
        seen.append(len(batch.captions))
        if sum(seen) == 4:
            made.images[0, 0, 0, 0] = math.nan
        return made

    monkeypatch.setattr(CLIPTask, "inputs", nan_in_the_last)
    assert train.main([recipe(tmp_path, source), f"run.accumulation={accumulation}", "run.save_every=1"]) == 0
    assert "step 2: skipped, non-finite loss or gradient in clip (1 in a row)" in capfd.readouterr().out
    first, last = (read_tensors(tmp_path / f"run/checkpoints/step-0000000{n}/weights.safetensors") for n in (1, 2))
    assert all(torch.equal(value, last[name]) and value.isfinite().all() for name, value in first.items())


def make_other(folder: Path) -> Path:
    """A CLIP of another size."""
    file = recipe(folder, folder / "parts/clip", run={"dir": str(folder / "other"), "steps": 0, "batch_size": 2})
    options = ["init_from=null", f"text_tokenizer={folder / 'parts/text_tokenizer'}", "run.tracker=none"]
    tower = "{width: 8, depth: 1, heads: 2}"
    shape = ["image_size=8", "patch_size=4", f"vision={tower}", f"text={tower}", "text_vocab=300", "embed_dim=8"]
    assert train.main([file, *options, *(f"model.{one}" for one in shape), "run.steps=1", "run.device=cpu"]) == 0
    return folder / "other/model"


def test_layer_decay_lowers_rates_from_the_top_of_each_tower() -> None:
    clip = CLIP(clip_config(image_size=8, patch_size=4, text_vocab=30))
    optim = OptimConfig(lr=1.0, layer_decay=0.5)
    optimizer = build_optimizer(clip, optim)
    set_learning_rate(optimizer, 0.8)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    plain = {
        id(p): group["weight_decay"]
        for group in build_optimizer(clip, OptimConfig()).param_groups
        for p in group["params"]
    }
    assert decay == plain
    wanted = {
        "logit_scale": 0.8,
        "vision.projection.weight": 0.8,
        "text.transformer.norm.bias": 0.8,
        "vision.transformer.blocks.1.attention.qkv.weight": 0.4,
        "text.transformer.blocks.1.feed_forward.up.bias": 0.4,
        "text.transformer.blocks.0.attention_norm.weight": 0.2,
        "vision.patches.weight": 0.1,
        "vision.class_token": 0.1,
        "vision.norm.weight": 0.1,
        "text.tokens.weight": 0.1,
        "text.positions": 0.1,
    }
    named = dict(clip.named_parameters())
    assert {name: rate[id(named[name])] for name in wanted} == pytest.approx(wanted)
    assert len(rate) == len(named)


def test_lower_layers_change_less_after_resuming_too(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = recipe(tmp_path, source), ["optim.layer_decay=0.1", "optim.weight_decay=0", "run.log_every=1"]
    assert train.main([file, *options]) == 0
    assert train.main([file, *options, "resume=true", "run.steps=3"]) == 0
    before, after = (dalle.load_clip(place).state_dict() for place in (source, tmp_path / "run/model"))
    names = ("vision.patches.weight", *(f"vision.transformer.blocks.{i}.attention.qkv.weight" for i in (0, 1)))
    names = (*names, "vision.projection.weight")
    steps = [(after[name] - before[name]).abs().max().item() for name in names]
    assert all(4 < above / below < 25 for below, above in itertools.pairwise(steps))
    capsys.readouterr()
    assert train.main([file, "resume=true", "run.steps=4"]) == 2
    error = capsys.readouterr().err
    assert "trained with an optim.layer_decay of below 1, the recipe has 1: resume" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["lock=both"], "lock is 'both': expected a tower to freeze, image or text"),
        (["lock='image,image'"], "lock is 'image,image': expected a tower"),
        (["lock='image,text'"], "both towers would be frozen"),
        (["lock='text:3'"], "lock is 'text:3', but the text tower has 2 blocks: give 1 to 2, or text"),
        (["lock='text:0'"], "lock is 'text:0', but the text tower has 2 blocks"),
        (["lock=image", "init_from=null", "text_tokenizer=x", "model={}"], "lock freezes pretrained weights"),
        (["lora={}", "init_from=null", "text_tokenizer=x", "model={}"], "lora freezes pretrained weights"),
        (["lora={}", "optim.ema=0.9"], "lora does not work with an EMA"),
        (["zero_shot.path=nowhere"], "nowhere"),
        (["zero_shot.path=classes"], "zero_shot.path=classes has images of 1 class: give 2 classes at least"),
        (["zero_shot={path: emoji, templates: mine}"], "there is no set of templates 'mine'"),
        (["zero_shot={path: emoji, by: taste}"], "emoji have no classes by 'taste'"),
        (["run.keep_best=zero_shot_top_1"], "needs labeled images: give zero_shot.path"),
        (["lock=text", "model.text.dropout=0.1"], "a frozen tower must not use dropout"),
        (["init_from=parts/model"], "is of stage 'dalle'; expected a CLIP"),
        (["init_from=nowhere"], "nowhere"),
        (["model.vision.depth=3"], "does not fit this architecture"),
        (["model.text_length=9"], "of another shape: text.positions is [12, 16], expected [9, 16]"),
        (["optim.layer_decay=0"], "layer_decay is 0.0; it must be above 0"),
    ],
)
def test_wrong_inputs_give_a_one_line_error(
    options: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("classes/cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("classes/cat/1.png")
    assert train.main([recipe(tmp_path, source), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("lock", [pytest.param("image:1", marks=pytest.mark.slow), "text:1,image", "image:2,text:2"])
def test_locked_blocks_of_a_tower_are_unchanged(lock: str, source: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, source)
    assert train.main([file, f"lock={lock!r}", "optim.weight_decay=0.1"]) == 0
    before, after = dalle.load_clip(source), dalle.load_clip(tmp_path / "run/model")
    frozen: list[str] = []
    for part in lock.split(","):
        tower, _, blocks = part.partition(":")
        name = {"image": "vision", "text": "text"}[tower]
        if not blocks:
            frozen.append(f"{name}.")
            continue
        frozen += [f"{name}.{first}" for first in ("patches", "class_token", "positions", "tokens", "norm.")]
        frozen += [f"{name}.transformer.blocks.{block}." for block in range(int(blocks))]
    changed, names = moved(before, after), set(before.state_dict())
    stay = {name for name in names if name.startswith(tuple(frozen))}
    # A key's bias changes no attention weight, so its gradient is 0 but for rounding; all of it decays alike
    assert stay and not stay & changed
    assert {name for name in names - stay if name.endswith("weight")} <= changed and "logit_scale" in changed


def test_frozen_blocks_keep_no_activations(source: Path) -> None:
    clip = dalle.load_clip(source)
    freeze(clip, "image:2,text:1")
    inputs: list[torch.Tensor] = []
    for tower in (clip.vision, clip.text):
        for block in tower.transformer.blocks:
            block.register_forward_hook(lambda module, args, output: inputs.append(output))
    clip(torch.rand(2, 3, 8, 8), torch.randint(4, 9, (2, 12)))
    assert [output.requires_grad for output in inputs] == [False, False, False, True]


@pytest.mark.parametrize("lock", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("image", "text:1"))])
def test_lora_changes_the_towers_target_layers_only(lock: str | None, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason='pip install "dalle[lora]"')
    file = recipe(tmp_path, source, lora={"rank": 2, "alpha": 4, "targets": ["qkv", "down"]}, lock=lock)
    # Only from the second step on do the lower matrices have a gradient, as the upper ones begin at 0
    options = ["run.accumulation=1", "optim.layer_decay=0.9", "optim.weight_decay=0"]
    assert train.main([file, *options, "loss=sigmoid"]) == 0
    before, after = dalle.load_clip(source).state_dict(), dalle.load_clip(tmp_path / "run/model").state_dict()
    changed = {name for name, value in after.items() if name in before and not torch.equal(value, before[name])}
    stay = {None: (), "image": ("vision.",), "text:1": ("text.transformer.blocks.0.",)}[lock]
    layers = {name for name in before if name.endswith(("qkv.weight", "down.weight"))}
    layers = {name for name in layers if not name.startswith(stay)}
    assert changed == layers | {"logit_scale"}
    assert after["logit_bias"] != -10 and after["logit_scale"] != pytest.approx(math.log(10), abs=1e-6)
    for name in layers:  # each differs by a matrix of the rank
        singular = torch.linalg.svdvals(after[name] - before[name])
        assert singular[1] > 1e-7 and singular[2] < 1e-6 * max(1, singular[0])
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    kept = read_tensors(checkpoint / "weights.safetensors")
    assert {name for name in kept if "lora_" not in name} == {"model.logit_scale", "model.logit_bias"}
    assert len(kept) == 2 * len(layers) + 2
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 0
    exported = dalle.load_clip(tmp_path / "out").state_dict()
    assert exported.keys() == after.keys() and all(torch.equal(exported[name], after[name]) for name in after)
    assert train.main([file, *options, "loss=sigmoid", "resume=true", "run.steps=3"]) == 0
    again = dalle.load_clip(tmp_path / "run/model").state_dict()
    assert again["logit_scale"] != after["logit_scale"]
    assert torch.equal(again["vision.patches.weight"], before["vision.patches.weight"])


def test_zero_shot_accuracy_is_logged_and_keeps_the_best(source: Path, tmp_path: Path) -> None:
    for number in range(9):
        file = tmp_path / "photos" / ("red_heart", "star", "दिल")[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), 20 * number + 1).convert("RGB").save(file)
    (tmp_path / "photos/star/broken.png").write_bytes(b"no")
    options = [f"zero_shot.path={tmp_path / 'photos'}", "run.validate_every=1", "run.keep_best=zero_shot_top_1"]
    assert train.main([recipe(tmp_path, source), *options, "optim.lr=0.1"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "validation/zero_shot_top_1" in line]
    data = open_labeled_images(str(tmp_path / "photos"))

    def accuracy(clip: CLIP) -> float:
        classifier = ZeroShotClassifier(clip, data.labels, data.templates)
        return evaluate_classifier(classifier, data).metrics["top_1"]

    start = accuracy(dalle.load_clip(source))
    for line in logged:
        assert line["validation/zero_shot_change"] == pytest.approx(line["validation/zero_shot_top_1"] - start)
    best = max(line["validation/zero_shot_top_1"] for line in logged)
    assert len(logged) == 2 and accuracy(dalle.load_clip(tmp_path / "run/model")) == pytest.approx(best)
