"""Samplers: params and rule of each, and `build`, which chooses among them. A new sampler changes only this file.

A rule follows a denoiser through times. It knows no network, schedule, guidance or task. It only adds latents and
multiplies them by numbers, so it runs on tensors and on NumPy arrays, and nothing here imports torch: `ldm check` runs
the same rules to follow a network's errors to the samples. Steps are written in alpha and sigma, not in their ratio, so
they hold where alpha = 0 (t = 1 of a schedule that ends in pure noise) and where sigma = 0 (t = 0).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, Protocol, Self, TypeVar, get_args

from pydantic import Field

from ldm.core.config import Section
from ldm.sampling.grids import State

Step = tuple[State, State]
"""The states where a step starts and ends."""


class Latent(Protocol):
    """What a rule does with latents."""

    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def __rmul__(self, factor: float, /) -> Self: ...


Z = TypeVar("Z", bound=Latent)


class Rule(Protocol):
    """A sampler: from the latent where the first step starts to that where the last one ends. It is linear in latents,
    and asks at times that do not depend on them."""

    def __call__(
        self, denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z]
    ) -> Z:
        """denoise: (z, time) -> z0_hat. z: standard normal noise if the first step starts at time 1. noise_at_step:
        standard normal noise of step i, for a rule that adds some."""
        ...


class DDIMParams(Section):
    """DDIM (Song et al. 2021): first order, may add noise."""

    kind: Literal["ddim"]
    """Its name."""
    eta: float = Field(ge=0, le=1)
    """Noise that a step adds: 0 = none, 1 = ancestral sampling."""


def ddim(
    denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z], eta: float = 0.0
) -> Z:
    """DDIM (Song et al. 2021, equation 12) for any alpha and sigma. eta: 0 is deterministic, 1 is ancestral sampling
    (DDPM; Ho et al. 2020, equation 7)."""
    for step, (t, s) in enumerate(steps):
        z0_hat = denoise(z, t.time)
        # eta times the deviation of z_s given z_t and z_0.
        fresh = eta * math.sqrt(max(s.sigma**2 * (1 - (t.alpha / s.alpha * s.sigma / t.sigma) ** 2), 0.0))
        kept = math.sqrt(max(s.sigma**2 - fresh**2, 0.0))
        z = s.alpha * z0_hat + kept / t.sigma * (z - t.alpha * z0_hat)
        if eta > 0:
            z = z + fresh * noise_at_step(step)
    return z


class DPMSolverParams(Section):
    """DPM-Solver++(2M) (Lu et al. 2022): second order, adds no noise."""

    kind: Literal["dpm_solver_pp_2m"]
    """Its name."""


def dpm_solver_pp_2m(
    denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z]
) -> Z:
    """DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2) for any alpha and sigma.

    With h the step in half log-SNR and r = h_before / h, a step is z_s = (sigma_s / sigma_t) z_t + (alpha_s - alpha_t
    sigma_s / sigma_t) D, D = (1 + 1 / 2r) z0_hat - 1 / 2r z0_hat_before. The first step knows no earlier z0_hat, and
    after a start at alpha = 0 the earlier one is infinitely far (r = inf): both take D = z0_hat. So does a step to
    sigma = 0, across which (r = 0) no line in log-SNR can be drawn.
    """
    before, h_before = z, math.inf
    for t, s in steps:
        z0_hat = denoise(z, t.time)
        h = s.half_log_snr - t.half_log_snr
        ahead = 0.0 if math.isinf(h) or math.isinf(h_before) else h / h_before / 2
        direction = z0_hat + ahead * (z0_hat - before)
        z = s.sigma / t.sigma * z + (s.alpha - t.alpha * s.sigma / t.sigma) * direction
        before, h_before = z0_hat, h
    return z


SamplerParams = Annotated[DDIMParams | DPMSolverParams, Field(discriminator="kind")]


def build(params: SamplerParams) -> Rule:
    """The sampler that the params describe."""
    match params:
        case DDIMParams():
            return partial(ddim, eta=params.eta)
        case DPMSolverParams():
            return dpm_solver_pp_2m


def forms() -> list[str]:
    """How each sampler is named in one word, such as ddim,eta=VALUE."""
    kinds: tuple[type[Section], ...] = get_args(get_args(SamplerParams)[0])
    fields = [dict(kind.model_fields) for kind in kinds]
    names = [get_args(field.pop("kind").annotation)[0] for field in fields]
    return [",".join([name, *(f"{key}=VALUE" for key in field)]) for name, field in zip(names, fields, strict=True)]
