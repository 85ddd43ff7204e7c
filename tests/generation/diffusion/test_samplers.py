"""Samplers against textbook loops and against a Gaussian whose best denoiser is known; inversion gives data back."""

from __future__ import annotations

import math
from itertools import count

import pytest
import torch
from torch import Tensor

from dalle.generation.diffusion.prediction import Denoised, Denoiser, Limit, Network, denoised, make_denoiser, target
from dalle.generation.diffusion.sample import Noise, SamplerConfig, candidate_noise, invert, sample, sample_from
from dalle.generation.diffusion.spacing import spaced_steps
from dalle.models.noise_schedule import CosineConfig, LinearConfig, Schedule, make_schedule

COSINE, LINEAR = make_schedule(CosineConfig()), make_schedule(LinearConfig())
MEAN, DEVIATION = 0.7, 0.4
KINDS = ["epsilon", "v", "sample"]


def gaussian(schedule: Schedule, kind: str = "sample") -> Denoiser:
    """The best there is for data of N(MEAN, DEVIATION²), as a network that predicts `kind`."""

    def network(x: Tensor, steps: Tensor) -> Tensor:
        a = schedule.alpha_bar(int(steps[0]))
        x0 = MEAN + DEVIATION**2 * a**0.5 / (a * DEVIATION**2 + 1 - a) * (x - a**0.5 * MEAN)
        epsilon = (x - a**0.5 * x0) / (1 - a) ** 0.5
        return {"sample": x0, "epsilon": epsilon, "v": a**0.5 * epsilon - (1 - a) ** 0.5 * x0}[kind]

    return make_denoiser(network, schedule, kind)


def curved(schedule: Schedule) -> Denoiser:
    """One that is far from linear, and predicts epsilon and a variance."""
    return make_denoiser(
        lambda x, steps: torch.cat([torch.tanh(2 * x) + steps[0] / 2000, torch.sin(3 * x)], 1),
        schedule,
        "epsilon",
        learned_variance=True,
    )


def played(seed: int, shape: tuple[int, ...]) -> Noise:
    random = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(*shape, generator=random, dtype=torch.float64)


def test_ddpm_equals_algorithm_2_of_the_paper() -> None:
    """Ho et al. 2020, algorithm 2, number by number, over all steps."""
    schedule = make_schedule(LinearConfig(steps=20, first=0.01, last=0.3))
    denoise = curved(schedule)
    for variance in ("small", "large", "learned"):
        got = sample(
            denoise, schedule, SamplerConfig(sampler="ddpm", steps=20, variance=variance), played(1, (2, 1, 3))
        )
        draw = played(1, (2, 1, 3))
        x = draw()
        for t in reversed(range(20)):
            beta = 0.01 + (0.3 - 0.01) * t / 19
            a, earlier = schedule.alpha_bar(t), schedule.alpha_bar(t - 1)
            epsilon, v = torch.tanh(2 * x) + t / 2000, torch.sin(3 * x)
            x = (x - beta / math.sqrt(1 - a) * epsilon) / math.sqrt(1 - beta)
            if t:
                tilde = (1 - earlier) / (1 - a) * beta
                learned = torch.exp((v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(tilde))
                x = x + {"small": tilde, "large": beta, "learned": learned}[variance] ** 0.5 * draw()
        torch.testing.assert_close(got, x)


def test_ddim_equals_equation_12_of_the_paper() -> None:
    """Song et al. 2020, equation 12, over steps that skip."""
    denoise, steps = curved(LINEAR), spaced_steps(1000, 7, "trailing")
    for eta in (0.0, 0.5, 1.0):
        got = sample(denoise, LINEAR, SamplerConfig(steps=7, eta=eta), played(2, (2, 1, 3)))
        draw = played(2, (2, 1, 3))
        x = draw()
        for now, then in zip(steps, [*steps[1:], -1], strict=True):
            a, b = LINEAR.alpha_bar(now), LINEAR.alpha_bar(then)
            epsilon = torch.tanh(2 * x) + now / 2000
            sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
            predicted = (x - math.sqrt(1 - a) * epsilon) / math.sqrt(a)
            x = math.sqrt(b) * predicted + math.sqrt(1 - b - sigma**2) * epsilon
            if sigma:
                x = x + sigma * draw()
        torch.testing.assert_close(got, x)


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_kind_gives_the_same_data(kind: str) -> None:
    random = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, 4, 3, 2, 2, generator=random, dtype=torch.float64)
    steps = torch.tensor([0, 300, 700, 990])
    x = COSINE.add_noise(x0, noise, steps)
    wanted = target(kind, COSINE, x0, noise, steps)
    for row, step in enumerate(steps.tolist()):
        found = denoised(kind, COSINE.alpha_bar(step), x[row : row + 1], wanted[row : row + 1])
        torch.testing.assert_close(found.x0[0], x0[row])
        torch.testing.assert_close(found.epsilon[0], noise[row])


