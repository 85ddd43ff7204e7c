"""What a user can get wrong with train.py: one line on stderr, exit code 2, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import dalle
import train
from dalle.data.batch import Batch
from dalle.training import state
from dalle.training.checkpoint.latest import load_latest
from support.file_limits import files_of_at_most
from support.image_folders import put
from support.tiny_model import VQGAN_MODEL, make_tiny_model

ROOT = Path(__file__).parents[2]
VQGAN = {
    "stage": "image_tokenizer",
    "model": VQGAN_MODEL,
    "data": {"kind": "shapes", "size": 32},
    "optim": {"lr": 1e-3, "ema": 0.9},
    "run": {"dir": "run", "steps": 1, "batch_size": 4, "validation_images": 2, "device": "cpu", "tracker": "none"},
}
DALLE = {
    "stage": "dalle",
    "model": {
        "transformer": {"width": 16, "depth": 1, "heads": 2},
        "text_vocab": 300,
        "text_length": 12,
        "image_vocab": 24,
        "grid": [4, 4],
        "attention": ["full"],
    },
    "data": {"kind": "shapes", "size": 32},
    "optim": {},
    "run": VQGAN["run"],
    "text_tokenizer": "text_tokenizer",
    "image_tokenizer": "image_tokenizer",
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny parts of random weights: image_tokenizer/, text_tokenizer/, clip/, model/."""
    folder = make_tiny_model(tmp_path_factory.mktemp("parts")).parent
    (folder / "text_tokenizer" / "config.yaml").write_text("stage: text_tokenizer\nmodel: {vocab_size: 300}\n")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the recipes vqgan.yaml and dalle.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    (tmp_path / "dalle.yaml").write_text(yaml.safe_dump(DALLE))
    return tmp_path


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of vqgan.yaml that is done, with one checkpoint."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(VQGAN))
    assert train.main([str(folder / "vqgan.yaml"), f"run.dir={folder / 'run'}", "run.log_every=1"]) == 0
    return folder / "run"


