"""Loading and converting take at most 1.2 times the memory of the weights, as a child process tells."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle.checkpoints.lazy_tensor import LazyTensor
from dalle.checkpoints.load import load_model
from dalle.checkpoints.model_folder import export, save
from dalle.checkpoints.tensors import write_tensors
from dalle.config import to_dict
from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer_config import TransformerConfig
from support.published.transformers import reference

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

WIDTH = 1024
CONFIG = DALLEConfig(
    transformer=TransformerConfig(width=WIDTH, depth=5, heads=8, biases="none"),
    text_vocab=8,
    text_length=4,
    image_vocab=1024,
    grid=(2, 2),
)
PEAK = """
import sys, re
import torch
import dalle
from pathlib import Path
from dalle.checkpoints.load import load_model
from dalle.checkpoints.published.convert import convert
torch.set_num_threads(1)
import dalle.training.recipe  # whatever is imported late counts before
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def now():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
source, out, given = sys.argv[1], sys.argv[2], dict(heads=8, convention="v3") if sys.argv[3] == "given" else {}
if sys.argv[3] == "int8":
    given = dict(dtype=torch.int8)
torch.zeros(64, 64) @ torch.zeros(64, 64)
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = now()
if out:
    convert(source, Path(out), "float32", given=given)
else:
    model = load_model(source, **given)
    sum(float(p.flatten()[0]) for p in model.parameters())
print(peak() - before)
"""


def peak(source: Path, out: Path | None = None, given: bool = False, int8: bool = False) -> int:
    """Bytes by which the memory of a process grows at most."""
    arguments = [str(source), str(out or ""), "given" if given else "int8" if int8 else ""]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def parameters(config: DALLEConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in DALLE(config).parameters())


def malevich(file: Path) -> int:
    """A checkpoint of ruDALL-E in half precision, of WIDTH; returns the number of its parameters."""
    state, _ = reference("rudalle-v3")
    wide = {}
    for name, value in state.items():
        if value.is_floating_point():
            size = [side * (WIDTH // 32) if side % 32 == 0 else side for side in value.shape]
            wide[name] = torch.zeros(size, dtype=torch.float16)
        else:
            wide[name] = value
    torch.save(wide, file)
    return sum(value.numel() for value in wide.values() if value.is_floating_point())


def test_loading_peaks_at_1_2_times_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(tmp_path / "model", {"stage": "dalle", "model": to_dict(CONFIG)}, DALLE(CONFIG).state_dict())
    weights = 4 * parameters(CONFIG)
    assert weights > 250e6
    assert peak(tmp_path / "model") < 1.2 * weights
    export(tmp_path / "model", tmp_path / "small", "int8")
    assert peak(tmp_path / "small") < 1.3 * weights  # pages of the file, a quarter of it, may still be mapped


def test_loading_to_8_bits_peaks_at_1_2_times_what_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = TransformerConfig(width=768, depth=16, heads=6, biases="none")
    config = replace(CONFIG, transformer=shape)
    save(
        tmp_path / "model", {"stage": "dalle", "model": to_dict(config)}, DALLE(config).state_dict(), storage="bfloat16"
    )
    model = load_model(tmp_path / "model", dtype=torch.int8)
    kept = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    assert kept > 100e6
    assert peak(tmp_path / "model", int8=True) < 1.2 * kept


def test_loading_published_half_precision_peaks_at_1_2_times_the_weights(tmp_path: Path) -> None:
    weights = 4 * malevich(tmp_path / "pytorch_model_v3.bin")
    assert weights > 250e6
    assert peak(tmp_path / "pytorch_model_v3.bin", given=True) < 1.2 * weights
    # one tensor at a time goes from file to file
    assert peak(tmp_path / "pytorch_model_v3.bin", tmp_path / "ours", given=True) < 0.4 * weights


def test_lazy_tensors_are_written_one_at_a_time(tmp_path: Path) -> None:
    made = [0]

    def make() -> torch.Tensor:
        made[0] += 1
        return torch.full((3, 2), float(made[0]))

    write_tensors(
        {name: LazyTensor(torch.Size((3, 2)), torch.float32, make) for name in "abc"}, tmp_path / "a.safetensors"
    )
    assert made == [3]
