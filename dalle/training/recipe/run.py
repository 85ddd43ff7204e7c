"""Options of a run that every stage has: length, batch, devices, logging, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from dalle.config import config
from dalle.config.ranges import NonNegativeInt, PositiveInt, Range, Seed
from dalle.training.distributed.powersgd import PowerSGDConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resume = bool | Literal["auto"]


@config
class RunConfig:
    """Options of a run that all stages share: length, batch, devices, logging, checkpoints."""

    dir: Path
    """Run folder: config, log, checkpoints, sample images, and the current weights in model/."""
    steps: NonNegativeInt
    """Total number of optimizer steps; 0 trains nothing."""
    tokens: Annotated[float, Range(0, above=True, ceiling=10**18, hint="null counts in steps")] | None = None
    """Total number of text and image tokens; if given, it determines `steps`."""
    batch_size: Annotated[int, Range(1, ceiling=2**20)]
    """Images per step, over all processes and micro-batches."""
    accumulation: Annotated[int, Range(1, ceiling=2**20)] = 1
    """Gradient accumulation: micro-batches per step, to save memory."""
    seed: Seed = 0
    """Seed of the initial weights, the data order and all noise."""
    precision: Precision = "auto"
    """Precision of forward and backward passes (autocast); weights and optimizer stay in fp32. auto takes bf16 where
    the device is fast at it, else fp32; a resumed run keeps its precision. fp16 needs a GPU."""
    compile: bool = False
    """Compile the blocks with torch.compile: takes minutes at the start, makes steps on GPUs faster."""
    sharding: Literal["auto", "none", "fsdp"] = "auto"
    """fsdp splits weights, gradients and optimizer over the processes (stages clip and dalle); auto does so if the
    config given to `accelerate launch` asks for FSDP."""
    powersgd: PowerSGDConfig | None = None
    """PowerSGD: all-reduce low-rank approximations of gradients (replicated training only); null sends them in full."""
    workers: Annotated[int, Range(0, ceiling=512)] = 0
    """Data-loading processes; 0 loads data in the training process."""
    log_every: PositiveInt = 20
    """Steps between log lines."""
    validate_every: PositiveInt = 500
    """Steps between validations."""
    validation_images: PositiveInt = 256
    """Maximum number of images per validation, spread evenly over the split."""
    sample_every: PositiveInt = 500
    """Steps between sample images."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Number of newest checkpoints that stay on disk."""
    keep_best: str | None = None
    """A validation metric, such as image_nats or psnr: the best checkpoint by it is kept as well, and model/ has its
    weights instead of the newest."""
    stop_after: Annotated[int, Range(1, ceiling=10**12, hint="null never stops early")] | None = None
    """Early stopping: number of validations in a row without a new best; null trains to the last step."""
    max_skipped: PositiveInt = 20
    """Number of steps in a row that may be skipped for a non-finite loss or gradient before training stops."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Experiment tracker, in addition to metrics.jsonl."""
    report: bool = True
    """Write report.html (curves and images in one file) after validations and at the end."""
    peak_tflops: Annotated[float, Range(0, above=True, ceiling=10**6, hint="null logs no utilization")] | None = None
    """Peak of one device in `precision`, in TFLOP/s; the log then has the model FLOPs utilization (stage dalle, when
    all weights are trained)."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes an accelerator if there is one."""

    def __post_init__(self) -> None:
        if self.powersgd is not None and self.sharding == "fsdp":
            raise ValueError("fsdp shards gradients, powersgd needs them whole; set one of them to null or none")
        if self.powersgd is not None and self.precision == "fp16":
            # The error feedback would mix gradients of different loss scales
            raise ValueError("powersgd does not work with fp16, whose loss scale changes: set precision=bf16 or fp32")

    def logs(self, step: int) -> bool:
        """Return whether the next step, after `step` completed ones, is logged."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps
