"""Painting, step by step: the image is cut, looked at, and changed. Knows nothing of files.

Algorithm 1 of Crowson et al. 2022 (arXiv 2204.08583), with accumulation, a moving average, masks and motion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dalle.apps.vqgan_clip.camera import moved
from dalle.apps.vqgan_clip.canvas import Canvas
from dalle.apps.vqgan_clip.losses import colourfulness, pull, total_variation
from dalle.apps.vqgan_clip.objective import Critic
from dalle.apps.vqgan_clip.options import PaintOptions
from dalle.apps.vqgan_clip.prompts import phase_of

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
}


class Painter:
    """A painting in the making.

    All that is random in a step comes from the seed and the number of the step, so a painting that goes on from its
    state is the same as one that was never stopped.

    Attributes:
        step: how many steps are done.
        drawer: what is optimised.
        critics: the CLIPs that look at it.
        kept: the image [1, 3, H, W] that shows where `mask` is black; None: all is painted.
        mask: [1, 1, H, W], 1 where it is painted.
        models: hashes of the weights by what they are.
    """

    def __init__(
        self,
        drawer: Canvas,
        critics: Sequence[Critic],
        options: PaintOptions,
        kept: Tensor | None = None,
        mask: Tensor | None = None,
        models: dict[str, str] | None = None,
    ) -> None:
        self.drawer, self.critics, self.options = drawer, list(critics), options
        self.kept, self.mask, self.models = kept, mask, models or {}
        self.step = 0
        self.since_moved = 0  # steps since the values were last set by an image
        self.optimizer = self._optimizer()

    @torch.no_grad()
    def image(self) -> Tensor:
        """What has been painted so far, [1, 3, H, W] in [0, 1]."""
        return self._shown(self.drawer.draw(self.drawer.average))

    def run(self) -> Iterator[dict[str, float]]:
        """Paint until all steps are done; after each of them what `update` gives."""
        while self.step < self.options.num_steps:
            yield self.update()

    def update(self) -> dict[str, float]:
        """One step.

        Returns:
            The losses before it by name, "clip" the mean distance to the prompts over CLIPs, "loss" their sum.
        """
        options = self.options
        if options.moves and self.step and self.step % options.frame_every == 0:
            self._move()
        self.optimizer.zero_grad(set_to_none=True)
        image = self._shown(self.drawer.draw(self.drawer.values))
        devices = [image.device] if image.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed((options.seed * 1_000_003 + self.step) % 2**63)
            cuts = [critic.cutouts(image.to(critic.device)) for critic in self.critics]
        losses = self._own_losses(image)
        phases = len(self.critics[0].targets)
        phase = phase_of(self.step, options.num_steps, phases, options.change_every)
        seen = [self._look(critic, cut, phase) for critic, cut in zip(self.critics, cuts, strict=True)]
        own = list(losses.values())
        torch.autograd.backward([*cuts, *own], [*(grad for _, grad in seen), *(None for _ in own)])
        self.optimizer.step()
        self.step, self.since_moved = self.step + 1, self.since_moved + 1
        self.drawer.on_step_end(options.average, self.since_moved)
        figures = {"clip": sum(value for value, _ in seen) / len(seen)}
        figures |= {name: float(value.detach()) for name, value in losses.items()}
        return {"loss": sum(figures.values()), **figures}

    def _look(self, critic: Critic, cut: Tensor, phase: int) -> tuple[float, Tensor]:
        """The distance of all cutouts, and its gradient to them; CLIP sees so many at a time as `cutout_batch` says.

        Each CLIP counts as much as another.
        """
        leaf = cut.detach().requires_grad_()
        total = 0.0
        for part in leaf.split(self.options.cutout_batch or len(leaf)):
            distance = critic.distance(part, phase) * (len(part) / len(leaf))
            (distance / len(self.critics)).backward()
            total += float(distance.detach())
        assert leaf.grad is not None
        return total, leaf.grad

    def _own_losses(self, image: Tensor) -> dict[str, Tensor]:
        """What pulls at the image beside CLIP, as far as it is asked for; scalars."""
        options, losses = self.options, {}
        if options.tv:
            losses["tv"] = options.tv * total_variation(image)
        if options.saturation:
            losses["saturation"] = -options.saturation * colourfulness(image)
        if options.init_weight:
            away = pull(self.drawer.values, self.drawer.start, self.step, options.init_decay)
            losses["init"] = options.init_weight * away
        return losses

    def _shown(self, drawn: Tensor) -> Tensor:
        """The image with what stays of another."""
        if self.kept is None or self.mask is None:
            return drawn
        return self.mask * drawn + (1 - self.mask) * self.kept

    def _move(self) -> None:
        """The next frame begins from this one, enlarged, turned and shifted; the optimiser forgets."""
        options = self.options
        self.drawer.restart(moved(self.image(), options.zoom, options.rotate, options.shift_x, options.shift_y))
        self.since_moved = 0
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        made: Any = OPTIMIZERS[self.options.optimizer]
        return made([self.drawer.values], lr=self.drawer.rate if self.options.lr is None else self.options.lr)
