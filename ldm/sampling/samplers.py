"""From noise to latents: time grids, two samplers, classifier-free guidance and the noise they start from.

Everything here acts on a `Denoiser` (z, t) -> z0_hat and a `Schedule` of any alpha and sigma, and knows no network.
Steps are written in alpha and sigma, not in their ratio, so they hold where alpha = 0 (t = 1 of a schedule that ends in
pure noise) and where sigma = 0 (t = 0).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import randomness
from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids
from ldm.sampling.grids import Spacing
from ldm.sampling.plan.params import DDIMParams, DPMSolverParams, SamplerParams

Times = Float[Tensor, "steps+1"]
NoiseAtStep = Callable[[int], Float[Tensor, "b c h w"]]


def no_noise(step: int) -> Float[Tensor, "b c h w"]:
    """The noise of a step, where none is added."""
    raise AssertionError(f"step {step} adds noise")


class Sampler(Protocol):
    """A rule that follows a denoiser through times."""

    def __call__(
        self,
        denoise: Denoiser,
        schedule: Schedule,
        z: Float[Tensor, "b c h w"],
        times: Times,
        noise_at_step: NoiseAtStep = no_noise,
    ) -> Float[Tensor, "b c h w"]:
        """From the latent at times[0], which is standard normal noise for time 1, to that at times[-1].

        noise_at_step: standard normal noise that step i adds, for a rule that adds some.
        """
        ...


def build(params: SamplerParams) -> Sampler:
    """The sampler that the params describe."""
    match params:
        case DDIMParams():
            return partial(ddim, eta=params.eta)
        case DPMSolverParams():
            return dpm_solver_pp_2m


def time_grid(schedule: Schedule, num_steps: int, spacing: Spacing, shift: float, first: float = 1.0) -> Times:
    """`grids.times`, float64 on the CPU."""
    return torch.tensor(grids.times(schedule.name, num_steps, spacing, shift, first), dtype=torch.float64)


def ddim(
    denoise: Denoiser,
    schedule: Schedule,
    z: Float[Tensor, "b c h w"],
    times: Times,
    noise_at_step: NoiseAtStep = no_noise,
    eta: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """DDIM (Song et al. 2021, equation 12), a `Sampler`, for any alpha and sigma. eta: 0 is deterministic, 1 is
    ancestral sampling (DDPM)."""
    for step, (t, s) in enumerate(_steps(schedule, times)):
        z0_hat = denoise(z, _time(t.time, z))
        fresh = grids.fresh_noise(t, s, eta)
        kept = math.sqrt(max(s.sigma**2 - fresh**2, 0.0))
        z = s.alpha * z0_hat + kept / t.sigma * (z - t.alpha * z0_hat)
        if eta > 0:
            z = z + fresh * noise_at_step(step).to(z)
    return z


def dpm_solver_pp_2m(
    denoise: Denoiser,
    schedule: Schedule,
    z: Float[Tensor, "b c h w"],
    times: Times,
    noise_at_step: NoiseAtStep = no_noise,
) -> Float[Tensor, "b c h w"]:
    """DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2), a `Sampler` that adds no noise, for any alpha and
    sigma.

    With h the step in half log-SNR and r = h_before / h, a step is z_s = (sigma_s / sigma_t) z_t + (alpha_s - alpha_t
    sigma_s / sigma_t) D, D = (1 + 1 / 2r) z0_hat - 1 / 2r z0_hat_before. The first step knows no earlier z0_hat, and
    after a start at alpha = 0 the earlier one is infinitely far (r = inf): both take D = z0_hat. So does a step to
    sigma = 0, across which (r = 0) no line in log-SNR can be drawn.
    """
    before, h_before = z, math.inf
    for t, s in _steps(schedule, times):
        z0_hat = denoise(z, _time(t.time, z))
        h = s.half_log_snr - t.half_log_snr
        ahead = grids.extrapolation(h_before, h)
        direction = z0_hat + ahead * (z0_hat - before)
        z = s.sigma / t.sigma * z + (s.alpha - t.alpha * s.sigma / t.sigma) * direction
        before, h_before = z0_hat, h
    return z


def _steps(schedule: Schedule, times: Times) -> Iterator[tuple[grids.State, grids.State]]:
    return grids.steps(schedule.name, times.tolist())


def _time(time: float, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    return torch.full((len(z),), time, dtype=z.dtype, device=z.device)


def guide(
    conditional: Denoiser, unconditional: Denoiser, guidance_scale: float, interval: tuple[float, float]
) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, equation 6, with scale 1 + w) at times within `interval`.

    z0_hat = unconditional + guidance_scale (conditional - unconditional). Scale 1 is the conditional denoiser, 0 the
    unconditional one. Outside the interval, ends included in it, there is no guidance and the unconditional denoiser is
    not called (Kynkaanniemi et al. 2024).
    """
    if guidance_scale == 1:
        return conditional
    low, high = interval

    def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        z0_hat = conditional(z, t)
        inside = (t >= low) & (t <= high)
        if (low, high) != (0, 1) and not bool(inside.any()):
            return z0_hat
        base = unconditional(z, t)
        return torch.where(inside.reshape(-1, 1, 1, 1), base + guidance_scale * (z0_hat - base), z0_hat)

    return denoise


def prompt_noise(seed: int, prompt_numbers: Sequence[int], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    """Standard normal noise that sampling starts from: each row a function of (seed, its prompt's number) alone."""
    return _noise(seed, "sample", prompt_numbers, shape)


def prompt_noise_at_step(seed: int, prompt_numbers: Sequence[int], shape: tuple[int, int, int]) -> NoiseAtStep:
    """Noise for samplers that add some: each row a function of (seed, its prompt's number, step) alone."""
    return lambda step: _noise(seed, f"sample step {step}", prompt_numbers, shape)


def _noise(seed: int, purpose: str, numbers: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=randomness.generator(seed, purpose, n)) for n in numbers])
