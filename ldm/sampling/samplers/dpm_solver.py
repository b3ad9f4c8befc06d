"""DPM-Solver++ (Lu et al. 2022): solvers that are exact in alpha and sigma and approximate z0_hat over half log-SNR."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from ldm.core.config import Section
from ldm.sampling.samplers.rule import Rule, Step, Z


class DPMSolverParams(Section):
    """DPM-Solver++(2M) (Lu et al. 2022): second order, adds no noise."""

    kind: Literal["dpm_solver_pp_2m"]
    """Its name."""

    def rule(self) -> Rule:
        """Its rule."""
        return dpm_solver_pp_2m


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


class DPMSolver2SParams(Section):
    """DPM-Solver++(2S) (Lu et al. 2022): second order, adds no noise, two evaluations per step and no past."""

    kind: Literal["dpm_solver_pp_2s"]
    """Its name."""

    def rule(self) -> Rule:
        """Its rule."""
        return dpm_solver_pp_2s


def dpm_solver_pp_2s(
    denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z]
) -> Z:
    """DPM-Solver++(2S) (Lu et al. 2022, "DPM-Solver++", algorithm 1) with r = 1/2, for any alpha and sigma.

    z0_hat is asked again in the middle of the step in half log-SNR, and that answer makes the whole step. A step from
    alpha = 0 or to sigma = 0 has no middle, and takes the first answer.
    """
    for t, s in steps:
        z0_hat, h = denoise(z, t.time), s.half_log_snr - t.half_log_snr
        if math.isfinite(h):
            m = t.at(t.half_log_snr + h / 2)
            z0_hat = denoise(m.sigma / t.sigma * z + (m.alpha - t.alpha * m.sigma / t.sigma) * z0_hat, m.time)
        z = s.sigma / t.sigma * z + (s.alpha - t.alpha * s.sigma / t.sigma) * z0_hat
    return z


class DPMSolverSDEParams(Section):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022): second order in z0_hat, adds noise."""

    kind: Literal["dpm_solver_pp_sde_2m"]
    """Its name."""

    def rule(self) -> Rule:
        """Its rule."""
        return dpm_solver_pp_sde_2m


def dpm_solver_pp_sde_2m(
    denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z]
) -> Z:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", section on SDEs) for any alpha and sigma.

    With q = exp(-h) = (alpha_t / sigma_t) (sigma_s / alpha_s), a step is z_s = (sigma_s / sigma_t) q z_t + alpha_s
    (1 - q^2) D + sigma_s sqrt(1 - q^2) noise, with the D of 2M. Where D is z0_hat this is DDIM with eta 1.
    """
    before, h_before = z, math.inf
    for step, (t, s) in enumerate(steps):
        z0_hat = denoise(z, t.time)
        h = s.half_log_snr - t.half_log_snr
        ahead = 0.0 if math.isinf(h) or math.isinf(h_before) else h / h_before / 2
        q = t.alpha / t.sigma * s.sigma / s.alpha
        z = s.sigma / t.sigma * q * z + s.alpha * (1 - q**2) * (z0_hat + ahead * (z0_hat - before))
        if s.sigma > 0:
            z = z + s.sigma * math.sqrt(1 - q**2) * noise_at_step(step)
        before, h_before = z0_hat, h
    return z


Params = DPMSolverParams | DPMSolver2SParams | DPMSolverSDEParams
