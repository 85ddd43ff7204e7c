"""Several processes, really started: they train what one does, go on from each other's checkpoints, export the same."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import train
from dalle.__main__ import main as dalle
from dalle.training.checkpoint import checkpoint
from dalle.training.checkpoint.folders import folders
from dalle.training.distributed import sharded_checkpoint
from support.tiny_model import CODES, GRID, TEXT_LENGTH, make_tiny_model

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow
TOWER = {"width": 16, "depth": 2, "heads": 2}
SHARED = {
    "data": {"kind": "shapes"},
    "optim": {"lr": 1e-3, "warmup": 2, "ema": 0.9},
    "bpe_dropout": 0.0,
    "run": {
        "steps": 8,
        "batch_size": 8,
        "device": "cpu",
        "precision": "fp32",
        "tracker": "none",
        "log_every": 1,
        "validation_images": 8,
        "save_every": 2,
        "keep": 4,
        "report": False,
    },
}
FSDP, WHOLE = "run.sharding=fsdp", "run.sharding=none"


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Recipes of two stages, and of low-rank changes; beside each a run of one process: NAME.json, NAME-one."""
    folder = tmp_path_factory.mktemp("recipes")
    begun = make_tiny_model(folder / "parts")
    text = {"text_vocab": 300, "text_length": TEXT_LENGTH}
    words = str(folder / "parts/text_tokenizer")
    model = {"transformer": TOWER, "image_vocab": CODES, "grid": list(GRID), "attention": ["row", "full"]}
    stages: dict[str, dict[str, Any]] = {
        "dalle": {"model": model | text, "image_tokenizer": str(folder / "parts/image_tokenizer")},
        "clip": {"model": {"image_size": 16, "patch_size": 4, "vision": TOWER, "text": TOWER, "embed_dim": 8} | text},
    }
    stages["dalle"]["prompts"] = ["a red circle"]
    tuned = {"stage": "dalle", "init_from": str(begun), "lora": {"rank": 3}, "optim": {"lr": 1e-2, "ema": None}}
    if importlib.util.find_spec("peft") is not None:
        stages["lora"] = stages["dalle"] | tuned
        # One tower's first block frozen, adapters in all others
        stages["clip-lora"] = tuned | {"stage": "clip", "init_from": str(folder / "parts/clip"), "lock": "image:1"}
    for name, own in stages.items():
        (folder / f"{name}.json").write_text(json.dumps(SHARED | {"stage": name, "text_tokenizer": words} | own))
        assert train.main([str(folder / f"{name}.json"), f"run.dir={folder / name}-one"]) == 0
    return {name: str(folder / f"{name}.json") for name in stages}


def _several(processes: int, runs: list[list[str]], kill: tuple[int, int] | None = None) -> int:
    """Train runs with several processes, one run after the other; returns the exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    what = json.dumps({"runs": runs, "kill": kill})
    program = str(Path(__file__).with_name("several_runs.py"))
    done = subprocess.run([*command, program, what], cwd=ROOT, env=_environment())
    return done.returncode


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _figures(run: Path) -> dict[tuple[int, str], float]:
    """Everything that was logged, but for what depends on the machine."""
    found: dict[tuple[int, str], float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        step = metrics.pop("step")
        found |= {(step, k): v for k, v in metrics.items() if not k.endswith(("_per_s", "_gb", "data_wait"))}
    return found


def _one(recipe: str) -> Path:
    return Path(f"{recipe.removesuffix('.json')}-one")


def _same(run: Path, recipe: str) -> None:
    """All figures are those of one process, of training, validation and drawing; so are the weights that come out."""
    wanted, found = _figures(_one(recipe)), _figures(run)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        sums = key[1].startswith("train/clip") and not key[1].endswith("loss")  # whose terms nearly cancel
        assert found[key] == pytest.approx(value, rel=1e-3 if sums else 2e-5, abs=1e-6), key
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in (run, _one(recipe)))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].sub(value).abs().max() < 2e-5, name


def test_processes_without_a_gpu_form_one_group(recipes: dict[str, str], tmp_path: Path) -> None:
    """As the README has it: nothing says that they are to be on CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    options = [recipes["dalle"], "run.device=auto", f"run.dir={tmp_path / 'two'}"]
    environment = _environment() | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    _same(tmp_path / "two", recipes["dalle"])