@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sampler", "steps", "within"), [("ddim", 200, 0.02), ("dpm++", 50, 0.01), ("ddpm", 1000, 0.02)]
)
def test_samplers_reproduce_a_gaussians_mean_and_deviation(
    schedule: Schedule, kind: str, sampler: str, steps: int, within: float
) -> None:
    """Every sampler is affine here: its mean and variance are read off exactly from its response to each number.

    The first row hears no noise, and row k the number one in draw k alone: the squares of what they move x by sum up.
    """
    draws = steps if sampler == "ddpm" else 1
    counter = count(1)

    def noise() -> Tensor:
        numbers = torch.zeros(draws + 1, 1, dtype=torch.float64)
        numbers[next(counter)] = 1
        return numbers

    x = sample(gaussian(schedule, kind), schedule, SamplerConfig(sampler=sampler, steps=steps), noise)[:, 0]
    assert x[0].item() == pytest.approx(MEAN, abs=within)
    assert (x[1:] - x[0]).square().sum().sqrt().item() == pytest.approx(DEVIATION, rel=within)


def test_eta_1_has_the_variance_of_ddpm() -> None:
    denoise, shape = curved(COSINE), (2, 1, 3)
    ddim = sample(denoise, COSINE, SamplerConfig(sampler="ddim", steps=10, eta=1.0), played(4, shape))
    ddpm = sample(denoise, COSINE, SamplerConfig(sampler="ddpm", steps=10), played(4, shape))
    torch.testing.assert_close(ddim, ddpm)


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_exact_denoiser_gives_the_data(steps: int, spacing: str, sampler: str) -> None:
    data = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    denoise = make_denoiser(lambda x, steps: data, COSINE, "sample")
    got = sample(denoise, COSINE, SamplerConfig(sampler=sampler, steps=steps, spacing=spacing), played(5, (2, 3)))
    torch.testing.assert_close(got, data)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().item())


def test_inversion_then_sampling_gives_the_data_back() -> None:
    """By plain inversion the better the more steps; with iterations to rounding, in few steps too."""
    x0 = MEAN + DEVIATION * played(6, (64, 1))()
    denoise = gaussian(COSINE)
    plain = []
    for steps in (25, 100, 400):
        options = SamplerConfig(steps=steps)
        start = invert(x0, denoise, COSINE, options)
        plain.append(psnr(sample_from(start, denoise, COSINE, options), x0))
    assert plain == sorted(plain) and plain[1] > 30
    options = SamplerConfig(steps=25)
    start = invert(x0, denoise, COSINE, options, iterations=15)
    torch.testing.assert_close(sample_from(start, denoise, COSINE, options), x0)
    assert start.std().item() == pytest.approx((x0.std() / DEVIATION).item(), rel=0.1)


def test_a_straight_path_is_inverted_exactly() -> None:
    """Where predicted noise does not change along the way, plain inversion is exact."""
    denoise = make_denoiser(lambda x, steps: torch.full_like(x, 0.3), LINEAR, "epsilon")
    x0, options = played(7, (4, 2))(), SamplerConfig(steps=10, spacing="trailing")
    start = invert(x0, denoise, LINEAR, options)
    torch.testing.assert_close(sample_from(start, denoise, LINEAR, options), x0)


