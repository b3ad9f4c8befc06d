"""From noise to latents: time grids, two samplers, classifier-free guidance and the noise they start from.

Everything here acts on a `Denoiser` (z, t) -> z0_hat and a `Schedule` of any alpha and sigma, and knows no network.
Steps are written in alpha and sigma, not in their ratio, so they hold where alpha = 0 (t = 1 of a schedule that ends in
pure noise) and where sigma = 0 (t = 0).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import randomness
from ldm.diffusion import Denoiser, Schedule

Times = Float[Tensor, "steps+1"]
NoiseAtStep = Callable[[int], Float[Tensor, "b c h w"]]
Spacing = Literal["uniform", "log_snr"]

_LOG_SNR_ENDS = (1e-3, 1 - 1e-3)
"""Times between which a grid is uniform in log-SNR, which is infinite at 0 and may be at 1."""
_NUM_BISECTIONS = 60


def time_grid(schedule: Schedule, num_steps: int, spacing: Spacing, shift: float) -> Times:
    """The `num_steps` + 1 times, float64 on the CPU, from 1 down to 0, between which a sampler steps.

    `uniform` is even in t; `log_snr` has its inner times even in log-SNR (Lu et al. 2022, section 4.1 of DPM-Solver).
    shift: t becomes s t / (1 + (s - 1) t), so more than 1 spends more steps on high noise (Esser et al. 2024, equation
    23); 1 = none.
    """
    assert num_steps > 0 and shift > 0, f"{num_steps} steps, shift {shift}"
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    if spacing == "log_snr" and num_steps > 1:
        low, high = schedule.log_snr(torch.tensor(_LOG_SNR_ENDS[::-1], dtype=torch.float64)).tolist()
        levels = torch.linspace(low, high, num_steps, dtype=torch.float64)
        times[1:-1] = _time_at_log_snr(schedule, levels[1:])
    return shift * times / (1 + (shift - 1) * times)


def _time_at_log_snr(schedule: Schedule, level: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Inverse of the log-SNR, which falls with time, by bisection."""
    below, above = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(_NUM_BISECTIONS):
        middle = (below + above) / 2
        earlier = schedule.log_snr(middle) > level
        below, above = torch.where(earlier, middle, below), torch.where(earlier, above, middle)
    return (below + above) / 2


def ddim(
    denoise: Denoiser,
    schedule: Schedule,
    noise: Float[Tensor, "b c h w"],
    times: Times,
    noise_at_step: NoiseAtStep | None = None,
    eta: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """Sample with DDIM (Song et al. 2021, equation 12), for any alpha and sigma.

    noise: the latent at times[0] = 1, standard normal. eta: 0 is deterministic, 1 is ancestral sampling (DDPM).
    noise_at_step: standard normal noise that step i adds; needed when eta > 0. Returns the latent at times[-1].
    """
    assert (eta == 0) == (noise_at_step is None), "noise is added exactly when eta > 0"
    z = noise
    for step, (t, s) in enumerate(_steps(schedule, times)):
        z0_hat = denoise(z, _time(t.time, z))
        fresh = eta * _ancestral_std(t, s)
        kept = math.sqrt(max(s.sigma**2 - fresh**2, 0.0))
        z = s.alpha * z0_hat + kept / t.sigma * (z - t.alpha * z0_hat)
        if noise_at_step is not None:
            z = z + fresh * noise_at_step(step).to(z)
    return z


def dpm_solver_pp_2m(
    denoise: Denoiser, schedule: Schedule, noise: Float[Tensor, "b c h w"], times: Times
) -> Float[Tensor, "b c h w"]:
    """Sample with DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2), for any alpha and sigma.

    With h the step in half log-SNR and r = h_before / h, a step is z_s = (sigma_s / sigma_t) z_t + (alpha_s - alpha_t
    sigma_s / sigma_t) D, D = (1 + 1 / 2r) z0_hat - 1 / 2r z0_hat_before. The first step knows no earlier z0_hat, and
    after a start at alpha = 0 the earlier one is infinitely far (r = inf): both take D = z0_hat. So does a step to
    sigma = 0, across which (r = 0) no line in log-SNR can be drawn.

    noise: the latent at times[0] = 1, standard normal. Returns the latent at times[-1].
    """
    z, before, h_before = noise, noise, math.inf
    for t, s in _steps(schedule, times):
        z0_hat = denoise(z, _time(t.time, z))
        h = s.half_log_snr - t.half_log_snr
        ahead = 0.0 if math.isinf(h) or math.isinf(h_before) else h / h_before / 2
        direction = z0_hat + ahead * (z0_hat - before)
        z = s.sigma / t.sigma * z + (s.alpha - t.alpha * s.sigma / t.sigma) * direction
        before, h_before = z0_hat, h
    return z


class _State:
    """alpha, sigma and half log-SNR at one time, as Python floats: no step waits for a device."""

    def __init__(self, time: float, alpha: float, sigma: float) -> None:
        self.time, self.alpha, self.sigma = time, alpha, sigma
        log_alpha, log_sigma = (math.log(x) if x > 0 else -math.inf for x in (alpha, sigma))
        self.half_log_snr = log_alpha - log_sigma


def _steps(schedule: Schedule, times: Times) -> Iterator[tuple[_State, _State]]:
    times = times.double().cpu()
    alphas, sigmas = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    states = [_State(*numbers) for numbers in zip(times.tolist(), alphas, sigmas, strict=True)]
    return pairwise(states)


def _time(time: float, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    return torch.full((len(z),), time, dtype=z.dtype, device=z.device)


def _ancestral_std(t: _State, s: _State) -> float:
    """Standard deviation of z_s given z_t and z_0 (Ho et al. 2020, equation 7, for any alpha and sigma)."""
    variance = s.sigma**2 * (1 - (t.alpha / s.alpha * s.sigma / t.sigma) ** 2)
    return math.sqrt(max(variance, 0.0))


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
