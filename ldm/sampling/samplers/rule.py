"""What every sampler is: a rule that follows a denoiser through times.

A rule knows no network, schedule, guidance or task. It only adds latents and multiplies them by numbers, so it runs on
tensors and on NumPy arrays, and nothing here imports torch: `ldm check` runs the same rules to follow a network's
errors to the samples. Steps are written in alpha and sigma, not in their ratio, so they hold where alpha = 0 (t = 1 of
a schedule that ends in pure noise) and where sigma = 0 (t = 0).
"""

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

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
        """denoise: (z, time) -> z0_hat. z: the latent where the first step starts; at time 1 that is noise with the
        deviation that the schedule has there (`trajectory.start`). noise_at_step: standard normal noise by number, for
        a rule that adds some; a rule that needs n per step counts i n, i n + 1, ... in step i.

        Times fall. `ddim` with eta 0, `heun`, `plms` and `pndm` also follow rising times, from data to noise.
        """
        ...


def noise_in(z: Z, z0_hat: Z, t: State) -> Z:
    """The noise in z if z0_hat is its clean latent. At sigma = 0 it is 0, to which sigma times the score tends."""
    return (1 / t.sigma if t.sigma > 0 else 0.0) * (z - t.alpha * z0_hat)


def moved(z0_hat: Z, noise_hat: Z, average: Z, t: State, s: State) -> Z:
    """z_s if z_t has this clean latent and noise, and `average` is the noise estimate on the way from t to s.

    With x = z / alpha and S = sigma / alpha the probability flow is dx / dS = noise_hat (Song et al. 2021, DDIM,
    equation 14), so x_s = x_t + (S_s - S_t) average. From alpha = 0, where S is infinite, noise_hat is the average.
    """
    z = s.alpha * z0_hat + s.sigma * noise_hat
    return z if t.alpha == 0 else z + (s.sigma - s.alpha / t.alpha * t.sigma) * (average - noise_hat)