def test_guidance_extrapolates_linearly_between_both_predictions() -> None:
    x = torch.randn(3, 4)

    def network(share: float, variance: float) -> Network:
        return lambda x, steps: torch.cat([x * share, x + variance], 1)

    def found(scale: float) -> Denoised:
        return make_denoiser(
            network(0.5, 9),
            COSINE,
            "epsilon",
            unconditional=network(0.1, -9),
            guidance=scale,
            learned_variance=True,
        )(x, 400)

    torch.testing.assert_close(found(0).epsilon, x * 0.1)
    torch.testing.assert_close(found(1).epsilon, x * 0.5)
    torch.testing.assert_close(found(3).epsilon, x * 1.3)
    variance = found(3).variance
    assert variance is not None
    torch.testing.assert_close(variance, x + 9)


def test_guidance_1_runs_no_unconditional_prediction() -> None:
    def never(x: Tensor, steps: Tensor) -> Tensor:
        raise AssertionError("asked")

    denoise = make_denoiser(lambda x, steps: x, COSINE, "v", unconditional=never, guidance=1.0)
    assert denoise(torch.ones(1, 2), 5).x0.shape == (1, 2)


def test_clipped_x0_and_epsilon_are_consistent() -> None:
    x = 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(8))
    for limit in (Limit(1.0), Limit(1.5, percentile=0.9)):
        found = make_denoiser(lambda x, steps: x, COSINE, "epsilon", limit=limit)(x, 700)
        a = COSINE.alpha_bar(700)
        assert found.x0.abs().max() <= 1 + 1e-6
        torch.testing.assert_close(a**0.5 * found.x0 + (1 - a) ** 0.5 * found.epsilon, x)


def test_dynamic_thresholding_equals_the_paper_for_each_sample() -> None:
    """Imagen, section 2.3: one sample alone, by sorting."""
    x = torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(9))
    x = x * torch.tensor([0.1, 1.5, 9.0]).view(3, 1, 1, 1)
    got = Limit(2.0, percentile=0.75)(x)
    for row in range(3):
        ordered = sorted(x[row].abs().flatten().tolist())
        bound = min(max(ordered[18], 1.0), 2.0)  # 24 gaps, three quarters of them
        torch.testing.assert_close(got[row], x[row].clamp(-bound, bound) / bound)
    torch.testing.assert_close(got[0], x[0])  # nothing above 1: as it is


def test_candidates_do_not_depend_on_the_batch() -> None:
    denoise, options = curved(COSINE), SamplerConfig(sampler="ddpm", steps=6)
    together = sample(denoise, COSINE, options, candidate_noise([11, 12, 13], (1, 3)))
    for row, seed in enumerate((11, 12, 13)):
        alone = sample(denoise, COSINE, options, candidate_noise([seed], (1, 3)))
        torch.testing.assert_close(alone[0], together[row])


def test_progress_counts_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    sample(gaussian(COSINE), COSINE, SamplerConfig(steps=3), played(0, (1, 1)), lambda *now: told.append(now))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        SamplerConfig(steps=0)
    with pytest.raises(ValueError, match="eta is 2"):
        SamplerConfig(eta=2.0)
    with pytest.raises(ValueError, match="eta is 0.5, but only sampler=ddim uses it"):
        SamplerConfig(sampler="dpm++", eta=0.5)
    with pytest.raises(ValueError, match="guidance is nan"):
        make_denoiser(lambda x, steps: x, COSINE, "v", guidance=math.nan)
    with pytest.raises(ValueError, match="no unconditional prediction"):
        make_denoiser(lambda x, steps: x, COSINE, "v", guidance=2.0)
    with pytest.raises(ValueError, match="predicts none"):
        sample(gaussian(COSINE), COSINE, SamplerConfig(sampler="ddpm", variance="learned"), played(0, (1, 1)))
    with pytest.raises(ValueError, match="inversion needs sampler=ddim"):
        invert(torch.zeros(1, 1), gaussian(COSINE), COSINE, SamplerConfig(sampler="ddpm"))
    with pytest.raises(ValueError, match="steps is 1001; this model was trained with 1000"):
        sample(gaussian(COSINE), COSINE, SamplerConfig(steps=1001), played(0, (1, 1)))
    with pytest.raises(ValueError, match="percentile"):
        Limit(percentile=1.5)
