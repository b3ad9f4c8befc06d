"""Figures of mixtures of Gaussians, whose denoiser, score and classifier are exact: what is seen is diffusion itself,
without the errors of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm import randomness
from ldm.analytic.mixture import Mixture
from ldm.denoiser.model.diffusion import Schedule
from ldm.sampling import grids, trajectory
from ldm.sampling.guidance import rules
from ldm.sampling.samplers import Rule
from ldm.sampling.samplers.ancestral import ddim, ddpm
from ldm.sampling.samplers.dpm_solver import dpm_solver_pp_2m
from ldm.sampling.samplers.edm import heun
from ldm.sampling.samplers.reverse_sde import annealed_langevin
from ldm.tools.figures import style
from ldm.tools.figures.recording import recorded

Numbers = npt.NDArray[np.float64]
FLOW = Schedule("flow")
_SEED = 0
_CELLS = 101


@dataclass(frozen=True)
class Field:
    """Density and score of a distribution in the plane, at the points of a square grid of -limit..limit."""

    limit: float
    density: Numbers
    """[y, x], 1 at the mode."""
    places: Numbers
    """[n, 2], the points of a coarser grid."""
    scores: Numbers
    """[n, 2]"""


def field(mixture: Mixture, limit: float, num_arrows: int = 13) -> Field:
    """The field of a mixture."""
    density = mixture.log_density(_square(limit, _CELLS)).exp().reshape(_CELLS, _CELLS).numpy()
    places = _square(limit * (1 - 1 / num_arrows), num_arrows)
    return Field(limit, density / density.max(), places.numpy(), mixture.score(places).numpy())


def _square(limit: float, num: int) -> Tensor:
    axis = torch.linspace(-limit, limit, num, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def _draw_density(panel: Any, found: Field) -> None:
    axis = np.linspace(-found.limit, found.limit, len(found.density))
    style.shade(panel, axis, axis, found.density)
    style.bare(panel, found.limit)


def _draw_arrows(panel: Any, found: Field) -> None:
    """Arrows along the score; their length is the square root of its size, so that small ones are seen."""
    size = np.linalg.norm(found.scores, axis=1, keepdims=True)
    arrows = found.scores / np.sqrt(size) / np.sqrt(size.max())
    step = 2 * found.limit / len(found.places) ** 0.5
    style.arrows(panel, found.places, 1.1 * step * arrows)


def _noise(num: int, size: int, *purpose: str | int) -> Tensor:
    return torch.randn(num, size, 1, 1, dtype=torch.float64, generator=randomness.generator(_SEED, *purpose))


def _path(
    rule: Rule, mixture: Mixture, z: Tensor, times: Sequence[float], schedule: Schedule = FLOW
) -> tuple[list[float], Numbers]:
    """The times at which a rule asks the exact denoiser, and the latents [times, n, d] there; the last ones are the
    samples."""
    denoise, calls = recorded(mixture.denoiser(schedule))
    fresh = partial(_fresh, z.shape)
    final = trajectory.follow(rule, denoise, schedule, z, times, fresh)
    latents = torch.stack([*(z for _, z, _ in calls), final]).flatten(2)
    return [*(time for time, _, _ in calls), times[-1]], latents.numpy()


def _fresh(shape: torch.Size, step: int) -> Tensor:
    return _noise(shape[0], shape[1], "step", step)


# A distribution becomes noise and back.


def spiral(num: int = 90, size: float = 2.2) -> Mixture:
    """Many small Gaussians along a spiral, the first one at its centre."""
    along = np.linspace(0.15, 1, num)
    turn = 4 * np.pi * np.sqrt(along)
    means = size * (along * np.stack([np.cos(turn), np.sin(turn)])).T
    weights = np.gradient(along * turn)
    covariances = np.broadcast_to(0.07**2 * np.eye(2), (num, 2, 2))
    return Mixture(*(torch.tensor(np.array(x)) for x in (weights / weights.sum(), means, covariances)))


@dataclass(frozen=True)
class ThereAndBack:
    """A distribution at `times`. Points have `place` (0..1 along the spiral), [n], and positions [times, n, 2]."""

    times: list[float]
    fields: list[Field]
    forward: Numbers
    forward_place: Numbers
    back: Numbers
    back_place: Numbers


def there_and_back(num: int = 500) -> ThereAndBack:
    """Samples of a spiral with more and more noise; and noise that the probability flow turns into samples."""
    data, times = spiral(), [0.0, 0.15, 0.35, 0.6, 1.0]
    generator = randomness.generator(_SEED, "data")
    z0, noise = data.samples(num, generator), _noise(num, 2, "forward").flatten(1)
    fields = [field(data.noisy(1 - t, t), 2.6) for t in times]
    forward = torch.stack([(1 - t) * z0 + t * noise for t in times])
    asked, path = _path(ddim, data, _noise(num, 2, "back"), grids.times("flow", 80, "uniform", 1.0))
    back = np.stack([path[int(np.argmin(np.abs(np.array(asked) - t)))] for t in times])
    place = [_place(data, points) for points in (z0, torch.from_numpy(path[-1]))]
    return ThereAndBack(times, fields, forward.numpy(), place[0], back, place[1])


def _place(data: Mixture, points: Tensor) -> Numbers:
    """How far along the list of components each point is, 0..1."""
    return data.classify(points).argmax(1).double().numpy() / (len(data.weights) - 1)


def draw_there_and_back(data: ThereAndBack) -> Any:
    """Columns: times. Rows: samples with noise, score field, and the way back."""
    figure, grid = style.panels(3, len(data.times), 5.1)
    for column, (time, found) in enumerate(zip(data.times, data.fields, strict=True)):
        (top, middle, bottom) = grid[:, column]
        for panel, points, place in ((top, data.forward, data.forward_place), (bottom, data.back, data.back_place)):
            panel.scatter(*points[column].T, c=place, s=3.5, cmap=style.ALONG, linewidths=0, rasterized=True)
            style.bare(panel, found.limit)
        _draw_density(middle, found)
        _draw_arrows(middle, found)
        top.set_title(f"t = {time:g}")
    for axes, label in zip(
        grid[:, 0], ("forward:\ndata to noise →", "density\nand score", "back:\n← noise to data"), strict=True
    ):
        axes.set_ylabel(label)
    return figure


# Langevin dynamics.


def islands() -> Mixture:
    """Three Gaussians far apart, with very unequal weights."""
    means = [[-1.5, -1.0], [1.5, -0.7], [0.0, 1.5]]
    return Mixture.of([0.7, 0.2, 0.1], means, [[[0.06, 0.0], [0.0, 0.06]]] * 3)


@dataclass(frozen=True)
class Langevin:
    """Langevin paths [steps, n, 2] over a field, and how their ends are shared among the islands."""

    title: str
    field: Field
    paths: Numbers
    shares: Numbers
    shown: list[int]
    """The first paths that end on each island."""


def langevin(num: int = 600) -> tuple[Numbers, list[Langevin]]:
    """The true shares, and Langevin dynamics at one small noise and with noise that falls."""
    data, first = islands(), 0.15
    annealed = partial(annealed_langevin, snr=0.1, num_repeats=10)
    alone = partial(annealed_langevin, snr=0.1, num_repeats=1000)
    wide = 1.9 * _noise(num, 2, "langevin") / _noise(num, 2, "langevin").abs().clamp(min=1)
    runs = [
        ("one small noise: stays where it is", alone, wide, [first, 0.0]),
        (
            "falling noise: finds all islands",
            annealed,
            _noise(num, 2, "langevin"),
            grids.times("flow", 100, "uniform", 1.0),
        ),
    ]
    found: list[Langevin] = []
    for title, rule, start, times in runs:
        _, paths = _path(rule, data, start, times)
        ends = data.classify(torch.from_numpy(paths[-1])).argmax(1).numpy()
        shown = [int(np.argmax(ends == island)) for island in range(3)]
        shares = np.bincount(ends, minlength=3) / num
        found.append(Langevin(title, field(data.noisy(1 - first, first), 2.6), paths, shares, shown))
    return data.weights.numpy(), found


def draw_langevin(data: tuple[Numbers, list[Langevin]]) -> Any:
    """A panel for the score field, and one for each run."""
    weights, runs = data
    figure, ((first, *others),) = style.panels(1, 3, 3.2)
    _draw_density(first, runs[0].field)
    _draw_arrows(first, runs[0].field)
    first.set_title("density and score at a small noise")
    for panel, run in zip(others, runs, strict=True):
        _draw_density(panel, run.field)
        early = len(run.paths) * 2 // 3
        for i, colour in zip(run.shown, style.COLOURS, strict=False):
            panel.plot(*run.paths[: early + 1, i].T, color=colour, linewidth=0.5, alpha=0.35)
            panel.plot(*run.paths[early:, i].T, color=colour, linewidth=0.8)
            panel.plot(*run.paths[0, i], "o", color="white", markeredgecolor=colour, markersize=5)
            panel.plot(*run.paths[-1, i], "o", color=colour, markeredgecolor="white", markersize=6)
        found = ", ".join(f"{share:.0%}" for share in run.shares)
        panel.set_title(run.title)
        panel.set_xlabel(f"found {found}; true " + ", ".join(f"{w:.0%}" for w in weights), fontsize=8)
    return figure


# Samplers, on a mixture in one dimension.

RULES: dict[str, tuple[Rule, int]] = {
    "DDPM": (ddpm, 10),
    "DDIM": (ddim, 10),
    "Heun": (heun, 5),
    "DPM-Solver++ (2M)": (dpm_solver_pp_2m, 10),
}
"""Rules and their steps: about ten evaluations of the denoiser each."""


@dataclass(frozen=True)
class Paths:
    """Latents [times, n] of a rule, the exact flow's [times, n] from the same noise, and the mean distance of ends."""

    times: list[float]
    latents: Numbers
    exact_times: list[float]
    exact: Numbers
    distance: float | None


