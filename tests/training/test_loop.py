"""The training loop: resumed = uninterrupted, accumulated = whole, two processes = one, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train
from dalle.training.checkpoint import checkpoint
from dalle.training.checkpoint.best import METRICS
from dalle.training.checkpoint.folders import folders
from dalle.training.checkpoint.latest import load_latest
from dalle.training.planning.plan import operations
from dalle.training.planning.setup import ModelSize
from dalle.training.recipe import DALLERecipe, load_recipe
from dalle.training.run.log import RunLog
from dalle.training.tasks.base import Phase
from dalle.training.tasks.image_tokenizer import ImageTokenizerTask
from support.stage_recipes import RECIPES

ROOT = Path(__file__).parents[2]
VQGAN, DALLE, CLIP = (RECIPES[stage] for stage in ("vqgan", "dalle", "clip"))
NO_DROPOUT = ["model.transformer.dropout=0.0", "model.transformer.attention_dropout=0.0"]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A BPE and a VQGAN trained on shapes for a moment."""
    folder = tmp_path_factory.mktemp("tokenizers")
    bpe = {
        "stage": "text_tokenizer",
        "model": {"vocab_size": 300},
        "data": {"kind": "shapes"},
        "dir": str(folder / "bpe"),
    }
    assert train.main([str(_write(folder / "bpe.yaml", bpe))]) == 0
    vqgan = VQGAN | {"run": VQGAN["run"] | {"dir": str(folder / "vqgan"), "steps": 3}}
    assert train.main([str(_write(folder / "vqgan.yaml", vqgan))]) == 0
    return {"text_tokenizer": str(folder / "bpe/model"), "image_tokenizer": str(folder / "vqgan/model")}


