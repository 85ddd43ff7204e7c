"""Shares of a model on two processes: a step is that of the whole, and files of shares are the whole tensors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dalle.kernels import switches
from dalle.models.clip import CLIP
from dalle.models.dalle import DALLE
from dalle.training.distributed import sharded_checkpoint
from dalle.training.distributed.fsdp import (
    Sharding,
    fsdp_requested,
    fsdp_units,
    is_sharded,
    keep_unsharded,
    local,
    reshard,
)
from dalle.training.optim import EMA, OptimConfig, build_optimizer, clipped_step, gradient_norm, update_ratio
from dalle.training.recipe import RunConfig
from dalle.training.run.log import start_accelerator, start_sharding
from dalle.training.tasks import Phase
from dalle.training.train_step import optimizer_step
from support.generation import generate
from support.tiny_configs import clip_config, dalle_config, transformer_config

ROOT = Path(__file__).parents[3]
METHODS = {"dalle": ("losses", "prefill", "extend", "new_cache"), "clip": ("encode_image", "encode_text")}


def _model(kind: str, checkpointing: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if kind == "clip":
        return CLIP(clip_config(width=32, image_size=32, text_vocab=51, text_length=8, embed_dim=256))
    shape = transformer_config(width=32, checkpoint_activations=checkpointing)
    return DALLE(dalle_config(transformer=shape, text_vocab=51, text_length=8, image_vocab=32, grid=(4, 4)))


def _loss(model: nn.Module) -> Tensor:
    random = torch.Generator().manual_seed(1)
    text = torch.randint(0, 51, (4, 8), generator=random)
    if isinstance(model, CLIP):
        images = torch.rand(4, 3, 32, 32, generator=random)
        return (model.encode_image(images) * model.encode_text(text)).sum() * model.scale
    losses = model.losses(text, torch.randint(0, 32, (4, 16), generator=random))
    return losses["text"] / 8 + losses["image"] * 7 / 8


def _stepped(model: nn.Module) -> dict[str, Tensor]:
    """Loss, norm and ratio of two steps of two micro-batches each, and the averaged weights that come out."""
    options = OptimConfig(lr=1e-2, clip_norm=0.1)
    optimizer, average = build_optimizer(model, options), EMA(model, 0.9)
    metrics: dict[str, Tensor] = {}
    for step in range(2):
        for _ in range(2):
            loss = _loss(model)
            loss.backward()
        norm = gradient_norm(model.parameters())
        clipped_step(optimizer, norm, options.clip_norm)
        optimizer.zero_grad()
        average.update(step + 1)
        metrics |= {f"loss {step}": loss.detach(), f"norm {step}": norm.detach()}
        metrics[f"ratio {step}"] = torch.tensor(update_ratio(optimizer))
    return metrics | average.state


def _worker(rank: int, world: int, kind: str, folder: Path) -> None:
    """What each of two processes does; both have the same batch, so means of gradients are those of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    whole = _model(kind).state_dict()
    numbers = sum(value.numel() for value in whole.values())
    sharding = Sharding(torch.device("cpu"), torch.float32)
    model = sharding.build(lambda: _model(kind, checkpointing=kind == "dalle"), METHODS[kind])
    assert sum(local(p).numel() for p in model.parameters()) < 0.51 * numbers
    begun = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in model.state_dict().items()}
    assert begun.keys() == whole.keys() and all(torch.equal(begun[name], value) for name, value in whole.items())
    found = _stepped(model)
    sharded_checkpoint.write(folder / "shards", found)
    dist.barrier()
    gathered = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in found.items()}
    there = sharded_checkpoint.open_shards(folder / "shards")
    assert there.keys() == gathered.keys()
    assert all(torch.equal(there[name](), value) for name, value in gathered.items())
    again = {name: torch.zeros_like(value) for name, value in found.items()}
    sharded_checkpoint.read_into(folder / "shards", again)
    assert all(torch.equal(local(again[name]), local(value)) for name, value in found.items())
    if rank == 0:
        (folder / "taken" / "shard-00002-of-00002.safetensors").mkdir(parents=True)
    dist.barrier()
    with pytest.raises(OSError, match="process 1: Is a directory"):  # where one cannot write all hear it
        sharded_checkpoint.write(folder / "taken", found)
    if isinstance(model, DALLE):
        _draws(model, sharding)
    dist.destroy_process_group()


