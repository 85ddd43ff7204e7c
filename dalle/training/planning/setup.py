"""The inputs of planning: the size of a model, and the setup in which it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dalle.models.dalle import DALLE
from dalle.models.dalle_config import DALLEConfig
from dalle.models.transformer import Block
from dalle.training.lora import LoRAConfig
from dalle.training.muon import sections_of_matrices

Layout = Literal["ddp", "fsdp"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts and dimensions of a model."""

    config: DALLEConfig
    parameters: int
    """All parameters."""
    block: int
    """Parameters of one block."""
    units: tuple[int, int]
    """Parameters of a block's attention and of its feed-forward part, the two units that FSDP gathers in turn."""
    linear: int
    """Parameters of which autocast keeps a low-precision copy until the backward pass: linear layers but the heads."""
    embeddings: int
    """Parameters of embeddings and positions."""
    hidden: int
    """Hidden width of the feed-forward part, H."""
    matrices: int
    """Parameters that Muon trains: the matrices of the blocks."""
    matrix: int
    """Parameters of the largest of these."""

    @classmethod
    def of(cls, config: DALLEConfig) -> ModelSize:
        """Count the parameters of a model, built on the meta device."""
        with torch.device("meta"):
            model = DALLE(config)
        named = {name: p.numel() for name, p in model.named_parameters()}
        block, sections = model.transformer.blocks[0], sections_of_matrices(model)
        matrices = [p.numel() for p in model.parameters() if id(p) in sections]
        assert isinstance(block, Block)
        return cls(
            config,
            sum(named.values()),
            sum(p.numel() for p in block.parameters()),
            tuple(sum(p.numel() for p in unit.parameters()) for unit in (block.attention, block.feed_forward)),  # type: ignore[arg-type]
            sum(
                p.numel()
                for name, module in model.named_modules()
                # The loss casts the heads itself, and frees the copies at its end
                if isinstance(module, nn.Linear) and not name.endswith("_head")
                for p in module.parameters()
            ),
            sum(count for name, count in named.items() if "embedding" in name or name.endswith("position")),
            block.feed_forward.down.in_features,
            sum(matrices),
            max(matrices),
        )

    @property
    def tokens(self) -> int:
        """Sequence length of one image and its caption in the transformer (the last code is never an input)."""
        return self.config.input_length


@dataclass(frozen=True)
class Adapters:
    """What LoRA trains in place of the weights.

    Attributes:
        parameters: of all adapters.
        matrix: parameters of the largest matrix among them.
        rank: of each.
    """

    parameters: int
    matrix: int
    rank: int

    @classmethod
    def of(cls, config: DALLEConfig, lora: LoRAConfig) -> Adapters:
        """Count the parameters that `add_lora` adds to a model, built on the meta device.

        Raises:
            ValueError: no linear layer has one of the target names.
        """
        with torch.device("meta"):
            layers = {name: one for name, one in DALLE(config).named_modules() if isinstance(one, nn.Linear)}
        adapted = [one for name, one in layers.items() if name.rpartition(".")[2] in lora.targets]
        if not adapted:
            there = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(f"no layer has a name of lora.targets: this model's are {', '.join(there)}")
        sides = [side for one in adapted for side in (one.in_features, one.out_features)]
        return cls(lora.rank * sum(sides), lora.rank * max(sides), lora.rank)


@dataclass(frozen=True)
class TrainSetup:
    """How a training step is executed.

    Attributes:
        layout: "ddp" replicates the model on every device; "fsdp" shards it and gathers one unit after the other.
        devices: number of devices.
        images: images of one micro-batch on one device.
        accumulation: micro-batches per step.
        checkpointing: activation checkpointing, which recomputes each block in the backward pass.
        precision: precision of forward and backward passes; weights and optimizer are float32.
        average: whether there is an EMA of the weights.
        adapters: what is trained alone; None: all weights are.
        muon: whether Muon trains the matrices of the blocks, which keeps one moment of them in place of two.
        on_cpu: whether the device is a CPU, where the loss uses smaller chunks of logits.
    """

    layout: Layout
    devices: int
    images: int
    accumulation: int
    checkpointing: bool
    precision: Precision
    average: bool
    adapters: Adapters | None = None
    muon: bool = False
    on_cpu: bool = False

    @property
    def compute(self) -> int:
        """Bytes per number in matrix products."""
        return 4 if self.precision == "fp32" else 2
