"""From noise to a latent: a sampler follows a denoiser. Each prompt has noise of its own."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import randomness
from ldm.denoiser.model import schedules
from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids
from ldm.sampling.samplers import Rule

NoiseAtStep = Callable[[int], Float[Tensor, "b c h w"]]


def no_noise(step: int) -> Float[Tensor, "b c h w"]:
    """For samplers that add no noise. AssertionError: one does."""
    raise AssertionError(f"step {step} adds noise")


def start(schedule: Schedule, noise: Float[Tensor, "b c h w"], time: float) -> Float[Tensor, "b c h w"]:
    """The latent at a time that sampling starts from, made of standard normal noise alone: the noise, with the
    deviation that the latents of unit data have at that time."""
    return schedules.deviation(*schedules.alpha_sigma(schedule.name, time)) * noise


def follow(
    rule: Rule,
    denoise: Denoiser,
    schedule: Schedule,
    z: Float[Tensor, "b c h w"],
    times: Sequence[float],
    noise_at_step: NoiseAtStep = no_noise,
) -> Float[Tensor, "b c h w"]:
    """From the latent at times[0], such as that of `start`, to that at times[-1]. Rising times lead from data to noise,
    by the rules that can (`Rule`). One time alone is no step."""

    def denoise_all(z: Float[Tensor, "b c h w"], time: float) -> Float[Tensor, "b c h w"]:
        return denoise(z, torch.full((len(z),), time, dtype=z.dtype, device=z.device))

    steps = list(grids.steps(schedule.name, times))
    return rule(denoise_all, z, steps, lambda step: noise_at_step(step).to(z)) if steps else z


def prompt_noise(seed: int, prompt_numbers: Sequence[int], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    """Standard normal noise that sampling starts from: each row a function of (seed, its prompt's number) alone."""
    return _noise(seed, "sample", prompt_numbers, shape)


def prompt_noise_at_step(seed: int, prompt_numbers: Sequence[int], shape: tuple[int, int, int]) -> NoiseAtStep:
    """Noise for samplers that add some: each row a function of (seed, its prompt's number, the noise's) alone."""
    return lambda step: _noise(seed, f"sample step {step}", prompt_numbers, shape)


def _noise(seed: int, purpose: str, numbers: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=randomness.generator(seed, purpose, n)) for n in numbers])