def _draws(model: DALLE, sharding: Sharding) -> None:
    """The same images, whatever part of the model stays gathered; afterward all of it is in shares."""
    sizes, drawn = [sum(p.numel() for p in unit.parameters()) for unit in fsdp_units(model)], []
    for room, count in ((-1, 0), (4 * (sizes[0] + sizes[1]), 2), (4 * sum(sizes), len(sizes))):
        with torch.no_grad(), switches.force_backend(native="off"), keep_unsharded(model, sharding, room) as kept:
            assert kept == count
            drawn.append(generate(model, torch.arange(1, 9)[None], [[0, 1, 2]], guidance=2.0, batch_size=8))
            gathered = [not is_sharded(unit.parameters()) for unit in fsdp_units(model)]
            assert gathered == [True] * kept + [False] * (len(sizes) - kept)
        reshard(model)
        assert all(isinstance(p, DTensor) for p in model.parameters())
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2]) and drawn[0].unique().numel() > 4


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # as it is in this process
@pytest.mark.parametrize("kind", ["dalle", pytest.param("clip", marks=pytest.mark.slow)])
def test_a_sharded_step_equals_the_unsharded_step(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_worker, args=(2, kind, tmp_path), nprocs=2, start_method="fork")
    whole = _stepped(_model(kind))
    there = sharded_checkpoint.open_shards(tmp_path / "shards")
    read = {name: torch.zeros_like(value) for name, value in whole.items()}
    sharded_checkpoint.read_into(tmp_path / "shards", read)  # by another number of processes: one
    for name, value in whole.items():
        torch.testing.assert_close(there[name](), value, rtol=1e-4, atol=2e-6, msg=name)
        assert torch.equal(read[name], there[name]())


def _in_half(model: nn.Module, world: int, poisoned: bool) -> dict[str, Tensor]:
    """Losses, norms and loss scales of four steps in fp16; the third meets an infinite gradient."""
    scaler, adam = torch.amp.GradScaler("cpu", init_scale=2.0**6), build_optimizer(model, OptimConfig(lr=1e-2))
    accelerator = SimpleNamespace(scaler=scaler, num_processes=world, reduce=_mean)
    optimizer = SimpleNamespace(optimizer=adam, param_groups=adam.param_groups, zero_grad=adam.zero_grad)
    phase, found = Phase("clip", model, OptimConfig(lr=1e-2, warmup=0)), {}
    for step in range(4):
        with torch.autocast("cpu", torch.float16):
            loss = _loss(model)
        scaler.scale(loss).backward()
        if step == 2 and poisoned:  # the very last number, which is of the last process's share
            shares = [local(p.grad) for p in model.parameters() if p.grad is not None and p.ndim]
            shares[-1].view(-1)[-1:].fill_(torch.inf)
        norm = optimizer_step(phase, loss.detach(), optimizer, accelerator, step, 10)  # type: ignore[arg-type]
        found |= {f"loss {step}": loss.detach(), f"norm {step}": norm.nan_to_num(posinf=-1.0, nan=-1.0)}
        found[f"scale {step}"] = torch.tensor(scaler.get_scale())
    return found


def _mean(tensor: Tensor, reduction: str) -> Tensor:
    assert reduction == "mean"
    dist.all_reduce(tensor)
    return tensor / dist.get_world_size()


