"""Figures of the forward process: schedules, what a network predicts, and the times of samplers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ldm.denoiser.model.schedules import Prediction, ScheduleName, alpha_sigma, z0_weights
from ldm.sampling import grids
from ldm.tools.figures import style

Numbers = npt.NDArray[np.float64]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
SPACINGS: tuple[grids.Spacing, ...] = get_args(grids.Spacing)
_NUM_TIMES = 501
_LOG_SNR_SHOWN = 15


@dataclass(frozen=True)
class Curves:
    """A schedule at `times`: factors of signal and noise, and log(alpha^2 / sigma^2)."""

    times: Numbers
    alpha: Numbers
    sigma: Numbers
    log_snr: Numbers


def schedules() -> dict[ScheduleName, Curves]:
    """Every schedule, from data (time 0) to noise (time 1)."""
    times = np.linspace(0, 1, _NUM_TIMES)
    return {name: _curves(name, times) for name in SCHEDULES}


def _curves(name: ScheduleName, times: Numbers) -> Curves:
    alpha, sigma = np.array([alpha_sigma(name, float(t)) for t in times]).T
    with np.errstate(divide="ignore"):
        return Curves(times, alpha, sigma, 2 * (np.log(alpha) - np.log(sigma)))


def draw_schedules(curves: Mapping[ScheduleName, Curves]) -> Any:
    """A panel each for alpha, sigma and log-SNR."""
    figure, ((left, middle, right),) = style.panels(1, 3, 2.9)
    for line, (name, curve) in zip(style.LINES, curves.items(), strict=False):
        left.plot(curve.times, curve.alpha, label=name, **line)
        middle.plot(curve.times, curve.sigma, **line)
        right.plot(curve.times, curve.log_snr, **line)
    left.set(title=r"signal: $\alpha(t)$", ylim=(-0.03, 1.03))
    beyond = [f"; {name} goes on to {curve.sigma[-1]:g}" for name, curve in curves.items() if curve.sigma[-1] > 1.03]
    middle.set(title=r"noise: $\sigma(t)$" + "".join(beyond), ylim=(-0.03, 1.03))
    right.set(title=r"log-SNR: $\log(\alpha^2 / \sigma^2)$", ylim=(-_LOG_SNR_SHOWN, _LOG_SNR_SHOWN))
    for panel in (left, middle, right):
        panel.set(xlabel="time t (0 = data, 1 = noise)", xlim=(0, 1))
    figure.legend(loc="outside lower center", ncols=len(curves))
    return figure


def amplifications(curves: Curves) -> dict[Prediction, Numbers]:
    """For each prediction, |q| of z0_hat = p z_t + q prediction: how much larger its error is in z0_hat."""
    pairs = list(zip(curves.alpha.tolist(), curves.sigma.tolist(), strict=True))
    return {
        name: np.array([abs(z0_weights(a, s, name)[1]) if a > 0 or name != "eps" else np.inf for a, s in pairs])
        for name in PREDICTIONS
    }


def predictions() -> tuple[ScheduleName, Curves, dict[Prediction, Numbers]]:
    """A schedule of the textbooks, its curves and the amplification of each prediction's error."""
    curves = _curves("cosine", np.linspace(0, 1, _NUM_TIMES))
    return "cosine", curves, amplifications(curves)


def draw_predictions(data: tuple[ScheduleName, Curves, dict[Prediction, Numbers]]) -> Any:
    """One curve per prediction."""
    name, curves, errors = data
    figure, ((panel,),) = style.panels(1, 1, 2.8)
    for line, (prediction, error) in zip(style.LINES, errors.items(), strict=False):
        panel.plot(curves.times, error, label=prediction, **line)
    panel.set(
        xlim=(0, 1),
        ylim=(0, 3),
        xlabel="time t (0 = data, 1 = noise)",
        ylabel="error of $\\hat{z}_0$\n/ error of the prediction",
    )
    panel.set_title(f"What an error of the prediction becomes in the clean latent ({name} schedule)")
    panel.legend(title="the network predicts", ncols=2)
    return figure


@dataclass(frozen=True)
class Grid:
    """The times of a sampler, and the log-SNR at them."""

    times: list[float]
    log_snr: list[float]


def spacings(schedule: ScheduleName = "cosine", num_steps: int = 12) -> dict[str, Grid]:
    """Every spacing, and `uniform` with times shifted towards noise."""
    found = {spacing: grids.times(schedule, num_steps, spacing, 1.0) for spacing in SPACINGS}
    shifted = {"uniform, shift 3": grids.times(schedule, num_steps, "uniform", 3.0)}
    return {name: _grid(schedule, times) for name, times in (found | shifted).items()}


def _grid(schedule: ScheduleName, times: Sequence[float]) -> Grid:
    return Grid(list(times), [2 * grids.State(schedule, t).half_log_snr for t in times])


def draw_spacings(data: Mapping[str, Grid]) -> Any:
    """A row of points for each spacing, over time and over log-SNR."""
    figure, ((left, right),) = style.panels(1, 2, 2.9, sharey=True)
    for row, (line, grid) in enumerate(zip(style.LINES, data.values(), strict=False)):
        for panel, places in ((left, grid.times), (right, grid.log_snr)):
            shown = [place for place in places if abs(place) <= _LOG_SNR_SHOWN]
            panel.plot(shown, [row] * len(shown), "o", color=line["color"], markersize=4.5, clip_on=False)
    left.set(yticks=range(len(data)), yticklabels=list(data), xlim=(1, 0), xlabel="time t (the sampler goes right)")
    right.set(xlim=(-_LOG_SNR_SHOWN, _LOG_SNR_SHOWN), xlabel="log-SNR (its ends are not shown)")
    left.invert_yaxis()
    return figure
