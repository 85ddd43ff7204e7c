"""Folders of unCLIP models and of their parts given to commands: what fits, and one line with exit code 2."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import dalle
import sample
from dalle.__main__ import main
from dalle.checkpoints import model_folder
from dalle.files import ROOT
from dalle.models.clip import CLIP
from support.tiny_configs import clip_config
from support.tiny_unclip import make_tiny_unclip, saved


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the parts prior/, decoder/ and upsampler/, and unclip/ of them, to be read only."""
    return make_tiny_unclip(tmp_path_factory.mktemp("unclip")).parent


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error and "object at 0x" not in error, error
    return error


def assemble(root: Path, out: Path, **others: Path) -> int:
    parts = {name: root / name for name in ("prior", "decoder", "upsampler")} | others
    return main(["assemble", str(out), *(word for name, part in parts.items() for word in (f"--{name}", str(part)))])


def test_facts_are_not_given_for_folders_of_ours(
    root: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["a hat", "--device", "cpu", "--given", "heads=3", "--out", str(tmp_path / "out")]
    assert sample.main([*command, "--model", str(root / "unclip")]) == 2
    assert "--given is for published models that sample tokens, not for an unCLIP" in one_line(capsys)
    assert sample.main([*command, "--model", str(tiny_model)]) == 2
    assert f"heads is not to be given: the config.yaml of {tiny_model} tells it" in one_line(capsys)
    for folder in (root / "unclip", tiny_model):
        assert main(["inspect", str(folder), "heads=3"]) == 2
        assert f"heads is not to be given: the config.yaml of {folder} tells it" in one_line(capsys)
    with pytest.raises(ValueError, match=f"heads is not to be given: the config.yaml of {root / 'clip'} tells it"):
        dalle.load_clip(model_folder.ModelFolder(root / "clip"), heads=3)


def test_assemble_says_what_it_replaces_and_keeps_the_card(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert assemble(root, out) == 0
    assert capsys.readouterr().out.endswith(" MB\n")
    (out / "README.md").write_text("my card")
    assert assemble(root, out) == 0
    assert capsys.readouterr().out.endswith(" MB, in place of the unCLIP that was there\n")
    assert (out / "README.md").read_text() == "my card"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("precious")
    assert assemble(root, tmp_path / "other") == 2
    assert "is there already and is no unCLIP, so it is not replaced" in one_line(capsys)
    assert (tmp_path / "other/mine.txt").read_text() == "precious"


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Path:
    """The folder of a training, as far as commands look at it: its recipe, and the model in model/."""
    folder = tmp_path / "run"
    shutil.copytree(root / "prior", folder / "model")
    (folder / "config.yaml").write_text("stage: prior\nmodel: {kind: diffusion}\ndata: {kind: shapes}\n")
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_the_folder_of_a_run_is_refused_with_that_of_its_model(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = f"{run} is the folder of a run: give that of its model, {run / 'model'}"
    assert assemble(root, tmp_path / "out", prior=run) == 2
    assert wanted in one_line(capsys)
    commands = (["inspect"], ["eval"], ["eval", "unclip"])
    for command in commands:
        assert main([*command, str(run), *([] if command == ["inspect"] else ["kind=shapes"])]) == 2
        assert wanted in one_line(capsys)
    for load in (dalle.load_prior, dalle.load_clip, dalle.load_model, dalle.UnCLIP.from_pretrained):
        with pytest.raises(ValueError, match="is the folder of a run: give that of its model"):
            load(run)
    assert assemble(root, tmp_path / "out", prior=run / "model") == 0
    shutil.rmtree(run / "model")
    assert assemble(root, tmp_path / "other", prior=run) == 2
    assert f"{run} is a run that has saved no weights yet" in one_line(capsys)


def test_a_part_of_another_clip_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"text_tokenizer": ROOT / "tokenizers/emoji-bpe"}
    other = saved(tmp_path / "clip", "clip", CLIP(clip_config(depth=1, text_vocab=4096)), 44, words)
    part = shutil.copytree(root / "decoder", tmp_path / "decoder")
    # Its clip/ is another: those weights were not trained with it
    shutil.rmtree(part / "clip")
    shutil.copytree(other, part / "clip")
    assert assemble(root, tmp_path / "out", decoder=part) == 2
    error = one_line(capsys)
    assert f"{part / 'clip'} is not the clip that {part} was trained with: its sha256 is" in error
    # Trained with another: each part is whole, and they do not go together
    config = model_folder.ModelFolder(part).config
    recorded = {"clip": {"path": "clip", "sha256": model_folder.folder_hash(part / "clip")}}
    model_folder.write_config(part, config | {"parts": recorded})
    assert assemble(root, tmp_path / "out", decoder=part) == 2
    error = one_line(capsys)
    assert "prior and decoder are of different CLIPs" in error and str(part / "clip") in error
    assert not (tmp_path / "out").exists()
    unclip = shutil.copytree(root / "unclip", tmp_path / "unclip")
    assert sample.main(["a hat", "--model", str(unclip), "--prior", str(part), "--device", "cpu"]) == 2
    assert "it cannot be the prior" in one_line(capsys)


@pytest.mark.parametrize("part", ["prior", "decoder", "upsampler"])
def test_a_damaged_part_is_not_assembled(
    part: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its copy would have a hash that fits the damage."""
    damaged = shutil.copytree(root / part, tmp_path / part)
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 64
    weights.write_bytes(content)
    assert assemble(root, tmp_path / "out", **{part: damaged}) == 2
    assert f"{damaged} is damaged or was changed" in one_line(capsys) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["prior", "decoder", "upsampler"])
def test_weights_that_are_nan_name_their_part(
    part: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a training that diverged: all hashes are right."""
    folder = shutil.copytree(root / "unclip", tmp_path / "unclip")
    file = folder / part / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim == 2)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    for place in (folder / part, folder):
        config = dict(model_folder.ModelFolder(place).config)
        if place == folder:
            parts = config["parts"]
            config["parts"] = parts | {part: parts[part] | {"sha256": model_folder.folder_hash(folder / part)}}
        model_folder.write_config(place, config)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    command = ["vary", str(tmp_path / "a.png"), "--model", str(folder), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out.png")]) == 2
    assert f"{file}: {name} is nan or infinite: its run has diverged" in one_line(capsys)


# `python -m dalle` that says on stdout when the first step is done
_TELLS = """
import signal
import sys
from dalle.__main__ import main
from dalle.pipelines.unclip.sampling import ProgressMeter

def step(self, done, total, first=ProgressMeter.step):
    ProgressMeter.step = first
    print("begun", flush=True)
    first(self, done, total)

ProgressMeter.step = step
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs behind (&) with it ignored
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_in_the_middle_of_an_edit_is_a_line(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    command = ["edit", str(tmp_path / "a.png"), "--from", "a hat", "--to", "a dog", "--model", str(root / "unclip")]
    command += ["--steps", "1000", "--frames", "50", "--device", "cpu", "--out", str(tmp_path / "out.png")]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _TELLS, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
    told = (tmp_path / "errors").read_text()
    assert "Traceback" not in told and told.rpartition("\r")[2].strip() == "dalle edit: stopped; nothing was finished"
    assert not (tmp_path / "out.png").exists()
