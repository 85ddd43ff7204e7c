"""Runs a training step of a prior or a diffusion without numbers, and counts the memory and operations that it takes.

Fake tensors have shapes and dtypes, but no memory: a step of any size takes seconds on any machine. They live on a fake
CPU, as PyTorch cannot differentiate on a fake GPU. There autocast runs norms in float32, so activations take more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dalle.checkpoints.build import build_diffusion, build_prior
from dalle.data.token_shards.dataset import ShardsConfig
from dalle.kernels import switches
from dalle.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle.models.clip import CLIP, CLIPConfig, TextStates
from dalle.models.diffusion_decoder import DiffusionDecoder
from dalle.models.diffusion_prior import DiffusionPrior
from dalle.models.upsampler import Upsampler
from dalle.training.muon import sections_of_matrices
from dalle.training.planning.setup import Precision
from dalle.training.recipe import DiffusionRecipe, PriorRecipe

_FLOAT = 4  # bytes
UnCLIPRecipe = PriorRecipe | DiffusionRecipe


@dataclass(frozen=True)
class StepCost:
    """What a training step of one micro-batch takes.

    Attributes:
        parameters: of the trained network.
        frozen: bytes of the CLIP that embeds images and captions.
        state: bytes of weights, moments (AdamW's two; of matrices that Muon trains one) and the EMA.
        peak: bytes held at most beyond those, by activations and gradients.
        operations: floating-point operations per image, of the network forward and backward, with what checkpointing
            recomputes, and of the CLIP forward.
    """

    parameters: int
    frozen: int
    state: int
    peak: int
    operations: float


class _Live(TorchDispatchMode):
    """Sums the sizes of all tensors made while it is active and still referenced, and keeps the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._track(leaf.untyped_storage(), inputs)
        return made

    def _track(self, storage: torch.UntypedStorage, inputs: set[int]) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in inputs:  # a view, or changed in place
            return
        self._known.add(key)
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


def step_cost(
    recipe: UnCLIPRecipe, clip: CLIPConfig | None, images: int, accumulation: int, checkpointing: bool
) -> StepCost:
    """Count what a training step takes on one device.

    Args:
        recipe: of stage prior or diffusion.
        clip: the frozen CLIP; None: none is counted.
        images: of one micro-batch.
        accumulation: micro-batches per step; only whether there are several matters.
        checkpointing: whether blocks are recomputed in the backward pass.
    """
    precision: Precision = "bf16" if recipe.run.precision == "auto" else recipe.run.precision
    with FakeTensorMode(), switches.force_backend(native="off"):
        model = _network(recipe, checkpointing).train()
        tower = None if clip is None else CLIP(clip).requires_grad_(False)

        def step() -> None:
            for _ in range(min(accumulation, 2)):
                if tower is not None:
                    _embed(recipe, tower, images)
                with torch.autocast("cpu", _dtype(precision), enabled=precision != "fp32"):
                    loss = _loss(recipe, model, images)
                loss.backward()
                del loss

        with _Live() as live:
            step()
        model.zero_grad()
        with FlopCounterMode(display=False) as counter, ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # of which every product is counted
            step()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        frozen = 0 if tower is None else sum(parameter.numel() * _FLOAT for parameter in tower.parameters())
        sections = sections_of_matrices(model) if recipe.optim.kind == "muon" else {}
        matrices = sum(parameter.numel() for parameter in model.parameters() if id(parameter) in sections)
    state = _FLOAT * (parameters * (3 + (recipe.optim.ema is not None)) - matrices)
    return StepCost(parameters, frozen, state, live.most, counter.get_total_flops() / images / min(accumulation, 2))


def _dtype(precision: Precision) -> torch.dtype:
    return torch.float16 if precision == "fp16" else torch.bfloat16


def _network(recipe: UnCLIPRecipe, checkpointing: bool) -> nn.Module:
    """The network that is trained, with or without activation checkpointing."""
    model = recipe.model
    if isinstance(recipe, PriorRecipe):
        shape = replace(recipe.model.transformer, checkpoint_activations=checkpointing)
        own: Any = replace(recipe.model, transformer=shape)
        if isinstance(own, AutoregressivePriorConfig) and own.components is None:
            own = replace(own, components=own.embed_dim)  # known only from the data: this is the most
        return build_prior(own)
    unet = replace(recipe.model.unet, checkpoint_activations=checkpointing)
    return build_diffusion(replace(model, unet=unet))  # type: ignore[arg-type]


@torch.no_grad()
def _embed(recipe: UnCLIPRecipe, clip: CLIP, images: int) -> None:
    """What the frozen CLIP computes for a micro-batch, unless it is read from shards."""
    if not isinstance(recipe.data, ShardsConfig):
        side = clip.config.image_size
        clip.encode_image(torch.empty(images, 3, side, side), normalize=False)
    clip.text_states(torch.zeros(images, recipe.model.text_length, dtype=torch.int64))  # type: ignore[union-attr]


def _loss(recipe: UnCLIPRecipe, model: nn.Module, images: int) -> Tensor:
    """A loss of the kind of the stage, of inputs of its shapes."""
    steps = torch.zeros(images, dtype=torch.int64)
    if isinstance(model, Upsampler):
        assert isinstance(recipe, DiffusionRecipe)
        side = round(model.config.image_size * recipe.crop)
        noised = torch.empty(images, 3, side, side)
        return F.mse_loss(model(noised, steps, torch.empty_like(noised))[:, :3], torch.empty_like(noised))
    assert isinstance(model, (DiffusionPrior, AutoregressivePrior, DiffusionDecoder))
    shape = model.config
    text = TextStates(
        torch.empty(images, shape.text_length, shape.text_width),
        torch.ones(images, shape.text_length, dtype=torch.bool),
        torch.empty(images, shape.embed_dim),
    )
    dropped, embeds = torch.zeros(images, dtype=torch.bool), torch.empty(images, shape.embed_dim)
    if isinstance(model, DiffusionDecoder):
        side = model.config.image_size
        noised = torch.empty(images, 3, side, side)
        predicted = model(noised, steps, embeds, text, dropped)
        return F.mse_loss(predicted[:, :3], torch.empty_like(noised))
    if isinstance(model, DiffusionPrior):
        return F.mse_loss(model(embeds, steps, text, dropped), embeds)
    ids = torch.zeros(images, model.components, dtype=torch.int64)
    return F.cross_entropy(model(ids, steps, text, dropped).flatten(0, 1), ids.flatten())