def _half_worker(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    model = Sharding(torch.device("cpu"), torch.float16).build(lambda: _model("clip"), METHODS["clip"])
    found = _in_half(model, world, poisoned=rank == world - 1)
    sharded_checkpoint.write(folder / "shards", found)
    scales = torch.stack([found[f"scale {step}"] for step in range(4)])
    lowest = scales.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    assert torch.equal(lowest, scales)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_all_ranks_share_one_loss_scale(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_half_worker, args=(2, tmp_path), nprocs=2, start_method="fork")
    whole = _in_half(_model("clip"), 1, poisoned=True)
    assert [whole[f"scale {step}"].item() for step in range(4)] == [64, 64, 32, 32]
    there = sharded_checkpoint.open_shards(tmp_path / "shards")
    for name, value in whole.items():
        torch.testing.assert_close(there[name](), value, rtol=1e-3, atol=1e-4, msg=name)


def test_missing_or_damaged_shards_are_named(tmp_path: Path) -> None:
    def shard(number: int, begin: int, rows: int) -> None:
        header = {"DCP_SHARDING_INFO": json.dumps({"x": {"saved_offsets": [begin, 0]}})}
        save_file({"x": torch.full((rows, 2), float(number))}, tmp_path / f"{number}.safetensors", header)

    with pytest.raises(ValueError, match="has no shards"):
        sharded_checkpoint.open_shards(tmp_path)
    shard(1, 3, 2)
    with pytest.raises(ValueError, match="a shard of x is missing"):
        sharded_checkpoint.open_shards(tmp_path)
    shard(0, 0, 3)
    assert sharded_checkpoint.open_shards(tmp_path)["x"]().tolist() == [[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 2
    with pytest.raises(ValueError, match="y is missing, expected"):
        sharded_checkpoint.read_into(tmp_path, {"y": torch.zeros(5, 2)})
    with pytest.raises(ValueError, match=r"x is \[5, 2\], expected \[4, 2\]"):
        sharded_checkpoint.read_into(tmp_path, {"x": torch.zeros(4, 2)})
    save_file({"x": torch.ones(1)}, tmp_path / "2.safetensors")  # whose header says nothing of shares
    with pytest.raises(ValueError, match=r"2\.safetensors is damaged, or not a shard"):
        sharded_checkpoint.open_shards(tmp_path)


def test_accelerate_options_that_are_not_supported_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fsdp_requested()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        fsdp_requested()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert fsdp_requested()
    for variable, told in (
        ("FSDP_OFFLOAD_PARAMS", "fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "checkpoint_activations=true"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
    ):
        monkeypatch.setenv(variable, "true")
        with pytest.raises(ValueError, match=told):
            fsdp_requested()
        monkeypatch.delenv(variable)


def test_single_process_is_not_sharded() -> None:
    run = RunConfig(
        dir=Path("x"), steps=1, batch_size=2, device="cpu", precision="fp32", tracker="none", sharding="fsdp"
    )
    assert start_sharding(run, start_accelerator(run)) is None


@pytest.mark.parametrize("name", ["cpu2", "ddp", "fsdp2", "multi_node"])
def test_accelerate_configs_load_and_begin_with_their_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / f"configs/accelerate/{name}.yaml"
    found = load_config_from_file(str(file))  # refuses keys that it does not know
    command = file.read_text(encoding="utf-8").splitlines()[0]
    assert command.startswith(f"# accelerate launch --config_file configs/accelerate/{name}.yaml")
    recipe = next(word for word in command.split() if word.startswith("configs/") and "accelerate" not in word)
    assert (ROOT / recipe).is_file()
    assert not found.use_cpu and found.num_processes % found.num_machines == 0
    if name in ("cpu2", "ddp"):
        assert found.distributed_type == DistributedType.MULTI_GPU
    else:
        assert found.distributed_type == DistributedType.FSDP
        for key, value in found.fsdp_config.items():  # as `accelerate launch` tells its processes
            monkeypatch.setenv(key.upper(), str(value).lower())
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        assert fsdp_requested()


@pytest.mark.parametrize(
    "told, processes, gpus, expected",
    [("auto", 1, 0, False), ("auto", 2, 0, True), ("cpu", 1, 2, True), ("cpu", 2, 2, True), ("auto", 2, 2, False)],
)
def test_several_processes_without_gpus_use_cpus(
    told: Literal["auto", "cpu"], processes: int, gpus: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate would take them for strangers otherwise."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    asked: list[bool] = []

    class Asked(Exception):
        pass

    def accelerator(*, cpu: bool, **_: Any) -> None:
        asked.append(cpu)
        raise Asked

    monkeypatch.setattr("dalle.training.run.log.Accelerator", accelerator)
    with pytest.raises(Asked):
        start_accelerator(RunConfig(dir=Path("run"), steps=1, batch_size=2, device=told, precision="fp32"))
    assert asked == [expected]
    if gpus:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        if told == "auto":
            with pytest.raises(ValueError, match="3 processes on a machine with 2 GPUs: give --nproc_per_node 2"):
                start_accelerator(RunConfig(dir=Path("run"), steps=1, batch_size=2, device=told, precision="fp32"))
