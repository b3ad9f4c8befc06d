"""Improved DDPM (Nichol and Dhariwal 2021): the variance of a reverse step is learned, by a bound on the likelihood.

The network has a second output v, one number per entry. A denoiser is (z, t) -> z0_hat as ever: only `ddpm`, which can
use v, asks for it.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm.analytic.bound import Bound, bits, gaussian_kl, gaussian_nll, prior
from ldm.sampling.grids import State
from ldm.sampling.samplers.ancestral import forward_variance
from ldm.sampling.samplers.rule import Step

Estimate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A network: (z, t) -> (z0_hat, v), both of the shape of z."""
Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_0, mean, log variance) -> -log p(z_0), in nats per entry."""


class Chain:
    """The steps of a sampler, from noise to data, as the reverse of a chain of Gaussians; steps have its numbers.

    All tensors have an entry per step, in float64: `time`, `alpha` and `sigma` where it starts; `of_z` and `of_z0`, by
    which the posterior mean is of_z z_t + of_z0 z_0; `log_small` and `log_large`, the logarithms of its variance for
    one clean latent (beta-tilde) and of that of the forward step (beta). Of the last step beta-tilde is 0, and stands
    for that of the step before (section 3.1).
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        assert len(steps) > 1 and steps[-1][1].sigma == 0, "at least two steps, the last of which ends at data"
        starts = [(t.time, t.alpha, t.sigma) for t, _ in steps]
        self.time, self.alpha, self.sigma = torch.tensor(starts, dtype=torch.float64).unbind(1)
        posteriors = torch.tensor([_posterior(t, s) for t, s in steps], dtype=torch.float64)
        self.of_z, self.of_z0, small, large = posteriors.unbind(1)
        small[-1] = small[-2]
        self.log_small, self.log_large = small.log(), large.log()

    def __len__(self) -> int:
        return len(self.time)

    def log_variance(self, v: Float[Tensor, "b *shape"], step: Int[Tensor, " b"]) -> Float[Tensor, "b *shape"]:
        """Between the two bounds in the logarithm, and beyond them if v is (equation 15)."""
        small, large = (_rows(bound, step, v) for bound in (self.log_small, self.log_large))
        return v * large + (1 - v) * small

    def noisy(
        self, z0: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], step: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """The latent where a step starts."""
        return _rows(self.alpha, step, z0) * z0 + _rows(self.sigma, step, z0) * noise

    def terms(
        self, z0: Tensor, z: Tensor, z0_hat: Tensor, v: Tensor, step: Int[Tensor, " b"], decoder: Decoder = gaussian_nll
    ) -> Float[Tensor, " b"]:
        """Bits per dimension that a step adds to the bound: the divergence of the posterior, which knows z_0, from the
        reverse step; for the last step -log p(z_0) by the decoder (Ho et al. 2020, equation 5)."""
        of_z, of_z0 = _rows(self.of_z, step, z), _rows(self.of_z0, step, z)
        mean, log_variance = of_z * z + of_z0 * z0_hat, self.log_variance(v, step)
        divergence = gaussian_kl(of_z * z + of_z0 * z0, _rows(self.log_small, step, z), mean, log_variance)
        at_data = _rows(torch.arange(len(self)) == len(self) - 1, step, z)
        return bits(torch.where(at_data, decoder(z0, mean, log_variance), divergence))

    def bound(
        self,
        estimate: Estimate,
        z0: Float[Tensor, "b *shape"],
        generator: torch.Generator,
        decoder: Decoder = gaussian_nll,
    ) -> Bound:
        """The whole bound, with fresh noise for every step."""
        terms: list[Tensor] = []
        for number in range(len(self)):
            step = torch.full((len(z0),), number)
            z = self.noisy(z0, torch.randn(z0.shape, dtype=z0.dtype, generator=generator), step)
            terms.append(self.terms(z0, z, *estimate(z, self.time[step]), step, decoder))
        start = prior(z0, float(self.alpha[0]), float(self.sigma[0]))
        return Bound(start, terms[-1], torch.stack(terms[:-1]).sum(0))