@pytest.fixture
def run(one_step: Path, here: Path) -> Path:
    """A copy of that run in the working folder."""
    return Path(shutil.copytree(one_step, here / "run"))


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that train.py gives for these arguments."""
    try:
        code = train.main(arguments)
    except SystemExit as stop:  # argparse's own
        code = stop.code  # type: ignore[assignment]
    out, err = capfd.readouterr()
    begun = ("data: ", "resume=true: ", "saved step ")  # what a run says before it trains, or fails
    assert code == 2 and all(line.startswith(begun) for line in out.splitlines()), out
    lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]  # less the progress bar
    assert len(lines) == 1 and lines[0].startswith("train.py: "), err
    return lines[0]


WRONG = {
    "no config": ([], "which config?"),
    "no such file": (["none.yaml"], "none.yaml: no such file"),
    "help for no such file": (["none.yaml", "--help"], "none.yaml: no such file"),
    "a folder": (["folder"], "folder: is a folder, expected a YAML file"),
    "binary": (["binary.yaml"], "binary.yaml: not a YAML file, it is not UTF-8"),
    "control characters": (["control.yaml"], "control.yaml: not valid YAML"),
    "empty": (["empty.yaml"], "empty.yaml: expected `key: value` lines, found nothing"),
    "a list": (["list.yaml"], "list.yaml: expected `key: value` lines, found a list"),
    "no stage": (
        ["none_of_ours.yaml"],
        "stage: expected one of text_tokenizer, image_tokenizer, clip, dalle, prior, diffusion, got None",
    ),
    "a stage that is a list": (["vqgan.yaml", "stage=[clip]"], "stage: expected one of"),
    "unknown option": (["vqgan.yaml", "--resume"], "--resume; an option of the recipe is given as key.path=value"),
    "no value": (["vqgan.yaml", "resume"], "'resume': expected key.path=value"),
    "unknown key": (["vqgan.yaml", "optim.larning=1"], "optim.larning: unknown key"),
    "a near miss": (["vqgan.yaml", "optim.warmupp=1"], "did you mean optim.warmup?"),
    "wrong type": (["vqgan.yaml", "run.steps=many"], "run.steps: expected an integer, got 'many'"),
    "another kind": (
        ["vqgan.yaml", "model.kind=vqvae"],
        "expected one of dvae, vqgan, discrete_vae, emu3, cosmos, movqgan, got 'vqvae'",
    ),
    "keep no checkpoint": (["vqgan.yaml", "run.keep=-1"], "run: keep is -1; it must be at least 1"),
    "log never": (["vqgan.yaml", "run.log_every=0"], "run: log_every is 0; it must be at least 1"),
    "empty batches": (["vqgan.yaml", "run.batch_size=0"], "run: batch_size is 0"),
    "no validation": (["vqgan.yaml", "run.validation_images=0"], "run: validation_images is 0"),
    "an average that grows": (["vqgan.yaml", "optim.ema=1.5"], "optim: ema is 1.5"),
    "clip to nothing": (["vqgan.yaml", "optim.clip_norm=0"], "optim: clip_norm is 0.0"),
    "temperature 0": (
        ["vqgan.yaml", "temperature={first: 1, last: 0, steps: 5}"],
        "temperature goes from 1.0 to 0.0",
    ),
    "no latents": (["vqgan.yaml", "model.latent_channels=0"], "latent_channels is 0"),
    "too small to be judged": (["vqgan.yaml", "adversarial={layers: 3, start: 5}"], "needs images of at least 24x24"),
    "too small to be validated": (
        ["vqgan.yaml", "model.image_size=8"],
        "image_size is 8: validation needs at least 11",
    ),
    "no such device": (["vqgan.yaml", "run.device=abacus"], "run.device: expected one of auto, cpu, got 'abacus'"),
    "no such tracker": (["vqgan.yaml", "run.tracker=wandb"], "run.tracker is wandb, which is not installed"),
    "no data": (["vqgan.yaml", "data={kind: drawings, root: nowhere}"], "nowhere"),
    "an empty folder": (["vqgan.yaml", "run.dir=''"], "run.dir: expected a path, got ''"),
    "an empty source": (["dalle.yaml", "image_tokenizer=''"], "the source of weights is an empty text"),
    "no tokenizer": (["dalle.yaml", "image_tokenizer=./nowhere"], "nowhere: no such file or folder; train it"),
    "another tokenizer": (["dalle.yaml", "image_tokenizer=CLIP"], "holds a CLIP, expected an image tokenizer"),
    "vocabulary": (["dalle.yaml", "model.text_vocab=299"], "needs 300: set model.text_vocab=300"),
    "grid": (["dalle.yaml", "model.grid=[8, 8]"], "needs [4, 4]: set model.grid=[4, 4]"),
    "begin_id": (["dalle.yaml", "model.begin_id=300"], "begin_id is 300; it must be below text_vocab, 300"),
    "masks of no weights": (["dalle.yaml", "model.stored_masks=[5]"], "stored_masks are masks among the weights of"),
    "no channel": (["dalle.yaml", "model.transformer.mlp_ratio=1e-9"], "mlp_ratio is 1e-09: of a width of 16 that is"),
    "guidance without dropped captions": (
        ["dalle.yaml", "caption_dropout=0", "sampling.guidance=3"],
        "sampling.guidance is 3.0 but caption_dropout is 0",
    ),
    "guidance without learned captions": (
        ["dalle.yaml", "caption_dropout=1", "sampling.guidance=3"],
        "sampling.guidance is 3.0 but caption_dropout is 1: no caption would be learned",
    ),
    "run under a file": (["vqgan.yaml", "run.dir=list.yaml/run"], "list.yaml"),
    "a batch that memory cannot hold": (
        ["vqgan.yaml", "run.batch_size=1048576", "model.image_size=4096", "model.quantizer.codebook_size=2"],
        "run.batch_size: 1,048,576 images of 4096 x 4096 take 2.64e+05 GB before any computing",
    ),
    "nothing to resume": (["vqgan.yaml", "resume=true"], "run: no checkpoint to resume from"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_give_a_one_line_error(
    name: str, parts: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "folder").mkdir()
    (here / "binary.yaml").write_bytes(bytes(range(256)))
    (here / "control.yaml").write_bytes(b"stage: \x00\x01clip")
    (here / "empty.yaml").write_text("")
    (here / "list.yaml").write_text("- stage\n")
    (here / "none_of_ours.yaml").write_text("name: something\n")
    for part in ("text_tokenizer", "image_tokenizer"):
        (here / part).symlink_to(parts / part)
    monkeypatch.setattr("dalle.training.run.trackers.installed", lambda package: package != "wandb")
    arguments, message = WRONG[name]
    assert message in refused([a.replace("CLIP", str(parts / "clip")) for a in arguments], capfd)
    assert not (here / "run").exists()


def test_config_errors_are_one_line_each(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["vqgan.yaml", "optim.lrr=1", "run.keep=few", "data.kind=shape"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("train.py: vqgan.yaml: ") for line in lines)


@pytest.mark.parametrize("file", ["weights.safetensors", "average.safetensors", "state.pt"])
@pytest.mark.parametrize("left", [0, 100, -100])
def test_damaged_only_checkpoint_is_named(file: str, left: int, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = run / "checkpoints" / "step-00000001" / file
    damaged.write_bytes(damaged.read_bytes()[:left])
    line = refused(["vqgan.yaml", "resume=true", "run.steps=2"], capfd)
    assert "no checkpoint in run/checkpoints is intact: step-00000001 (" in line and "restore one from a backup" in line
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]


def test_checkpoint_of_another_shape_is_named(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    resumed = ["vqgan.yaml", "resume=true", "run.steps=2"]
    assert "model.latent_channels was 8, is now 16" in refused([*resumed, "model.latent_channels=16"], capfd)
    assert "the checkpoint has the phases generator" in refused([*resumed, "adversarial={start: 0, layers: 1}"], capfd)


def test_missing_peft_is_said_before_weights_are_converted(
    parts: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {**DALLE["model"], "attention": ["row", "full"], "transformer": {"width": 16, "depth": 2, "heads": 2}}  # type: ignore[dict-item]
    sources = {name: str(parts / name) for name in ("text_tokenizer", "image_tokenizer")}
    recipe = (
        DALLE
        | sources
        | {"model": model, "init_from": str(parts / "model"), "lora": {"rank": 2}, "optim": {"ema": None}}
    )
    (here / "dalle.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr("dalle.training.lora.find_spec", lambda name: None)
    monkeypatch.setattr("train.Run", None)  # nothing is built
    assert "LoRA needs peft: " in refused(["dalle.yaml"], capfd)


@pytest.mark.parametrize("part", ["model", "image_tokenizer"])
def test_damaged_weights_are_not_trained_on(
    part: str, parts: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One flipped byte: the architecture fits, and the loss would look like any other."""
    damaged = Path(shutil.copytree(parts / part, here / "damaged"))
    file = damaged / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    recipe = DALLE if part == "model" else VQGAN
    started = {key: value for key, value in recipe.items() if key != "model" and not key.endswith("tokenizer")}
    if part == "image_tokenizer":
        started["model"] = yaml.safe_load((damaged / "config.yaml").read_text())["model"]
    (here / "go_on.yaml").write_text(yaml.safe_dump(started | {"init_from": "damaged"}))
    line = refused(["go_on.yaml"], capfd)
    assert "damaged is damaged or was changed: its sha256 is" in line and "restore the original" in line
    assert not (here / "run").exists()
    file.unlink()
    assert "model.safetensors" in refused(["go_on.yaml"], capfd)


