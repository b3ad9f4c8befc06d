"""The probability flow by a solver that chooses its own steps, and the likelihood that it gives.

The flow is the ordinary differential equation whose solutions have the same distribution at every time as the forward
process (Song et al. 2021, score-based SDE, section 4.3). It is solved over the angle a = atan2(sigma, alpha) for u =
z / sqrt(alpha^2 + sigma^2), where every schedule has the same equation, finite at pure noise:

    du / da = (cos(a) u - z0_hat) / sin(a)

This is no kind of sampler: its steps depend on the latents, so `ldm check` could not follow a network's errors through
it. What it makes is what `heun` or `unipc` make with many steps. SciPy measures its error over the whole batch, so a
latent depends on its batch within the tolerance.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids

NEAR_DATA = 1e-3
"""Time that stands for 0, where the flow has no slope that a network could give."""

Slope = Callable[[Tensor, float], Tensor]


def solve(
    denoise: Denoiser,
    schedule: Schedule,
    z: Float[Tensor, "b c h w"],
    first: float,
    last: float,
    tolerance: float,
) -> Float[Tensor, "b c h w"]:
    """The latent at time `last` from that at `first`, either way; times below `NEAR_DATA` count as it.

    A last time of 0 ends with z0_hat, as every sampler does. Noise at a first time of 1 has the deviation that
    `ldm.sampling.trajectory.start` gives it. tolerance: relative and absolute, of every step.
    """
    start, end = (grids.State(schedule.name, max(time, NEAR_DATA)) for time in (first, last))
    with torch.no_grad():
        flow = _Flow(denoise, schedule)
        u = _integrate(flow.slope, z / math.hypot(start.alpha, start.sigma), start, end, tolerance)
        return flow.denoised(u, _angle(end)) if last == 0 else math.hypot(end.alpha, end.sigma) * u


def bits_per_dimension(
    denoise: Denoiser,
    schedule: Schedule,
    z0: Float[Tensor, "b c h w"],
    probes: Float[Tensor, "probes b c h w"],
    tolerance: float,
) -> Float[Tensor, " b"]:
    """-log2 p(z_0) over the number of dimensions, of clean latents.

    log p(z_0) is the log density of the noise that z_0 flows to, and the integral of the divergence on the way (Song et
    al. 2021, equation 39). The divergence is estimated by its probes, numbers of mean 0 and variance 1, such as signs
    (Skilling 1989, Hutchinson 1990), the same ones along the way; their mean over draws is exact.
    """
    flow = _Flow(denoise, schedule)
    start, end = grids.State(schedule.name, NEAR_DATA), grids.State(schedule.name, 1.0)

    def slope(state: Tensor, angle: float) -> Tensor:
        with torch.enable_grad():
            u = state[:, :-1].reshape(z0.shape).detach().requires_grad_()
            change = flow.slope(u, angle)
            products = [torch.autograd.grad((change * v).sum(), u, retain_graph=True)[0] * v for v in probes]
        divergence = torch.stack(products).flatten(2).sum(2).mean(0)
        return torch.cat([change.detach().flatten(1), divergence[:, None]], 1)

    state = torch.cat([z0.flatten(1) / math.hypot(start.alpha, start.sigma), z0.new_zeros(len(z0), 1)], 1)
    final = _integrate(slope, state, start, end, tolerance)
    num_dimensions = z0[0].numel()
    log_noise = -final[:, :-1].square().sum(1) / 2 - num_dimensions / 2 * math.log(2 * math.pi)
    # The density of z is that of u over the factor between them, in every dimension.
    log_density = log_noise + final[:, -1] - num_dimensions * math.log(math.hypot(start.alpha, start.sigma))
    return -log_density / math.log(2) / num_dimensions


class _Flow:
    """The slope of u at an angle."""

    def __init__(self, denoise: Denoiser, schedule: Schedule) -> None:
        self.denoise, self.schedule = denoise, schedule

    def denoised(self, u: Tensor, angle: float) -> Tensor:
        # The log-SNR is the same for all that has this angle, so it names the time.
        level = math.log(math.cos(angle) / math.sin(angle)) if math.cos(angle) > 1e-12 else -math.inf
        t = grids.State(self.schedule.name, 1.0).at(level)
        return self.denoise(math.hypot(t.alpha, t.sigma) * u, u.new_full((len(u),), t.time))

    def slope(self, u: Tensor, angle: float) -> Tensor:
        return (math.cos(angle) * u - self.denoised(u, angle)) / math.sin(angle)


def _angle(state: grids.State) -> float:
    return math.atan2(state.sigma, state.alpha)


def _integrate(slope: Slope, u: Tensor, start: grids.State, end: grids.State, tolerance: float) -> Tensor:
    """By Dormand and Prince's method of order 5 (`RK45` of SciPy), in float64 between the calls."""
    # Imported here: it takes half a second, which commands that need no likelihood should not wait for.
    from scipy.integrate import solve_ivp

    def right_side(angle: float, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return slope(torch.from_numpy(values).reshape(u.shape).to(u), angle).detach().double().flatten().cpu().numpy()

    initial = u.detach().double().flatten().cpu().numpy()
    solution = solve_ivp(right_side, (_angle(start), _angle(end)), initial, rtol=tolerance, atol=tolerance)
    assert solution.success, solution.message
    return torch.from_numpy(solution.y[:, -1].copy()).reshape(u.shape).to(u)