def _posterior(t: State, s: State) -> tuple[float, float, float, float]:
    beta, left = forward_variance(t, s), (s.sigma / t.sigma) ** 2
    return t.alpha / s.alpha * left, s.alpha * beta / t.sigma**2, beta * left, beta


def _rows(numbers: Tensor, step: Int[Tensor, " b"], like: Tensor) -> Tensor:
    """The number of each row's step, so that it broadcasts over `like`."""
    return numbers[step].reshape(-1, *[1] * (like.dim() - 1))


def simple_losses(
    chain: Chain, z0_hat: Tensor, z0: Float[Tensor, "b *shape"], step: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """L_simple of every row: squared error of the noise estimate (Ho et al. 2020, equation 14)."""
    return (_rows(chain.alpha / chain.sigma, step, z0) * (z0_hat - z0)).square().flatten(1).mean(1)


def hybrid_losses(
    estimate: Estimate,
    chain: Chain,
    z0: Float[Tensor, "b *shape"],
    noise: Float[Tensor, "b *shape"],
    step: Int[Tensor, " b"],
    weight: float = 0.001,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """L_simple and weight times the bound of every row, to be added (equation 16).

    The bound teaches v alone: z0_hat takes part in it as a constant. A row's term stands for all steps.
    """
    z = chain.noisy(z0, noise, step)
    z0_hat, v = estimate(z, chain.time[step])
    terms = chain.terms(z0, z, z0_hat.detach(), v, step)
    return simple_losses(chain, z0_hat, z0, step), weight * len(chain) * terms


class LearnedVariance:
    """A network with both outputs: a `Denoiser` for every sampler, and the noise of a step for `ddpm`.

    `ddpm(denoise, ..., variance=denoise.noise)` asks twice at each latent; the second answer is kept from the first.
    """

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self._last: tuple[Tensor, float, tuple[Tensor, Tensor]] | None = None

    def __call__(self, z: Float[Tensor, "b *shape"], t: Float[Tensor, " b"]) -> Float[Tensor, "b *shape"]:
        """z0_hat."""
        return self._answer(z, t)[0]

    def noise(self, z: Float[Tensor, "b *shape"], step: Step, noise: Tensor) -> Float[Tensor, "b *shape"]:
        """Standard normal noise times the deviation that v gives each entry."""
        t, s = step
        _, v = self._answer(z, z.new_full((len(z),), t.time))
        return math.sqrt(forward_variance(t, s)) * (s.sigma / t.sigma) ** (1 - v) * noise

    def _answer(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        time = float(t[0])
        if self._last is None or self._last[0] is not z or self._last[1] != time:
            self._last = (z, time, self._estimate(z, t))
        return self._last[2]


class ImportanceSteps:
    """Steps drawn in proportion to the root mean square of their last losses (equation 18), evenly until all have
    enough."""

    def __init__(self, num_steps: int, num_kept: int = 10, floor: float = 0.001) -> None:
        """floor: share of the draws that stay even, so that no step is forgotten."""
        self._kept: list[deque[float]] = [deque(maxlen=num_kept) for _ in range(num_steps)]
        self._floor = floor

    @property
    def probabilities(self) -> Float[Tensor, " steps"]:
        """Of every step."""
        even = torch.full((len(self._kept),), 1 / len(self._kept), dtype=torch.float64)
        if any(len(losses) != losses.maxlen for losses in self._kept):
            return even
        sizes = torch.tensor([list(losses) for losses in self._kept], dtype=torch.float64).square().mean(1).sqrt()
        return (1 - self._floor) * sizes / sizes.sum() + self._floor * even

    def draw(self, num: int, generator: torch.Generator) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        """Steps, and weights with which the mean of losses is on average that of evenly drawn steps."""
        probabilities = self.probabilities
        step = torch.multinomial(probabilities, num, replacement=True, generator=generator)
        return step, 1 / (len(probabilities) * probabilities[step])

    def record(self, step: Int[Tensor, " b"], losses: Float[Tensor, " b"]) -> None:
        """Remember unweighted losses, in place of the oldest."""
        for number, loss in zip(step.tolist(), losses.tolist(), strict=True):
            self._kept[number].append(loss)
