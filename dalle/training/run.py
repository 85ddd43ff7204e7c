"""The folder of a run, its log, and the signals that end it early. Knows nothing of losses."""

from __future__ import annotations

import hashlib
import json
import platform
import signal
import time
from importlib import metadata
from types import FrameType
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from tqdm import tqdm

from dalle import artifact
from dalle.config import dump, to_dict
from dalle.data import EncodedConfig, location
from dalle.hub import resolve
from dalle.training import checkpoint
from dalle.training.recipe import LoopRecipe, RunConfig
from dalle.training.report import write_report
from dalle.training.tasks import Samples, Task

_PACKAGES = ("dalle", "torch", "accelerate", "datasets", "sentencepiece", "safetensors", "numpy", "pillow")


def start_accelerator(run: RunConfig) -> Accelerator:
    """Accelerate for precision, devices, processes and trackers.

    Raises:
        ValueError: the precision or the tracker cannot be had here.
    """
    precision = {"fp32": "no"}.get(run.precision, run.precision)
    if run.precision == "fp16" and (run.device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("run.precision is fp16, which needs a GPU; use bf16 or fp32 on this machine")
    if run.tracker != "none" and not _installed(run.tracker):
        raise ValueError(
            f"run.tracker is {run.tracker}, which is not installed: "
            f"pip install {run.tracker}, or set run.tracker=none (metrics.jsonl is always written)"
        )
    trackers = None if run.tracker == "none" else [run.tracker]
    accelerator = Accelerator(
        mixed_precision=precision, cpu=run.device == "cpu", log_with=trackers, project_dir=str(run.dir)
    )
    share = accelerator.num_processes * run.accumulation
    if run.batch_size % share:
        raise ValueError(
            f"run.batch_size is {run.batch_size}, which {accelerator.num_processes} processes x {run.accumulation} "
            f"micro-batches cannot share evenly: take a multiple of {share}"
        )
    return accelerator


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def prepare_folder(recipe: LoopRecipe) -> None:
    """Make the run's folder, and write in it what is needed to make the run again.

    Raises:
        ValueError: the folder holds a run already, and `resume` was not asked for.
    """
    run = recipe.run
    if not recipe.resume and checkpoint.folders(run.dir):
        raise ValueError(f"{run.dir} holds a run already: go on with resume=true, or choose another run.dir=FOLDER")
    run.dir.mkdir(parents=True, exist_ok=True)
    (run.dir / "config.yaml").write_text(dump(recipe), encoding="utf-8")
    (run.dir / "origin.yaml").write_text(yaml.safe_dump(_origin(recipe), sort_keys=False), encoding="utf-8")


def _origin(recipe: LoopRecipe) -> dict[str, Any]:
    """Versions, and hashes of data and tokenizers."""
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    sources = {key: value for key, value in to_dict(recipe).items() if key.endswith("tokenizer") or key == "clip"}
    return {
        "seed": recipe.run.seed,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions,
        "data_sha256": _data_hash(recipe.data),
        "parts_sha256": {k: artifact.folder_hash(resolve(v)) for k, v in sources.items() if v},
    }


def _data_hash(data: EncodedConfig) -> str:
    """Hash of the data's options, and of names and sizes of its files where they are on this machine."""
    digest = hashlib.sha256(json.dumps(to_dict(data), sort_keys=True, ensure_ascii=False).encode())
    root = location(data)
    if root is not None:
        for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\n".encode())
    return digest.hexdigest()


class RunLog:
    """metrics.jsonl, the tracker, the report, and the progress bar of a run."""

    def __init__(self, recipe: LoopRecipe, accelerator: Accelerator, start: int, task: Task):
        self.run, self.accelerator, self.tokens_per_image = recipe.run, accelerator, task.tokens_per_image
        self.share: float | None = None  # of all devices' peak, that an image a second takes
        if self.run.peak_tflops is not None and task.operations_per_image is not None:
            self.share = task.operations_per_image / (self.run.peak_tflops * 1e12 * accelerator.num_processes)
        self.file = recipe.run.dir / "metrics.jsonl"
        self.main = accelerator.is_main_process
        self.clock, self.since = time.perf_counter(), start
        self.next_report = 0.0  # on that clock
        if self.main:
            self._forget_from(start)
        if self.run.tracker != "none":
            accelerator.init_trackers(self.run.dir.name, config=_flat(to_dict(recipe)))
        self.bar = tqdm(
            total=self.run.updates,
            initial=start,
            disable=not self.main,
            unit="update",
            dynamic_ncols=True,
            mininterval=1,
        )

    def _forget_from(self, start: int) -> None:
        """Drop lines of updates that a run which goes on from an earlier checkpoint will make again.

        So is a last line without its end: the run was killed, or the disk was full, while it was written.
        """
        if self.file.exists():
            lines = [x for x in self.file.read_text(encoding="utf-8").splitlines(keepends=True) if x.endswith("\n")]
            self.file.write_text("".join(x for x in lines if json.loads(x)["update"] <= start), encoding="utf-8")

    def train(self, update: int, figures: dict[str, float]) -> None:
        """Figures of training after `update` updates, with the rate since the last call."""
        now = time.perf_counter()
        images = (update - self.since) * self.run.batch_size / max(now - self.clock, 1e-9)
        self.clock, self.since = now, update
        rates = {"images_per_s": images, "tokens_per_s": images * self.tokens_per_image}
        shown = {key: f"{value:.4g}" for key, value in list(figures.items())[:4]}
        self.bar.set_postfix(shown | {"img/s": f"{images:.0f}", "tok/s": f"{rates['tokens_per_s']:.0f}"}, refresh=False)
        figures = figures | rates
        if self.share is not None:
            figures["flops_utilisation"] = images * self.share
        if self.accelerator.device.type == "cuda":
            figures["peak_memory_gb"] = torch.cuda.max_memory_allocated(self.accelerator.device) / 1e9
        self._write(update, {f"train/{key}": value for key, value in figures.items()})

    def validation(self, update: int, figures: dict[str, float]) -> None:
        self.say(f"update {update}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
        self._write(update, {f"validation/{key}": value for key, value in figures.items()})

    def samples(self, update: int, samples: Samples) -> None:
        """Sample pictures after `update` updates."""
        folder = self.run.dir / "samples"
        folder.mkdir(exist_ok=True)
        samples.picture.save(folder / f"{update:08d}.png")
        if samples.figures:
            self._write(update, {f"samples/{key}": value for key, value in samples.figures.items()})

    def step(self) -> None:
        self.bar.update()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.main:
            self.bar.write(line)

    def _write(self, update: int, figures: dict[str, float]) -> None:
        if self.main:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"update": update} | figures) + "\n")
        if self.run.tracker != "none":
            self.accelerator.log(figures, step=update)

    def report(self, final: bool = False) -> None:
        """Write report.html, if it is time to; where that fails the run goes on without.

        The longer the log the longer it takes: it may have a fiftieth of the run's time.
        """
        begun = time.perf_counter()
        if not (self.main and self.run.report) or (begun < self.next_report and not final):
            return
        try:
            write_report(self.run.dir)
        except (ValueError, OSError) as error:
            self.say(f"no report.html: {error}")
        now = time.perf_counter()
        self.next_report = now + 50 * (now - begun)

    def close(self) -> None:
        self.report(final=True)
        self.bar.close()
        if self.run.tracker != "none":
            self.accelerator.end_training()


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one level of dotted keys: trackers take no more."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


class Interrupt:
    """Turns the first SIGINT or SIGTERM into a flag, read by the loop between updates; a second one ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Interrupt:
        self.before = {int(s): signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self.before[number])
