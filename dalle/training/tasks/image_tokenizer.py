"""Stage image_tokenizer: a dVAE (likelihood and KL) or a VQGAN (L1, perceptual, codebook and adversarial losses)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle.checkpoints import model_folder
from dalle.checkpoints.lazy_tensor import Tensors
from dalle.config import to_dict
from dalle.data.batch import Batch
from dalle.evaluation.evaluate import image_tokenizer_metrics
from dalle.evaluation.metrics import SSIM_WINDOW, CodebookUsage
from dalle.image_tokenizers import ImageTokenizer, Reconstruction, build
from dalle.image_tokenizers.vqgan import VQGAN
from dalle.images.grid import image_grid
from dalle.training.init_image_tokenizer import frozen_codes, load_initial_vqgan, lock_codes
from dalle.training.losses.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    check_image_size,
    discriminator_loss,
    generator_loss,
    last_layer_gradients,
)
from dalle.training.losses.perceptual import build_perceptual
from dalle.training.recipe import ImageTokenizerRecipe
from dalle.training.tasks.base import Phase, Reduce, Samples, Task


@dataclass
class Inputs:
    """A micro-batch."""

    images: Tensor  # [B, 3, H, W] in [0, 1]
    fake: Tensor | None = None  # reconstructions, set by the generator's phase for the discriminator's


class Adversary(nn.Module):
    """The discriminator, and the adaptive weight of the adversarial loss (arXiv 2012.09841, equation 7).

    The weight is a ratio of gradient norms of the full batch, known only after its last micro-batch. Therefore the
    gradients of a step are summed over micro-batches and processes, and their ratio is the weight of the next step.
    """

    adaptive: Tensor

    def __init__(self, discriminator: PatchDiscriminator, last_layer: Tensor):
        super().__init__()
        self.discriminator = discriminator
        self.register_buffer("adaptive", torch.zeros(()))
        # Not a buffer: zero whenever a checkpoint is written
        self.gradients = torch.zeros(2, *last_layer.shape, device=last_layer.device)

    def on_step_end(self, reduce: Reduce) -> None:
        """Set the adaptive weight from the gradients of this step."""
        reconstruction, adversarial = reduce(self.gradients)
        self.adaptive.copy_(adaptive_weight(reconstruction, adversarial))
        self.gradients.zero_()


class ImageTokenizerTask(Task):
    """Trains an image tokenizer, with a discriminator if the recipe has an adversarial loss."""

    model: ImageTokenizer
    needs_sync = True

    def __init__(self, recipe: ImageTokenizerRecipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.model = build(recipe.model)
        if recipe.init_from is not None:
            assert isinstance(self.model, VQGAN)  # the recipe has been checked
            load_initial_vqgan(self.model, recipe.init_from)
            if recipe.lock is not None:
                lock_codes(self.model)
        self.model.to(device)
        _channels_last(self.model)  # before the optimizer, whose moments take the layout of the weights
        self.state = nn.ModuleDict({"model": self.model})
        self.phases = [Phase("generator", self.model, recipe.optim)]
        self.perceptual = build_perceptual(recipe.perceptual)
        if self.perceptual is not None:
            self.perceptual.to(device)
        self.adversary: Adversary | None = None
        if recipe.adversarial is not None:
            check_image_size(recipe.adversarial, self.model.image_size, self.model.image_size)
            discriminator = PatchDiscriminator(recipe.adversarial)
            _channels_last(discriminator.to(device))
            self.adversary = Adversary(discriminator, self.model.last_layer).to(device)
            self.state["adversary"] = self.adversary
            optim = replace(
                recipe.optim, lr=recipe.optim.lr if recipe.adversarial.lr is None else recipe.adversarial.lr
            )
            self.phases.append(Phase("discriminator", self.adversary.discriminator, optim))
        self.image_size = self.model.image_size
        if self.image_size < SSIM_WINDOW:  # now, and not at the first validation
            raise ValueError(f"model.image_size is {self.image_size}: validation needs at least {SSIM_WINDOW}")
        self.usage = CodebookUsage(self.model.codebook_size, device)
        height, width = self.model.grid
        self.tokens_per_image = height * width
        self.codes_per_value = height * width / (3 * self.model.image_size**2)  # see `_kl_weight`

    def active(self, step: int) -> list[Phase]:
        """The generator, and from `adversarial.start` on the discriminator."""
        return self.phases if self._adversarial_at(step) else self.phases[:1]

    def inputs(self, batch: Batch) -> Inputs:
        """Images in channels-last memory format, which convolutions are fastest in."""
        images = batch.unit_images(self.device)
        return Inputs(images.contiguous(memory_format=torch.channels_last))

    def loss(self, phase: Phase, inputs: Inputs, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the generator (dVAE: negative ELBO; VQGAN: sum of its losses) or of the discriminator."""
        if phase.name == "discriminator":
            return self._discriminator_loss(inputs)
        output = self._reconstruction(inputs.images, step)
        self.usage.update(output.codes)
        if "reconstruction" in output.losses:  # a likelihood of pixels, which only the dVAE has
            return self._dvae_loss(output, step)
        return self._vqgan_loss(output, inputs, step)

    def _reconstruction(self, images: Tensor, step: int) -> Reconstruction:
        """The forward pass; with a locked encoder through the decoder only."""
        if self.recipe.lock is None:
            return self.model(images, temperature=self.recipe.temperature.at(step))
        assert isinstance(self.model, VQGAN)
        codes = frozen_codes(self.model, images)
        return Reconstruction(self.model.decode_latents(self.model.embed_codes(codes)), codes, {})

    def _dvae_loss(self, output: Reconstruction, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative ELBO per sub-pixel with a weighted KL (arXiv 2102.12092, equation 1)."""
        metrics = {"nll": output.losses["reconstruction"], "kl": output.losses["kl"]}
        return metrics["nll"] + self._kl_weight(step) * metrics["kl"], metrics

    def _vqgan_loss(self, output: Reconstruction, inputs: Inputs, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the VQGAN's losses (arXiv 2012.09841, equations 4 to 7)."""
        recipe = self.recipe
        metrics = {"l1": (output.images - inputs.images).abs().mean()}
        reconstruction = recipe.l1_weight * metrics["l1"]
        if self.perceptual is not None:
            metrics["perceptual"] = self.perceptual(output.images, inputs.images)
            reconstruction = reconstruction + recipe.perceptual_weight * metrics["perceptual"]
        total = reconstruction
        if "codebook" in output.losses:
            metrics["codebook"] = output.losses["codebook"]
            total = total + recipe.codebook_weight * metrics["codebook"]
        if "kl" in output.losses:
            metrics["kl"] = output.losses["kl"]
            total = total + self._kl_weight(step) * metrics["kl"]
        if self._adversarial_at(step):
            assert recipe.adversarial is not None and self.adversary is not None
            # The generator's backward pass must not add to the discriminator's gradients
            self.adversary.discriminator.requires_grad_(False)
            metrics["adversarial"] = generator_loss(self.adversary.discriminator(output.images))
            # The discriminator's phase judges the images of this forward pass, though the weights have moved on by then
            inputs.fake = output.images.detach()
            weight = torch.full((), recipe.adversarial.weight, device=self.device)
            if recipe.adversarial.adaptive:
                # Of the last layer alone: gradients of all weights would cost another backward pass
                gradients = last_layer_gradients(reconstruction, metrics["adversarial"], self.model.last_layer)
                self.adversary.gradients += torch.stack(gradients)
                weight = weight * self.adversary.adaptive
            total = total + weight * metrics["adversarial"]
            metrics["adversarial_weight"] = weight
        return total, metrics

    def _discriminator_loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge loss on real images and the generator's; their mean logits are logged."""
        assert self.adversary is not None and inputs.fake is not None
        discriminator = self.adversary.discriminator.requires_grad_(True)
        real, fake = discriminator(inputs.images), discriminator(inputs.fake)
        loss = discriminator_loss(real, fake)
        return loss, {"real": real.mean(), "fake": fake.mean()}

    def _adversarial_at(self, step: int) -> bool:
        return self.recipe.adversarial is not None and step >= self.recipe.adversarial.start

    def _kl_weight(self, step: int) -> float:
        """Weight of the KL, converted from the paper's scale.

        The paper weights sums over an image (appendix A.2). Here the KL is a mean over codes and the likelihood a mean
        over sub-pixels, so the weight is multiplied by the number of codes per sub-pixel (1/192 for a factor of 8).
        """
        return self.recipe.kl_weight.at(step) * self.codes_per_value

    def on_step_end(self, reduce: Reduce) -> None:
        """Update EMA codebooks and the adaptive weight."""
        if self.recipe.lock is None:
            self.model.on_step_end(reduce)
        if self.adversary is not None and self.recipe.adversarial is not None and self.recipe.adversarial.adaptive:
            self.adversary.on_step_end(reduce)

    def reset_statistics(self) -> None:
        """Discard the codebook statistics and gradients of a skipped step."""
        self.model.reset_statistics()
        if self.adversary is not None:
            self.adversary.gradients.zero_()

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """Codebook usage since the last call; the codes of a dVAE or Gumbel quantizer are sampled with noise here."""
        self.usage.counts = reduce(self.usage.counts)
        metrics = self.usage.metrics()
        self.usage.counts = torch.zeros_like(self.usage.counts)
        return metrics

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Reconstruction quality and codebook usage."""
        assert isinstance(model, ImageTokenizer)
        return image_tokenizer_metrics(model, batches)

    @torch.no_grad()
    def sample_images(self, model: nn.Module, batch: Batch) -> Samples:
        """Images above their reconstructions, 16 per row."""
        assert isinstance(model, ImageTokenizer)
        images = batch.unit_images(self.device)
        reconstructions = model.decode(model.encode(images))
        # A row of images, then the row of their reconstructions
        rows = [part for pair in zip(images.split(16), reconstructions.split(16), strict=True) for part in pair]
        return Samples(image_grid(rows), {})

    def export(self, folder: Path, weights: Tensors) -> None:
        """Write a model folder."""
        model_folder.save(folder, {"stage": self.recipe.stage, "model": to_dict(self.recipe.model)}, weights)


def _channels_last(module: nn.Module) -> None:
    """Convert convolution weights to the memory format in which convolutions are fastest."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