def test_two_processes_train_the_same_as_one(recipes: dict[str, str], tmp_path: Path) -> None:
    ways = {"dalle": [WHOLE], "sharded": [FSDP], "less": [FSDP, "run.accumulation=2"], "clip": [FSDP]}
    ways |= {"clip-pieces": ["run.accumulation=2"], "clip-pieces-sharded": [FSDP, "run.accumulation=2"]}
    ways["less"].append("model.transformer.checkpoint_activations=true")
    ways["compiled"] = [*ways["less"], "run.compile=true"]
    taken = {way: recipes["clip" if "clip" in way else "dalle"] for way in ways}
    assert _several(2, [[taken[way], f"run.dir={tmp_path / way}", *options] for way, options in ways.items()]) == 0
    for way, recipe in taken.items():
        _same(tmp_path / way, recipe)
    assert not (folders(tmp_path / "dalle")[-1] / "shards").exists()
    newest = folders(tmp_path / "sharded")[-1]
    assert len(list((newest / "shards").iterdir())) == 2

    # The model folder is put together from shares, each tensor alone; so is what `export` makes of a checkpoint
    whole = load_file(tmp_path / "sharded/model/model.safetensors")
    for name, made in sharded_checkpoint.open_shards(newest / "shards").items():
        if name.startswith("average:"):
            assert made().equal(whole[name.removeprefix("average:")])
    older = folders(tmp_path / "sharded")[-2]
    assert dalle(["export", str(older), str(tmp_path / "exported")]) == 0
    one = checkpoint.export_weights(folders(_one(recipes["dalle"]))[-2])
    exported = load_file(tmp_path / "exported/model.safetensors")
    assert one.keys() == exported.keys() == whole.keys()
    for name, tensor in one.items():
        value = tensor if not callable(tensor) else tensor()
        assert exported[name].sub(value).abs().max() < 2e-5


def test_adapters_of_a_sharded_clip_train_the_same_as_on_one(recipes: dict[str, str], tmp_path: Path) -> None:
    """At once and in micro-batches; then one process, and two whole ones, go on from shards of adapters."""
    pytest.importorskip("peft", reason='pip install "dalle[lora]"')
    recipe = recipes["clip-lora"]
    runs = {name: [recipe, f"run.dir={tmp_path / name}", FSDP] for name in ("once", "pieces")}
    runs["pieces"].append("run.accumulation=2")
    assert _several(2, list(runs.values())) == 0
    for name in runs:
        _same(tmp_path / name, recipe)
    before = load_file(Path(recipe).parent / "parts/clip/model.safetensors")
    after = load_file(tmp_path / "once/model/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert "logit_scale" in changed and not [
        name for name in changed if name.startswith("vision.transformer.blocks.0.")
    ]
    for place in ("vision.transformer.blocks.1", "text.transformer.blocks.0"):
        assert f"{place}.attention.qkv.weight" in changed and f"{place}.attention_norm.weight" not in changed
    newest = folders(tmp_path / "once")[-1]
    names = {name.removeprefix("average:") for name in sharded_checkpoint.open_shards(newest / "shards")}
    assert any("lora_A" in name for name in names) and not any(name.endswith("norm.weight") for name in names)
    _forget(tmp_path / "once", 4)
    assert train.main([*runs["once"], "resume=true"]) == 0
    _same(tmp_path / "once", recipe)
    _forget(tmp_path / "once", 6)
    assert _several(2, [[recipe, f"run.dir={tmp_path / 'once'}", WHOLE, "resume=true"]]) == 0
    _same(tmp_path / "once", recipe)


@pytest.mark.parametrize("name", ["dalle", "clip", "lora"])
def test_checkpoints_resume_with_another_number_of_processes(
    name: str, recipes: dict[str, str], tmp_path: Path
) -> None:
    """Two, killed; then four, one, two whole, two sharded: from the checkpoints after 2, 4, 6 and 6 steps."""
    if name == "lora":
        pytest.importorskip("peft", reason='pip install "dalle[lora]"')
    recipe, run = recipes[name], tmp_path / "run"
    options = [recipe, f"run.dir={run}"]
    assert _several(2, [[*options, FSDP]], kill=(3, 1)) != 0
    assert [folder.name for folder in folders(run)] == ["step-00000002"]
    assert _several(4, [[*options, FSDP, "resume=true"]]) == 0
    _same(run, recipe)
    _forget(run, 4)
    assert train.main([*options, FSDP, "resume=true"]) == 0  # one has nothing to share
    _same(run, recipe)
    _forget(run, 6)
    assert _several(2, [[*options, WHOLE, "resume=true"]]) == 0
    _same(run, recipe)
    _forget(run, 6)
    assert _several(2, [[*options, FSDP, "resume=true"]]) == 0
    _same(run, recipe)


