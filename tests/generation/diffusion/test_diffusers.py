"""The schedulers of diffusers, where it is installed, give the same: others' code of the same papers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dalle.generation.diffusion.prediction import Limit, make_denoiser
from dalle.generation.diffusion.sample import Noise, SamplerConfig, invert, sample
from dalle.generation.diffusion.spacing import spaced_steps
from dalle.models.noise_schedule import CosineConfig, LinearConfig, make_schedule

schedulers = pytest.importorskip("diffusers.schedulers")

SHAPE = (2, 3, 4, 4)
COSINE, LINEAR = make_schedule(CosineConfig()), make_schedule(LinearConfig(first=0.00085, last=0.012))
THEIRS = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
STRAIGHT = THEIRS | {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
NAMES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}


def network(x: Tensor, steps: Tensor) -> Tensor:
    return torch.tanh(1.5 * x) * 0.8 + (steps.view(-1, 1, 1, 1) / 3000).to(x.dtype)


def network_with_variance(x: Tensor, steps: Tensor) -> Tensor:
    return torch.cat([network(x, steps), torch.sin(2 * x)], 1)


class Played:
    """Noise in order, for us by calls and for diffusers by a patched randn_tensor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str, count: int = 60) -> None:
        random = torch.Generator().manual_seed(0)
        self.numbers = [torch.randn(SHAPE, generator=random) for _ in range(count)]
        self.theirs: Iterator[Tensor] = iter(self.numbers[1:])
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *_, **__: next(self.theirs))

    def ours(self) -> Noise:
        numbers = iter(self.numbers)
        return lambda: next(numbers)


def run(scheduler: Any, x: Tensor, predict: Any = network, **options: Any) -> Tensor:
    for step in scheduler.timesteps:
        x = scheduler.step(predict(x, step.expand(len(x))), step, x, **options).prev_sample
    return x


def test_alpha_bars_equal_diffusers() -> None:
    for ours, options in ((COSINE, THEIRS), (LINEAR, STRAIGHT)):
        theirs = schedulers.DDPMScheduler(**options).alphas_cumprod
        torch.testing.assert_close(ours.alpha_bars.float(), theirs, rtol=2e-3, atol=1e-7)


def test_steps_equal_diffusers() -> None:
    for spacing in ("linspace", "leading", "trailing"):
        scheduler = schedulers.DDIMScheduler(**THEIRS, timestep_spacing=spacing)
        for count in (2, 7, 25, 50):
            scheduler.set_timesteps(count)
            assert spaced_steps(1000, count, spacing) == scheduler.timesteps.tolist()
    unclip = schedulers.UnCLIPScheduler()
    unclip.set_timesteps(25)
    assert spaced_steps(1000, 25) == unclip.timesteps.tolist()


@pytest.mark.parametrize("kind", list(NAMES))
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_samples_equal_diffusers(kind: str, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Played(monkeypatch, "scheduling_ddim")
    options = STRAIGHT | {"clip_sample": True, "clip_sample_range": 1.0, "set_alpha_to_one": True}
    scheduler = schedulers.DDIMScheduler(**options, prediction_type=NAMES[kind], timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    theirs = run(scheduler, noise.numbers[0], eta=eta, use_clipped_model_output=True)
    denoise = make_denoiser(network, LINEAR, kind, limit=Limit(1.0))
    sampler = SamplerConfig(steps=10, spacing="trailing", eta=eta)
    torch.testing.assert_close(sample(denoise, LINEAR, sampler, noise.ours()), theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm_samples_equal_diffusers(variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leading: where the last step is not 0, theirs adds noise to the data themselves."""
    noise = Played(monkeypatch, "scheduling_ddpm")
    name = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[variance]
    thresholds = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}
    scheduler = schedulers.DDPMScheduler(
        **STRAIGHT, **thresholds, variance_type=name, clip_sample=False, timestep_spacing="leading"
    )
    scheduler.set_timesteps(20)
    predict = network_with_variance if variance == "learned" else network
    theirs = run(scheduler, noise.numbers[0], predict)
    denoise = make_denoiser(
        predict, LINEAR, "epsilon", limit=Limit(2.0, percentile=0.9), learned_variance=variance == "learned"
    )
    sampler = SamplerConfig(sampler="ddpm", steps=20, spacing="leading", variance=variance)
    torch.testing.assert_close(sample(denoise, LINEAR, sampler, noise.ours()), theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "variance", "bound"), [("sample", "fixed_small_log", 5.0), ("epsilon", "learned_range", 1.0)]
)
def test_ddpm_steps_equal_diffusers_unclip_scheduler(
    kind: str, variance: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Karlo's prior and decoder: draws at every step but the last."""
    noise = Played(monkeypatch, "scheduling_unclip")
    scheduler = schedulers.UnCLIPScheduler(
        prediction_type=kind, variance_type=variance, clip_sample=True, clip_sample_range=bound
    )
    scheduler.set_timesteps(12)
    learned = variance == "learned_range"
    predict, x, steps = network_with_variance if learned else network, noise.numbers[0], scheduler.timesteps
    for step, then in zip(steps, [*steps[1:], None], strict=True):
        x = scheduler.step(predict(x, step.expand(2)), step, x, prev_timestep=then).prev_sample
    denoise = make_denoiser(predict, COSINE, kind, limit=Limit(bound), learned_variance=learned)
    sampler = SamplerConfig(sampler="ddpm", steps=12, spacing="linspace", variance="learned" if learned else "small")
    torch.testing.assert_close(sample(denoise, COSINE, sampler, noise.ours()), x, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", list(NAMES))
def test_dpm_solver_samples_equal_diffusers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Played(monkeypatch, "scheduling_dpmsolver_multistep")
    scheduler = schedulers.DPMSolverMultistepScheduler(
        **STRAIGHT, prediction_type=NAMES[kind], timestep_spacing="trailing", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(20)
    theirs = run(scheduler, noise.numbers[0])
    sampler = SamplerConfig(sampler="dpm++", steps=20, spacing="trailing")
    ours = sample(make_denoiser(network, LINEAR, kind), LINEAR, sampler, noise.ours())
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_ddim_inversion_is_near_diffusers() -> None:
    """Theirs begins at the alpha-bar of step 0 and ours at 1, the data themselves: so near, not equal."""
    x0 = torch.tanh(torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)))
    options = STRAIGHT | {"clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = schedulers.DDIMInverseScheduler(**options, set_alpha_to_one=True)
    scheduler.set_timesteps(50)
    theirs = run(scheduler, x0)
    denoise, sampler = make_denoiser(network, LINEAR, "epsilon"), SamplerConfig(steps=50, spacing="trailing")
    torch.testing.assert_close(invert(x0, denoise, LINEAR, sampler), theirs, atol=0.02, rtol=0.02)