def test_text_tokenizer_is_not_trained_in_the_folder_of_one(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whose loader would then take it for the folder of a run."""
    folder = Path(shutil.copytree(ROOT / "tokenizers" / "emoji-bpe", here / "bpe"))
    line = refused([str(folder / "config.yaml"), "dir=bpe"], capfd)
    assert "bpe holds a model, and a run would write over its config.yaml: choose another dir=FOLDER" in line
    assert not (folder / "model").exists()


def test_resume_refuses_another_tokenizer_by_name(parts: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of the same sizes: the checkpoint fits, but its codes mean other images. The same one may lie elsewhere."""
    for part in ("text_tokenizer", "image_tokenizer"):
        (here / part).symlink_to(parts / part)
    assert train.main(["dalle.yaml"]) == 0
    capfd.readouterr()
    other = make_tiny_model(here / "other", seed=1).parent / "image_tokenizer"
    resumed = ["dalle.yaml", "resume=true", "run.steps=2"]
    for option in ("resume=true", "resume=auto"):
        line = refused([*resumed, option, f"image_tokenizer={other}"], capfd)
        assert "image_tokenizer" in line and ("not the one that the run in run has been trained with" in line) == (
            option == "resume=true"
        )
    shutil.copytree(parts / "image_tokenizer", here / "moved")
    assert train.main([*resumed, "image_tokenizer=moved"]) == 0
    assert "resume=true: image_tokenizer was image_tokenizer, is now moved" in capfd.readouterr().out


@pytest.mark.parametrize("stream", ["false", "true"])
def test_vanished_images_lose_no_training(
    stream: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is unplugged in the third step: two are saved, and the run goes on when it is there again."""
    put(here / "imgs", **{f"{i}_png": None for i in range(8)}, **{f"{i}_txt": f"{i} hearts" for i in range(8)})
    next_batch, calls = state.Run.next_batch, []

    def unplugged(self: state.Run) -> Batch:
        calls.append(self.step)
        if len(calls) == 3:
            os.rename("imgs", "elsewhere")
        return next_batch(self)

    options = ["vqgan.yaml", f"data={{kind: pairs, path: imgs, stream: {stream}, max_bad: 2}}", "run.save_every=9"]
    with monkeypatch.context() as patch:
        patch.setattr(state.Run, "next_batch", unplugged)
        line = refused([*options, "run.steps=4", "run.validate_every=9"], capfd)
    assert "No such file or directory" in line
    assert load_latest(here / "run").step == 2
    os.rename("elsewhere", "imgs")
    assert train.main([*options, "run.steps=4", "resume=true"]) == 0
    assert load_latest(here / "run").step == 4 and "broken" not in capfd.readouterr().out


def test_vanished_run_folder_is_not_called_a_full_disk(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    next_batch = state.Run.next_batch

    def unplugged(self: state.Run) -> Batch:
        if self.step == 1:
            shutil.rmtree("run")
        return next_batch(self)

    monkeypatch.setattr(state.Run, "next_batch", unplugged)
    options = ["vqgan.yaml", "run.steps=3", "run.log_every=1", "run.save_every=9", "run.validate_every=9"]
    line = refused([*options, "run.report=false"], capfd)
    assert "step 2 could not be saved in run (No such file or directory): the folder has gone: bring it back" in line


@pytest.mark.parametrize("file", ["weights.safetensors", "state.pt"])
def test_failing_save_leaves_the_last_checkpoint_intact(
    file: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = run / "checkpoints" / "step-00000001"
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with files_of_at_most(len(before[file]) - 1):  # the smaller file, weights, fits where only the state does not
        options = ["run.steps=3", "run.save_every=2", "run.validate_every=100"]  # step 2 is saved, and not judged
        line = refused(["vqgan.yaml", "resume=true", *options], capfd)
    assert "step 2 could not be saved in run" in line and "earlier checkpoints are intact; free some disk space" in line
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    dalle.load_image_tokenizer(run / "model")
    assert train.main(["vqgan.yaml", "resume=true", "run.steps=2"]) == 0
    assert load_latest(run).step == 2


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["none", "tensorboard"])
def test_full_disk_gives_a_one_line_error_and_the_run_resumes(tracker: str, here: Path) -> None:
    """A real one: a small file system in memory, where this user may mount one."""
    disk = here / "disk"
    disk.mkdir()
    room = 700  # kB: one checkpoint and the weights, not two
    commands = [
        f"mount -t tmpfs -o size={room}k none {disk}",
        f"cd {ROOT}",
        f"{sys.executable} train.py {here}/vqgan.yaml run.dir={disk}/run run.steps=9 run.save_every=1 run.keep=9"
        f" run.log_every=1 run.sample_every=1 run.tracker={tracker}",
        "code=$?",
        f"ls -a {disk}/run/checkpoints >&2",
        f"cp -r {disk}/run {here}/copy",
        "exit $code",
    ]
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "mount", "-t", "tmpfs", "none", disk]).returncode:
        pytest.skip("no file system can be mounted here")
    script = " ; ".join(commands)
    done = subprocess.run([unshare, "-Urm", "sh", "-c", script], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(lines) == 1 and "could not be saved" in lines[0] and "resume=true" in lines[0]
    assert load_latest(here / "copy").step >= 1
    assert not list((here / "copy" / "checkpoints").glob(".*"))


def test_half_written_log_line_does_not_stop_a_resume(run: Path) -> None:
    log = run / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 2, "tr')
    assert train.main(["vqgan.yaml", "run.log_every=1", "resume=true", "run.steps=2"]) == 0
    assert len(log.read_text().splitlines()) == 4  # training and validation of two steps


def test_finished_run_says_so(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main(["vqgan.yaml", "resume=true"]) == 0
    assert "nothing to train: run.steps is 1, and 1 are done" in capfd.readouterr().out


def test_ctrl_c_before_the_first_step_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dalle.training.state.build_task", interrupted)
    assert train.main(["vqgan.yaml"]) == 130
    assert capsys.readouterr().err == "train.py: stopped; checkpoints that there are stay as they are\n"


def test_traceback_on_request(here: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        train.main(["vqgan.yaml", "resume=true", "--traceback"])


def test_damaged_state_runs_no_code(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Checkpoints may come from elsewhere: what is pickled in them is data only."""

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (run / "evil",))

    torch.save(Evil(), run / "checkpoints" / "step-00000001" / "state.pt")
    (run / "checkpoints" / "step-00000001" / "SHA256SUMS").unlink()
    assert "state.pt contains pickled objects" in refused(["vqgan.yaml", "resume=true", "run.steps=2"], capfd)
    assert not (run / "evil").exists()