def test_flipped_byte_in_one_ranks_file_is_detected(recipes: dict[str, str], tmp_path: Path) -> None:
    low = ["run.powersgd={rank: 2, start: 2}", WHOLE]
    runs = {name: [recipes["dalle"], f"run.dir={tmp_path / name}"] for name in ("shares", "low")}
    both = [[*runs["shares"], FSDP], [*runs["low"], *low]]
    assert _several(2, [[*options, "run.steps=4"] for options in both]) == 0
    for name, file in (("shares", "shards/shard-00002-*"), ("low", "powersgd-00001.*")):
        folder = tmp_path / name / "checkpoints/step-00000004"
        (damaged,) = folder.glob(file)
        assert f"  {damaged.relative_to(folder)}\n" in (folder / "SHA256SUMS").read_text()
        content = bytearray(damaged.read_bytes())
        content[-9] ^= 1
        damaged.write_bytes(content)
    assert _several(2, [[*options, "resume=true"] for options in both]) == 0
    for name in runs:
        found = sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir())
        assert found == [f"step-0000000{n}" for n in ("2", "4", "4.damaged", "6", "8")]
    _same(tmp_path / "shares", recipes["dalle"])


def _forget(run: Path, step: int) -> None:
    for folder in folders(run):
        if int(folder.name[-8:]) > step:
            shutil.rmtree(folder)


def test_powersgd_training_is_near_uncompressed_and_resumes(recipes: dict[str, str], tmp_path: Path) -> None:
    """Near to what whole gradients train, and interrupted the same as not."""
    low = ["run.powersgd={rank: 2, start: 2}", "run.steps=30"]
    whole, parts = ([recipes["dalle"], f"run.dir={tmp_path / name}"] for name in ("whole", "low"))
    assert _several(2, [[*whole, "run.steps=30"], [*parts, *low]]) == 0
    found, wanted = _figures(tmp_path / "low"), _figures(tmp_path / "whole")
    first, last, near = wanted[1, "train/dalle_loss"], wanted[30, "train/dalle_loss"], found[30, "train/dalle_loss"]
    assert last < first - 0.3 and abs(near - last) < 0.1 * (first - last)
    assert found[30, "train/dalle_compression"] > 2
    assert len(list(folders(tmp_path / "low")[-1].glob("powersgd-*"))) == 2
    _forget(tmp_path / "low", 26)
    assert _several(2, [[*parts, *low, "resume=true"]]) == 0
    assert _figures(tmp_path / "low") == found


@pytest.mark.parametrize("name", ["cpu2", "fsdp2"])
def test_accelerate_configs_launch_training(name: str, recipes: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}.yaml"]
    command += ["--num_processes", "2", "train.py", recipes["dalle"], f"run.dir={tmp_path / 'run'}"]
    subprocess.run(command, cwd=ROOT, env=_environment(), check=True)
    _same(tmp_path / "run", recipes["dalle"])
    assert (folders(tmp_path / "run")[-1] / "shards").exists() == (name == "fsdp2")


def test_options_that_cannot_be_sharded_give_a_one_line_error(recipes: dict[str, str], tmp_path: Path) -> None:
    told = {
        "run.precision=fp16": "needs a GPU",
        "lora={rank: 2}": "give init_from, or set lora=null",
        "run.powersgd={rank: 2}": "set powersgd=null or sharding=none",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    for option, message in told.items():
        options = [recipes["dalle"], f"run.dir={tmp_path / 'run'}", FSDP, "optim.ema=null", option]
        done = subprocess.run([*command, *options], cwd=ROOT, env=_environment(), capture_output=True, text=True)
        own = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
        assert done.returncode != 0 and own and all(message in line for line in own), done.stderr
