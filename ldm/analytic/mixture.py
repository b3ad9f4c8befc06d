"""Mixtures of Gaussians: data whose denoiser, score, likelihood and classifier are known in closed form.

At every time the noisy form of a mixture is a mixture too. Its `denoiser` keeps the contract of
`ldm.denoiser.model.diffusion.Denoiser`, on latents of any shape with as many entries as the data have dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule


@dataclass(frozen=True)
class Mixture:
    """Component k has weight weights[k] (sum 1), mean means[k] (d) and covariance covariances[k] (d d), in float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def gaussian(cls, mean: Sequence[float], covariance: Sequence[Sequence[float]]) -> "Mixture":
        """One component."""
        return cls.of([1.0], [mean], [covariance])

    @classmethod
    def of(
        cls,
        weights: Sequence[float],
        means: Sequence[Sequence[float]],
        covariances: Sequence[Sequence[Sequence[float]]],
    ) -> "Mixture":
        """From plain numbers."""
        return cls(*(torch.tensor(x, dtype=torch.float64) for x in (weights, means, covariances)))

    @property
    def mean(self) -> Tensor:
        """(d)"""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """(d d): within the components and between their means."""
        apart = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covariances + apart[:, :, None] * apart[:, None, :])

    def component(self, k: int) -> "Mixture":
        """Component k alone: the data of class k."""
        return Mixture(torch.ones(1, dtype=torch.float64), self.means[k : k + 1], self.covariances[k : k + 1])

    def noisy(self, alpha: float, sigma: float) -> "Mixture":
        """The distribution of alpha z_0 + sigma noise."""
        noise = sigma**2 * torch.eye(self.means.shape[1], dtype=torch.float64)
        return Mixture(self.weights, alpha * self.means, alpha**2 * self.covariances + noise)

    def samples(self, num: int, generator: torch.Generator) -> Tensor:
        """(num d)"""
        chosen = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        noise = torch.randn(num, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[chosen] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(self.covariances)[chosen], noise)

    def _log_parts(self, z: Tensor) -> Tensor:
        """(n k): logarithm of weight times density of every component."""
        factors = torch.linalg.cholesky(self.covariances)
        apart = z[:, None, :] - self.means
        whitened = torch.linalg.solve_triangular(factors, apart[..., None], upper=False)[..., 0]
        log_size = factors.diagonal(dim1=1, dim2=2).log().sum(1) + z.shape[1] / 2 * math.log(2 * math.pi)
        return self.weights.log() - log_size - whitened.square().sum(-1) / 2

    def log_density(self, z: Tensor) -> Tensor:
        """(n), natural logarithm."""
        return self._log_parts(z).logsumexp(1)

    def classify(self, z: Tensor) -> Tensor:
        """(n k): probability of every component given z (n d)."""
        return self._log_parts(z).softmax(1)

    def score(self, z: Tensor) -> Tensor:
        """(n d): gradient of the log density."""
        return torch.einsum("nk,kij,nkj->ni", self.classify(z), self.covariances.inverse(), self.means - z[:, None, :])

    def denoised(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[z_0 | alpha z_0 + sigma noise = z], (n d): the posterior mean of each component, weighted by its odds."""
        noisy = self.noisy(alpha, sigma)
        gains = alpha * self.covariances @ noisy.covariances.inverse()
        means = self.means + torch.einsum("kij,nkj->nki", gains, z[:, None, :] - noisy.means)
        return torch.einsum("nk,nki->ni", noisy.classify(z), means)

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """The exact denoiser under a schedule, in the dtype of z; all rows of a call are at one time."""

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            time = t[:1].double()
            assert bool((t == t[0]).all()), "rows at several times"
            alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
            return self.denoised(z.double().flatten(1), alpha, sigma).reshape(z.shape).to(z.dtype)

        return denoise