def samplers(num: int = 9) -> tuple[Numbers, dict[str, Paths]]:
    """The density of a mixture of two on a grid of times and places, and the paths of every rule through it."""
    data = Mixture.of([0.35, 0.65], [[-1.4], [1.0]], [[[0.04]], [[0.04]]])
    start = torch.linspace(-1.7, 1.7, num, dtype=torch.float64).reshape(num, 1, 1, 1)
    exact_times, exact = _path(heun, data, start, grids.times("flow", 200, "uniform", 1.0))
    found: dict[str, Paths] = {}
    for name, (rule, steps) in RULES.items():
        times, latents = _path(rule, data, start, grids.times("flow", steps, "uniform", 1.0))
        # A rule that asks twice at a time goes on from the latent of its last question there.
        last = [i for i, time in enumerate(times) if time not in times[i + 1 :]]
        times, latents = [times[i] for i in last], latents[last]
        distance = None if rule is ddpm else float(np.abs(latents[-1] - exact[-1]).mean())
        found[name] = Paths(times, latents[..., 0], exact_times, exact[..., 0], distance)
    return _density_over_time(data, 2.5), found


def _density_over_time(data: Mixture, limit: float) -> Numbers:
    """[places, times from 1 to 0], 1 at the mode of each time."""
    places = torch.linspace(-limit, limit, 201, dtype=torch.float64)[:, None]
    times = np.linspace(1, 0, 101).tolist()
    columns = [data.noisy(1 - t, t).log_density(places).exp().numpy() for t in times]
    return np.stack([column / column.max() for column in columns], 1)