@pytest.fixture(scope="session")
def clip(tokenizers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP trained on shapes for a moment."""
    folder = tmp_path_factory.mktemp("clip")
    recipe = CLIP | {"text_tokenizer": tokenizers["text_tokenizer"]}
    options = [f"run.dir={folder / 'run'}", "run.steps=2", "run.validation_images=8"]
    assert train.main([str(_write(folder / "clip.yaml", recipe)), *options]) == 0
    return str(folder / "run/model")


def _write(path: Path, recipe: dict) -> Path:
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def _losses(run: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = ("images_per_s", "tokens_per_s", "flops_utilization", "peak_memory_gb", "data_wait")
    return {
        x["step"]: {k: v for k, v in x.items() if k.startswith("train/") and not k.endswith(rates)}
        for x in lines
        if any(k.startswith("train/") for k in x)
    }


def _validations(run: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {x["step"]: x for x in lines if any(k.startswith("validation/") for k in x)}


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(folders(run)[-1] / "weights.safetensors")


def _recipe(stage: str, tokenizers: dict[str, str], clip: str = "") -> dict:
    """A stage's recipe with what it stands on."""
    if stage in ("prior", "prior_ar", "decoder"):
        return RECIPES[stage] | {"clip": clip}
    if stage == "clip":
        return CLIP | {"text_tokenizer": tokenizers["text_tokenizer"]}
    return RECIPES[stage] | (tokenizers if stage in ("dalle", "grpo") else {})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "stage", ["vqgan", "dvae", "clip", "dalle", "grpo", "prior", "prior_ar", "decoder", "upsampler"]
)
def test_resumed_equals_uninterrupted(
    stage: str, precision: str, tokenizers: dict[str, str], clip: str, tmp_path: Path
) -> None:
    config = str(_write(tmp_path / "config.yaml", _recipe(stage, tokenizers, clip)))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [f"run.precision={precision}", "run.validate_every=5", "run.validation_images=8"]
    assert train.main([config, f"run.dir={whole}", *options]) == 0
    options = [config, f"run.dir={parts}", "run.save_every=5", *options]
    interrupted = RunLog.train

    def interrupt_at_5(self: RunLog, step: int, metrics: dict[str, float]) -> None:
        interrupted(self, step, metrics)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "train", interrupt_at_5)
        assert train.main(options) == 128 + signal.SIGTERM
    assert [p.name for p in folders(parts)] == ["step-00000005"]
    assert train.main([*options, "resume=true"]) == 0
    assert _losses(parts) == _losses(whole)
    assert _validations(parts) == _validations(whole) and set(_validations(whole)) == {5, 8}
    for name, value in _weights(whole).items():
        assert torch.equal(value, _weights(parts)[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vqgan", "dalle", "grpo", "prior", "prior_ar", "decoder", "upsampler"])
def test_two_micro_batches_equal_one_batch(stage: str, tokenizers: dict[str, str], clip: str, tmp_path: Path) -> None:
    config = str(_write(tmp_path / "config.yaml", _recipe(stage, tokenizers, clip)))
    off = _without_dropout(stage)
    assert train.main([config, f"run.dir={tmp_path / 'whole'}", *off]) == 0
    assert train.main([config, f"run.dir={tmp_path / 'split'}", "run.accumulation=2", *off]) == 0
    _same_run(tmp_path / "whole", tmp_path / "split")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vqgan", "clip", "dalle", "grpo", "prior", "prior_ar", "decoder", "upsampler"])
def test_two_processes_equal_one(stage: str, tokenizers: dict[str, str], clip: str, tmp_path: Path) -> None:
    config = str(_write(tmp_path / "config.yaml", _recipe(stage, tokenizers, clip)))
    off = _without_dropout(stage)
    assert train.main([config, f"run.dir={tmp_path / 'one'}", *off]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, config, f"run.dir={tmp_path / 'two'}", *off], cwd=ROOT, env=environment, check=True)
    _same_run(tmp_path / "one", tmp_path / "two")


def _without_dropout(stage: str) -> list[str]:
    """Options that leave out what depends on the process or on the order of calls."""
    if stage == "vqgan":
        return []
    if stage in ("decoder", "upsampler"):
        return ["bpe_dropout=0.0"]
    return [
        "bpe_dropout=0.0",
        *(NO_DROPOUT if stage in ("dalle", "grpo") else NO_DROPOUT[:1] if stage != "clip" else []),
    ]


def _same_run(a: Path, b: Path) -> None:
    """Equal up to the order of additions."""
    losses_a, losses_b = _losses(a), _losses(b)
    assert losses_a.keys() == losses_b.keys()
    for step, metrics in losses_a.items():
        for name, value in metrics.items():
            assert losses_b[step][name] == pytest.approx(value, rel=1e-3, abs=1e-4), (step, name)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_run_ended_by_a_signal_saves_and_says_how_to_resume(sent: signal.Signals, tmp_path: Path) -> None:
    """To one process by Ctrl-C; by a scheduler and its launcher to all, those too that prepare data."""
    config = str(_write(tmp_path / "config.yaml", VQGAN | {"adversarial": None}))
    command = [sys.executable, "train.py", config, f"run.dir={tmp_path / 'run'}", "run.steps=100000", "run.workers=2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and log.stat().st_size > 500) and time.monotonic() < deadline:
        os.sched_yield()
    if sent == signal.SIGINT:
        process.send_signal(sent)
    else:
        os.killpg(process.pid, sent)
        os.killpg(process.pid, sent)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + sent and "resume=true" in output and "DataLoader worker" not in output, output
    assert load_latest(tmp_path / "run").step > 0


def test_training_writes_a_folder_that_loads(tokenizers: dict[str, str], tmp_path: Path) -> None:
    config = str(_write(tmp_path / "config.yaml", DALLE | tokenizers))
    options = ["run.steps=2", "run.validation_images=8", f"run.dir={tmp_path / 'run'}"]
    assert train.main([config, *options]) == 0
    import dalle

    model = dalle.load_model(tmp_path / "run" / "model")
    images = dalle.load_image_tokenizer(tmp_path / "run" / "model" / "image_tokenizer")
    assert model.config.image_vocab == images.codebook_size == 32
    assert (tmp_path / "run" / "samples" / "00000002.png").exists()
    files = {"config.yaml", "origin.yaml", "metrics.jsonl", "report.html"}
    assert files <= {p.name for p in (tmp_path / "run").iterdir()}


def test_update_ratio_is_logged_and_plotted(
    tokenizers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(_write(tmp_path / "config.yaml", DALLE | tokenizers))
    options = [f"run.dir={tmp_path / 'run'}", "run.steps=2", "run.validation_images=8", "run.peak_tflops=1e-3"]
    assert train.main([config, *options]) == 0
    first, second = _losses(tmp_path / "run").values()
    assert first["train/dalle_lr"] == pytest.approx(5e-4) and second["train/dalle_lr"] == pytest.approx(1e-3)
    assert 1.5 < second["train/dalle_update_ratio"] / first["train/dalle_update_ratio"] < 2.5  # twice the rate
    recipe = load_recipe(Path(config), [f"run.dir={tmp_path}"])
    assert isinstance(recipe, DALLERecipe)
    rate = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    per_image = operations(ModelSize.of(recipe.model), checkpointing=False)
    assert rate["train/flops_utilization"] == pytest.approx(rate["train/images_per_s"] * per_image / 1e9)
    validation = _validations(tmp_path / "run")[2]
    assert 0 <= validation["validation/image_accuracy"] <= 1
    assert {f"validation/{name}" for name in METRICS["dalle"]} <= set(validation)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "step 2 of 2" in page and "data:image/jpeg" in page and "train/dalle_update_ratio" in page


def test_unwritable_report_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(_write(tmp_path / "config.yaml", VQGAN | {"adversarial": None}))
    options = [config, f"run.dir={tmp_path / 'run'}", "run.steps=1", "run.validation_images=8"]
    assert train.main(options) == 0
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    assert train.main([*options, "run.steps=2", "resume=true"]) == 0
    assert "no report.html: " in capsys.readouterr().out
    (tmp_path / "run" / "report.html").rmdir()
    assert train.main([*options, "run.steps=3", "resume=true", "run.report=false"]) == 0
    assert not (tmp_path / "run" / "report.html").exists()


def test_nonfinite_losses_are_skipped_up_to_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(_write(tmp_path / "config.yaml", VQGAN))
    options = ["optim.lr=1e3", "optim.clip_norm=null", "run.steps=50", "run.max_skipped=3"]
    assert train.main([config, f"run.dir={tmp_path / 'run'}", *options]) == 2
    assert "3 steps in a row were not finite" in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["generator", "discriminator"])
def test_a_nonfinite_loss_leaves_its_phase_unchanged(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = ImageTokenizerTask.loss

    def infinite(self: ImageTokenizerTask, now: Phase, inputs: Any, step: int) -> tuple[torch.Tensor, dict]:
        value, metrics = loss(self, now, inputs, step)
        return value + (float("inf") if (now.name, step) == (phase, 3) else 0), metrics  # its gradient stays finite

    monkeypatch.setattr(ImageTokenizerTask, "loss", infinite)
    config = str(_write(tmp_path / "config.yaml", VQGAN))
    options = [f"run.dir={tmp_path / 'run'}", "run.steps=4", "run.save_every=1", "run.keep=4"]
    assert train.main([config, *options, "run.validation_images=8"]) == 0
    assert f"step 4: skipped, non-finite loss or gradient in {phase} (1 in a row)" in capsys.readouterr().out
    before, after = (load_file(folder / "weights.safetensors") for folder in folders(tmp_path / "run")[-2:])
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == (set() if phase == "generator" else {"model", "adversary"})
    same = [n for n in after if n.startswith("adversary.discriminator") and not torch.equal(after[n], before[n])]
    assert not same


def test_resume_refuses_another_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(_write(tmp_path / "config.yaml", VQGAN | {"adversarial": None}))
    options = [config, f"run.dir={tmp_path / 'run'}", "run.steps=1", "run.validation_images=8"]
    assert train.main(options) == 0
    assert train.main(options) == 2
    assert "contains a run already" in capsys.readouterr().err
    assert train.main([*options, "resume=true", "model.channels=32"]) == 2
    assert "model.channels was 16, is now 32" in capsys.readouterr().err


def test_checkpoint_older_than_an_option_resumes(
    tokenizers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [str(_write(tmp_path / "config.yaml", DALLE | tokenizers)), f"run.dir={tmp_path / 'run'}"]
    options += ["run.validation_images=8", "run.sample_every=100", "model.transformer.attention_dropout=0.0"]
    of = checkpoint.Checkpoint.of

    def before(*given: Any) -> checkpoint.Checkpoint:
        found = of(*given)
        del found.architecture["transformer"]["attention_dropout"]
        return found

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "of", before)
        assert train.main([*options, "run.steps=1"]) == 0
    assert train.main([*options, "run.steps=2", "model.transformer.attention_dropout=0.5", "resume=true"]) == 2
    assert train.main([*options, "run.steps=2", "resume=true"]) == 0


@pytest.mark.slow
def test_resume_may_turn_on_activation_checkpointing(tokenizers: dict[str, str], tmp_path: Path) -> None:
    config = str(_write(tmp_path / "config.yaml", _recipe("dalle", tokenizers)))
    options = [config, "run.validation_images=8", "run.steps=3", "run.sample_every=100"]
    again = "model.transformer.checkpoint_activations=true"
    run = f"run.dir={tmp_path / 'parts'}"
    assert train.main([*options, run, "run.steps=2"]) == 0
    assert train.main([*options, run, "resume=true", again, "model.transformer.depth=3"]) == 2
    assert train.main([*options, run, "resume=true", again]) == 0
    assert len(_losses(tmp_path / "parts")) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optim.lrr=1", "optim.lrr"),
        ("optim.lr=fast", "optim.lr"),
        ("run.batch_size=7", "multiple of 2"),
        ("run.precision=fp16", "needs a GPU"),
        ("resume=true", "no checkpoint to resume from"),
    ],
)
def test_wrong_options_give_a_one_line_error(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(_write(tmp_path / "config.yaml", VQGAN))
    assert train.main([config, f"run.dir={tmp_path / 'run'}", "run.accumulation=2", option]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_and_print_config_list_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(_write(tmp_path / "config.yaml", VQGAN | {"run": VQGAN["run"] | {"dir": "runs/x"}}))
    with pytest.raises(SystemExit):
        train.main([config, "--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("optim.lr", "run.max_skipped", "perceptual_weight", "model.image_size"))
    assert train.main([config, "--print-config", "optim.lr=0.5"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out
