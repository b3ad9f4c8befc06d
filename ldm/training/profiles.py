"""Averages of weights by power functions: what each step counts in them, and how one is made of others.

After t updates, the average of exponent g gives the weights after update s the share (s^(g+1) - (s-1)^(g+1)) / t^(g+1),
the integral over that step of its *profile*: the density (g+1) x^g / t^(g+1) on 0 <= x <= t (Karras et al. 2024,
"Analyzing and Improving the Training Dynamics of Diffusion Models", section 3). It forgets the start, and its *length*,
the standard deviation of the profile as a share of t, stays as it is however long the training gets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

Base = tuple[int, float]
"""An average: after how many updates, and its length."""

MIN_LENGTH, MAX_LENGTH = 0.005, 0.28
"""Of an average. No exponent gives 0.289, which is the mean over all updates."""
MAX_MISFIT = 0.1
"""Of a `Mixture` that is good enough. Weights change slowly, so they come out nearer than this: at 0.1, about 1e-3."""


@dataclass(frozen=True)
class Mixture:
    """How one average is made of others: `sum(share * average)`."""

    shares: list[float]
    """One for each of the others; they add up to 1."""
    misfit: float
    """L2 distance between the profile wanted and that of the mixture, relative to the norm of the one wanted."""


@cache
def exponent_of(length: float) -> float:
    """The exponent g of a length from `MIN_LENGTH` to `MAX_LENGTH`: length^2 = (g+1) / ((g+2)^2 (g+3)) (equation 3)."""
    low, high = 0.0, 1 / length  # the length falls with g, and is less than 1 / g
    for _ in range(200):
        middle = (low + high) / 2
        is_longer = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > length**2
        low, high = (middle, high) if is_longer else (low, middle)
    return low


def decay_at(step: int, length: float) -> float:
    """What is left of the average at the update from `step` to `step + 1` (equation 4); 0 at the first update."""
    return (step / (step + 1)) ** (exponent_of(length) + 1)


def mixture(bases: Sequence[Base], step: int, length: float) -> Mixture:
    """The mixture of `bases` that is nearest to the average of `length` after `step` updates: least squares over
    profiles (their appendix C.2), under the condition, which is ours, that the shares add up to 1.

    Without the condition an average of constant weights would not be these weights, and that is most of the error.
    """
    import numpy as np

    wanted = (1.0, exponent_of(length))
    parts = [(after / step, exponent_of(each)) for after, each in bases]  # in units of `step`, for the condition number
    products = np.array([[_product(*a, *b) for b in parts] for a in parts])
    aims = np.array([_product(*a, *wanted) for a in parts])
    border = np.ones((len(parts), 1))
    system = np.block([[products, border], [border.T, np.zeros((1, 1))]])
    shares = np.linalg.lstsq(system, np.append(aims, 1.0), rcond=1e-12)[0][:-1]
    norm = _product(*wanted, *wanted)
    distance = max(0.0, float(shares @ products @ shares - 2 * shares @ aims) + norm)
    return Mixture(shares.tolist(), (distance / norm) ** 0.5)


def _product(end: float, exponent: float, other_end: float, other_exponent: float) -> float:
    """The inner product of two profiles, given by where they end and their exponents."""
    if end > other_end:
        end, exponent, other_end, other_exponent = other_end, other_exponent, end, exponent
    factor = (exponent + 1) * (other_exponent + 1) / (exponent + other_exponent + 1)
    return factor * (end / other_end) ** other_exponent / other_end
