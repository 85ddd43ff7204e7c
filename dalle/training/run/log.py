"""Starting Accelerate, and the log of a run: metrics.jsonl, tracker, report, progress bar."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from tqdm import tqdm

from dalle.files import atomic_file, write_text
from dalle.training.checkpoint.checkpoint import as_value_error
from dalle.training.distributed.fsdp import Sharding, fsdp_requested
from dalle.training.metrics_log import logged
from dalle.training.recipe import LoopRecipe, RunConfig
from dalle.training.report.html import write_report
from dalle.training.run.trackers import check_tracker, start_trackers, track_image
from dalle.training.tasks import Samples, Task

# Around all that is printed: a `tee` ends by the same Ctrl-C as the run, which must still save its step
_READER_MAY_GO = suppress(BrokenPipeError)
_TIMED_STEPS = 10  # steps whose time gives the estimate, after the first
_LONG = 60.0  # seconds of a run from which the estimate is printed


def start_accelerator(run: RunConfig) -> Accelerator:
    """Create the Accelerator, which handles precision, devices, processes and trackers.

    Raises:
        ValueError: the precision or tracker is not available here, there are fewer GPUs than processes, or the batch
            cannot be divided.
    """
    assert run.precision != "auto", "call resolve_precision first"
    precision = {"fp32": "no"}.get(run.precision, run.precision)
    if run.precision == "fp16" and (run.device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("run.precision is fp16, which needs a GPU; set it to bf16 or fp32")
    check_tracker(run)
    trackers = None if run.tracker == "none" else [run.tracker]
    AcceleratorState._reset_state()  # a global: a second run in this process would inherit the precision
    with patch_environment(accelerate_use_fsdp="false"):  # FSDP is done by `start_sharding`
        accelerator = Accelerator(
            mixed_precision=precision, cpu=_on_cpus(run), log_with=trackers, project_dir=str(run.dir)
        )
    share = accelerator.num_processes * run.accumulation
    if run.batch_size % share:
        raise ValueError(
            f"run.batch_size is {run.batch_size}, which is not divisible by {accelerator.num_processes} processes x "
            f"{run.accumulation} micro-batches: set it to a multiple of {share}"
        )
    return accelerator


def _on_cpus(run: RunConfig) -> bool:
    """Whether to train on CPUs: because the recipe says so, or because several processes find no GPUs.

    Accelerate must be told explicitly: on a machine without GPUs it would treat the processes of torchrun as
    independent runs, each with all the data.

    Raises:
        ValueError: this machine has fewer GPUs than processes.
    """
    if run.device == "cpu" or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return run.device == "cpu"
    if not torch.accelerator.is_available() or torch.backends.mps.is_available():  # MPS has no process groups
        return True
    gpus, processes = torch.accelerator.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes > gpus:
        raise ValueError(f"{processes} processes on a machine with {gpus} GPUs: give --nproc_per_node {gpus} (or less)")
    return False


def start_sharding(run: RunConfig, accelerator: Accelerator) -> Sharding | None:
    """Return how the model is sharded over the processes; None for replicated training or a single process.

    Raises:
        ValueError: FSDP is combined with PowerSGD.
    """
    if not (run.sharding == "fsdp" or (run.sharding == "auto" and fsdp_requested())):
        return None
    if run.powersgd is not None:
        raise ValueError("run.powersgd does not work with fsdp, which shards gradients: set run.powersgd=null")
    compute = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[accelerator.mixed_precision]
    return Sharding(accelerator.device, compute) if accelerator.num_processes > 1 else None


class RunLog:
    """The log of a run: metrics.jsonl, tracker, report.html and progress bar.

    Every process may call its methods; the main process writes.
    """

    def __init__(self, recipe: LoopRecipe, accelerator: Accelerator, start: int, task: Task):
        self.run, self.accelerator, self.tokens_per_image = recipe.run, accelerator, task.tokens_per_image
        self.share: float | None = None  # fraction of all devices' peak FLOP/s that one image per second takes
        if self.run.peak_tflops is not None and task.operations_per_image is not None:
            self.share = task.operations_per_image / (self.run.peak_tflops * 1e12 * accelerator.num_processes)
        self.file = recipe.run.dir / "metrics.jsonl"
        self.main = accelerator.is_main_process
        self.clock, self.since = time.perf_counter(), start
        self.waited = 0.0  # seconds spent waiting for data since `self.clock`
        self.next_report = 0.0  # earliest time of the next report, on the same clock
        self.estimated_from: float | None = None  # time of the first step's end, which is no longer warm-up
        self.taken = 0  # steps of this process
        start_trackers(recipe, accelerator, start)
        self.bar = tqdm(
            total=self.run.steps,
            initial=start,
            disable=not self.main,
            unit="step",
            dynamic_ncols=True,
            mininterval=1,
        )
        if self.main:
            self._truncate_after(start)

    def _truncate_after(self, start: int) -> None:
        """Drop lines of steps after `start`, which a resumed run will repeat, and broken lines.

        The last line may be incomplete if the run was killed or the disk was full.
        """
        if not self.file.exists():
            return
        # Not `splitlines`, which ends lines at characters that JSON strings may hold
        lines = self.file.read_text(encoding="utf-8", errors="replace").split("\n")
        last_line, read = lines[-1], [(line, logged(line)) for line in lines[:-1] if line.strip()]
        complete = [line for line, metrics in read if metrics is not None and metrics["step"] <= start]
        broken = sum(metrics is None for _, metrics in read) + bool(last_line.strip())
        if broken:
            self.say(f"{self.file}: {broken} broken line{'s' * (broken > 1)} dropped")
        write_text(self.file, "".join(f"{line}\n" for line in complete))

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Log training metrics after `step` steps, with throughput since the last call."""
        now = time.perf_counter()
        spent = max(now - self.clock, 1e-9)  # a clock of low resolution may not have advanced
        images = (step - self.since) * self.run.batch_size / spent
        rates = {"images_per_s": images, "tokens_per_s": images * self.tokens_per_image}
        rates["data_wait"] = self.waited / spent
        self.clock, self.since, self.waited = now, step, 0.0
        shown = {key: f"{value:.4g}" for key, value in list(metrics.items())[:4]}  # what fits beside the bar
        self.bar.set_postfix(shown | {"img/s": f"{images:.0f}", "tok/s": f"{rates['tokens_per_s']:.0f}"}, refresh=False)
        metrics = metrics | rates
        if self.share is not None:
            metrics["flops_utilization"] = images * self.share
        metrics["peak_memory_gb"] = _peak_memory(self.accelerator.device) / 1e9
        if self.accelerator.scaler is not None:
            metrics["loss_scale"] = self.accelerator.scaler.get_scale()
        self._write(step, {f"train/{key}": value for key, value in metrics.items()})

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time spent in a block as waiting for data."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    @contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """Show in the progress bar what is done in a block, during which the bar stands still."""
        with _READER_MAY_GO:
            self.bar.set_description(name)
        try:
            yield
        finally:
            with _READER_MAY_GO:
                self.bar.set_description()

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Log and print validation metrics."""
        self.say(f"step {step}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
        self._write(step, {f"validation/{key}": value for key, value in metrics.items()})

    def samples(self, step: int, samples: Samples) -> None:
        """Write sample images to samples/ and the tracker, and log their metrics."""
        folder = self.run.dir / "samples"
        with as_value_error(self.run.dir, step):
            folder.mkdir(exist_ok=True)
            with atomic_file(folder / f"{step:08d}.png") as part:
                samples.image.save(part)
        track_image(self.accelerator, "samples", samples.image, step)
        if samples.metrics:
            self._write(step, {f"samples/{key}": value for key, value in samples.metrics.items()})

    def skipped(self, step: int, phase: str, in_a_row: int) -> None:
        """Log that a step was skipped, because the loss or gradient of a phase was not finite."""
        self.say(f"step {step}: skipped, non-finite loss or gradient in {phase} ({in_a_row} in a row)")
        self._write(step, {"train/skipped": in_a_row})

    def step(self) -> None:
        """Advance the progress bar; after a few steps, print once how long the run will take, if that is long."""
        with _READER_MAY_GO:
            self.bar.update()
        self.taken += 1
        if self.taken == 1:
            self.estimated_from = time.perf_counter()
        elif self.taken == _TIMED_STEPS + 1 and self.estimated_from is not None:
            pace = (time.perf_counter() - self.estimated_from) / _TIMED_STEPS
            left = pace * (self.run.steps - self.bar.n)
            if left > _LONG:
                self.say(
                    f"{self.run.steps - self.bar.n:,} steps are left, about {_duration(left)} at {pace:.2g} s a step "
                    "(without validation); Ctrl-C saves, and resume=true goes on"
                )

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self.main:
            with _READER_MAY_GO:
                self.bar.write(line)

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self.main:
            # Opened for each line: what is logged is on disk if the process is killed
            with as_value_error(self.run.dir, step), self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | metrics) + "\n")
        if self.run.tracker != "none":
            self.accelerator.log(metrics, step=step)

    def report(self, final: bool = False) -> None:
        """Write report.html if it is due; a failure is printed and does not end the run.

        Writing takes longer as the log grows, so reports are spaced to take at most 2 % of the time.
        """
        begun = time.perf_counter()
        if not (self.main and self.run.report) or (begun < self.next_report and not final):
            return
        try:
            write_report(self.run.dir)
        except (ValueError, OSError) as error:
            self.say(f"no report.html: {error}")
        now = time.perf_counter()
        self.next_report = now + 50 * (now - begun)  # 50 times what it took: 2 %

    def close(self) -> None:
        """Write the final report and end the progress bar and the tracker."""
        self.report(final=True)
        with _READER_MAY_GO:
            self.bar.close()
        if self.run.tracker != "none":
            self.accelerator.end_training()


def _duration(seconds: float) -> str:
    """A duration with one unit: "25 minutes", "3.5 hours", "12 days"."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on CUDA, elsewhere the peak resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
