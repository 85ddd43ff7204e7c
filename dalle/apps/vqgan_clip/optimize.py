"""The optimization of a painting, step by step. Knows nothing of files.

Algorithm 1 of Crowson et al. 2022 (arXiv 2204.08583), with gradient accumulation, an EMA, masks and camera motion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dalle.apps.vqgan_clip.camera import move_camera
from dalle.apps.vqgan_clip.canvas import Canvas
from dalle.apps.vqgan_clip.losses import colorfulness, l2_to_init, total_variation
from dalle.apps.vqgan_clip.objective import ClipObjective
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
    """A painting in progress.

    All randomness of a step comes from the seed and the number of the step, so a painting resumed from its state is
    the same as one that was never interrupted.

    Attributes:
        step: number of steps done.
        steps_since_reset: steps since the canvas was last set to an image, which camera motion does.
        canvas: the parametrized image that is optimized.
        objectives: one for each CLIP; their distances are averaged.
        known_image: the image [1, 3, H, W] that shows where `mask` is 0; None: all is painted.
        mask: [1, 1, H, W], 1 where it is painted.
        models: hashes of the weights, by what they are.
    """

    def __init__(
        self,
        canvas: Canvas,
        objectives: Sequence[ClipObjective],
        options: PaintOptions,
        known_image: Tensor | None = None,
        mask: Tensor | None = None,
        models: dict[str, str] | None = None,
    ) -> None:
        self.canvas, self.objectives, self.options = canvas, list(objectives), options
        self.known_image, self.mask, self.models = known_image, mask, models or {}
        self.step = 0
        self.steps_since_reset = 0
        self.optimizer = self._new_optimizer()

    @torch.no_grad()
    def image(self) -> Tensor:
        """The image so far, [1, 3, H, W] in [0, 1]."""
        return self._composite(self.canvas.render(self.canvas.average))

    def run(self) -> Iterator[dict[str, float]]:
        """Take all steps that are left; yields the losses of each."""
        while self.step < self.options.num_steps:
            yield self.take_step()

    def take_step(self) -> dict[str, float]:
        """One optimizer step.

        Returns:
            The losses before it by name: "clip" the distance to the prompts, averaged over CLIPs, then those of
            `_regularizers`; "loss" is their sum.
        """
        options = self.options
        if options.has_motion and self.step and self.step % options.frame_every == 0:
            self._next_frame()
        self.optimizer.zero_grad(set_to_none=True)
        image = self._composite(self.canvas.render(self.canvas.values))
        cutouts = self._cutouts(image)
        phases = len(self.objectives[0].targets)
        phase = phase_of(self.step, options.num_steps, phases, options.change_every)
        results = [self._distance_grad(clip, cut, phase) for clip, cut in zip(self.objectives, cutouts, strict=True)]
        regularizers = self._regularizers(image)
        # One backward pass through the canvas for all CLIPs, whose gradients end at the cutouts, and regularizers
        terms = list(regularizers.values())
        torch.autograd.backward([*cutouts, *terms], [*(grad for _, grad in results), *(None for _ in terms)])
        self.optimizer.step()
        self.step, self.steps_since_reset = self.step + 1, self.steps_since_reset + 1
        self.canvas.on_step_end(options.average, self.steps_since_reset)
        losses = {"clip": sum(distance for distance, _ in results) / len(results)}
        losses |= {name: float(value.detach()) for name, value in regularizers.items()}
        return {"loss": sum(losses.values()), **losses}

    def _cutouts(self, image: Tensor) -> list[Tensor]:
        """Cutouts of the image for each CLIP; they are random by the seed and the step alone."""
        devices = [image.device] if image.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # Differs for all seeds, up to a million steps
            torch.manual_seed((self.options.seed * 1_000_003 + self.step) % 2**63)
            return [objective.cutouts(image.to(objective.device)) for objective in self.objectives]

    def _distance_grad(self, objective: ClipObjective, cutouts: Tensor, phase: int) -> tuple[float, Tensor]:
        """Mean distance of the cutouts to the prompts, and the gradient of the loss with respect to the cutouts.

        CLIP gets `cutout_batch` of them at a time, so its activations need no more memory than that many take; the
        gradient that it leaves in the detached cutouts is the same.
        """
        leaf = cutouts.detach().requires_grad_()
        total = 0.0
        for part in leaf.split(self.options.cutout_batch or len(leaf)):
            distance = objective.distance(part, phase) * (len(part) / len(leaf))  # in sum the mean over all cutouts
            (distance / len(self.objectives)).backward()  # the loss is the mean over CLIPs
            total += float(distance.detach())
        assert leaf.grad is not None
        return total, leaf.grad

    def _regularizers(self, image: Tensor) -> dict[str, Tensor]:
        """The loss terms besides CLIP's whose weights are not 0, weighted; scalars."""
        options, losses = self.options, {}
        if options.tv:
            losses["tv"] = options.tv * total_variation(image)
        if options.saturation:
            losses["saturation"] = -options.saturation * colorfulness(image)
        if options.init_weight:
            distance = l2_to_init(self.canvas.values, self.canvas.initial, self.step, options.init_decay)
            losses["init"] = options.init_weight * distance
        return losses

    def _composite(self, rendered: Tensor) -> Tensor:
        """The rendered image with the known image over it where the mask is 0."""
        if self.known_image is None or self.mask is None:
            return rendered
        return self.mask * rendered + (1 - self.mask) * self.known_image

    def _next_frame(self) -> None:
        """Start the next frame from this one after camera motion, with a new optimizer.

        Adam's moments belong to the values before the motion.
        """
        options = self.options
        moved = move_camera(self.image(), options.zoom, options.rotate, options.shift_x, options.shift_y)
        self.canvas.reset(moved)
        self.steps_since_reset = 0
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        lr = self.canvas.lr if self.options.lr is None else self.options.lr
        optimizer_class = OPTIMIZERS[self.options.optimizer]
        return optimizer_class([self.canvas.values], lr=lr)  # type: ignore[call-arg]