def draw_samplers(data: tuple[Numbers, dict[str, Paths]]) -> Any:
    """A panel per rule: its paths, from noise at the left to data at the right, over the density."""
    density, found = data
    figure, grid = style.panels(2, 2, 4.6, sharex=True, sharey=True)
    for panel, colour, (name, rule) in zip(grid.flat, style.COLOURS, found.items(), strict=False):
        style.shade(panel, np.linspace(1, 0, density.shape[1]), np.linspace(-2.5, 2.5, density.shape[0]), density)
        if rule.distance is not None:
            panel.plot(rule.exact_times, rule.exact, color=style.BLACK, linewidth=0.7, linestyle="--")
        panel.plot(rule.times, rule.latents, color=colour, marker=".", markersize=4, linewidth=1.1)
        far = "fresh noise in every step" if rule.distance is None else f"ends off by {rule.distance:.3f} on average"
        panel.set_title(f"{name}: {far}")
        panel.set(xlim=(1, 0), ylim=(-2.5, 2.5))
        panel.grid(False)
    for panel in grid[1]:
        panel.set_xlabel("time t")
    for panel in grid[:, 0]:
        panel.set_ylabel("z")
    return figure


# Guidance.


@dataclass(frozen=True)
class Guided:
    """Samples [n, 2] of a class under guidance, and how far the exact classifier is sure of the class on average."""

    samples: Numbers
    certainty: float


def guided(num: int = 400, scales: Sequence[float] = (0, 1, 2, 4)) -> tuple[Field, Field, dict[float, Guided]]:
    """Fields of all data and of one class, and its samples at every scale."""
    eye = [[0.25, 0.0], [0.0, 0.25]]
    data = Mixture.of([1 / 3] * 3, [[-0.9, -0.6], [0.9, -0.6], [0.0, 0.95]], [eye] * 3)
    conditional, unconditional = (mixture.denoiser(FLOW) for mixture in (data.component(0), data))
    found: dict[float, Guided] = {}
    for scale in scales:
        denoise = rules.extrapolate(conditional, unconditional, scale)
        times = grids.times("flow", 40, "uniform", 1.0)
        z0 = trajectory.follow(heun, denoise, FLOW, _noise(num, 2, "guided"), times).flatten(1)
        found[scale] = Guided(z0.numpy(), float(data.classify(z0)[:, 0].mean()))
    return field(data, 2.6), field(data.component(0), 2.6), found


def draw_guided(data: tuple[Field, Field, dict[float, Guided]]) -> Any:
    """A panel per scale: samples over the density of all data, and the outline of the class."""
    everything, of_class, found = data
    figure, (grid,) = style.panels(1, len(found), 2.5)
    axis = np.linspace(-everything.limit, everything.limit, _CELLS)
    for panel, (scale, guided) in zip(grid, found.items(), strict=True):
        _draw_density(panel, everything)
        panel.contour(axis, axis, of_class.density, levels=[np.exp(-2)], colors=style.BLACK, linewidths=0.9)
        panel.scatter(*guided.samples.T, s=4, color=style.RED, linewidths=0, alpha=0.7)
        panel.set_title(f"scale {scale:g}")
        panel.set_xlabel(f"probability of the class {guided.certainty:.0%}", fontsize=8)
    return figure
