"""The analytic bench: data whose denoiser, score, likelihood and classifier are known in closed form.

`Mixture` is a mixture of Gaussians, so at every time its noisy form is one too. Its `denoiser` keeps the contract of
`ldm.denoiser.model.diffusion.Denoiser`, on latents of any shape with as many entries as the data have dimensions.
`moments` follows a rule through Gaussian data without sampling: rules and the denoiser of a Gaussian are linear, so a
latent is a sum of noises with known factors, and mean and variance of the samples are exact. `SAMPLERS` has one of each
kind at least, for all that must hold for every sampler.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import samplers
from ldm.sampling.samplers.ancestral import DDIMParams, DDPMParams, EulerAncestralParams, EulerParams
from ldm.sampling.samplers.dpm_solver import DPMSolver2SParams, DPMSolverParams, DPMSolverSDEParams
from ldm.sampling.samplers.edm import EDMParams, HeunParams
from ldm.sampling.samplers.pndm import PLMSParams, PNDMParams
from ldm.sampling.samplers.reverse_sde import (
    AnnealedLangevinParams,
    EulerMaruyamaParams,
    PredictorCorrectorParams,
)
from ldm.sampling.samplers.rule import Rule, Step
from ldm.sampling.samplers.unipc import UniPCParams

SAMPLERS: dict[str, tuple[samplers.SamplerParams, int]] = {
    "ddpm, beta-tilde": (DDPMParams(kind="ddpm", variance=0), 1),
    "ddpm, beta": (DDPMParams(kind="ddpm", variance=1), 1),
    "ddim": (DDIMParams(kind="ddim", eta=0), 0),
    "ddim, ancestral": (DDIMParams(kind="ddim", eta=1), 1),
    "euler": (EulerParams(kind="euler"), 0),
    "euler_ancestral": (EulerAncestralParams(kind="euler_ancestral", eta=1), 1),
    "heun": (HeunParams(kind="heun"), 0),
    "edm": (EDMParams(kind="edm", churn=40, low=0.05, high=50, noise=1), 1),
    "plms": (PLMSParams(kind="plms"), 0),
    "pndm": (PNDMParams(kind="pndm"), 0),
    "dpm_solver_pp_2m": (DPMSolverParams(kind="dpm_solver_pp_2m"), 0),
    "dpm_solver_pp_2s": (DPMSolver2SParams(kind="dpm_solver_pp_2s"), 0),
    "dpm_solver_pp_sde_2m": (DPMSolverSDEParams(kind="dpm_solver_pp_sde_2m"), 1),
    "unipc, order 2": (UniPCParams(kind="unipc", order=2), 0),
    "unipc, order 3": (UniPCParams(kind="unipc", order=3), 0),
    "euler_maruyama": (EulerMaruyamaParams(kind="euler_maruyama"), 1),
    "annealed_langevin": (AnnealedLangevinParams(kind="annealed_langevin", snr=0.3, num_repeats=10), 10),
    "predictor_corrector": (PredictorCorrectorParams(kind="predictor_corrector", snr=0.16, num_corrections=1), 2),
}
"""Every kind of sampler, and how many noises a step of it asks for."""


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


Rows = npt.NDArray[np.float64]


def gaussian_denoiser(steps: Sequence[Step], mean: float, variance: float) -> Callable[[Rows, float], Rows]:
    """The exact denoiser of N(mean, variance) for latents as factors of (1, noises...): see `moments`."""
    first = steps[0][0]
    known = {state.time: state for step in steps for state in step}

    def denoise(z: Rows, time: float) -> Rows:
        t = known.get(time) or type(first)(first.schedule, time)
        gain = t.alpha * variance / (t.alpha**2 * variance + t.sigma**2)
        z0_hat = gain * z
        z0_hat[0] += (1 - gain * t.alpha) * mean
        return z0_hat

    return denoise


def moments(
    rule: Rule, steps: Sequence[Step], mean: float, variance: float, num_noises: int = 0
) -> tuple[float, float]:
    """Exact mean and variance of what a rule makes of the exact denoiser of N(mean, variance) and noise, which has the
    deviation of latents of unit data where the first step starts.

    num_noises: how many a rule may ask for, besides that which it starts from.
    """
    units, first = np.eye(2 + num_noises), steps[0][0]
    start = math.hypot(first.alpha, first.sigma) * units[1]
    final = rule(gaussian_denoiser(steps, mean, variance), start, steps, lambda number: units[2 + number])
    return float(final[0]), float((final[1:] ** 2).sum())


def divergence(mean: float, variance: float, of_mean: float, of_variance: float) -> float:
    """Kullback-Leibler divergence of N(mean, variance) from N(of_mean, of_variance), in nats."""
    ratio = variance / of_variance
    return (ratio - 1 - math.log(ratio) + (mean - of_mean) ** 2 / of_variance) / 2


def wasserstein(mean: float, variance: float, of_mean: float, of_variance: float) -> float:
    """Distance of optimal transport between two Gaussians of one dimension."""
    return math.hypot(mean - of_mean, math.sqrt(variance) - math.sqrt(of_variance))
