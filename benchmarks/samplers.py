"""Error of every sampler against the evaluations of the network, where both are known exactly.

Data are Gaussian, with an axis for each of `DEVIATIONS`: an image has coarse structure of large deviation, which noise
hides last, and fine of small. The denoiser is exact, so what is left is the sampler's own error: the distance of
optimal transport between samples and data, over the deviation, as root mean square over the axes. `moments` of
`ldm.analytic.moments` computes it without a random number.

    python -m benchmarks.samplers samplers.png --schedule flow --spacing uniform
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import matplotlib
import numpy as np

from ldm.analytic.moments import moments, wasserstein
from ldm.denoiser.model.schedules import ScheduleName
from ldm.sampling import grids, samplers
from ldm.sampling.samplers.rule import Rule, Step
from tests.analytic import SAMPLERS

DEVIATIONS = (0.03, 0.1, 0.3, 1.0)
MEAN = 0.5
NUM_STEPS = (2, 4, 8, 16, 32, 64, 128, 256)


def evaluations(rule: Rule, steps: Sequence[Step]) -> int:
    """How often a rule asks the network."""
    asked: list[float] = []

    def denoise(z: float, time: float) -> float:
        asked.append(time)
        return z

    rule(denoise, 0.0, steps, lambda _: 0.0)
    return len(asked)


def error(rule: Rule, num_noises: int, steps: Sequence[Step]) -> float:
    """Distance of samples from data over the deviation, root mean square over the axes."""
    squares: list[float] = []
    for deviation in DEVIATIONS:
        mean, variance = moments(rule, steps, MEAN * deviation, deviation**2, num_noises * len(steps))
        squares.append((wasserstein(mean, variance, MEAN * deviation, deviation**2) / deviation) ** 2)
    return math.sqrt(sum(squares) / len(squares))


def measured(schedule: ScheduleName, spacing: grids.Spacing) -> dict[str, list[tuple[int, float]]]:
    """For every sampler, evaluations and error for each number of steps."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, (params, num_noises) in SAMPLERS.items():
        rule = samplers.build(params)
        paths = [list(grids.steps(schedule, grids.times(schedule, num, spacing, 1.0))) for num in NUM_STEPS]
        curves[name] = [(evaluations(rule, steps), error(rule, num_noises, steps)) for steps in paths]
    return curves


def draw(curves: dict[str, list[tuple[int, float]]], title: str, path: Path) -> None:
    """Both axes logarithmic; dashed = adds noise."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, len(curves)))
    for colour, (name, curve) in zip(colours, curves.items(), strict=True):
        style = "--" if SAMPLERS[name][1] else "-"
        axes.plot(*zip(*curve, strict=True), style, color=colour, marker=".", label=name)
    axes.set(xscale="log", yscale="log", ylim=(1e-5, 2), title=title)
    axes.set(xlabel="evaluations of the network", ylabel="error of the samples over their deviation")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Print the numbers as a table, and draw them if a path is given."""
    parser = argparse.ArgumentParser(description="error of every sampler against evaluations of the network")
    parser.add_argument("picture", type=Path, nargs="?", metavar="PNG", help="where the curves are drawn")
    parser.add_argument("--schedule", choices=get_args(ScheduleName), default="flow")
    parser.add_argument("--spacing", choices=get_args(grids.Spacing), default="uniform")
    options = parser.parse_args()
    curves = measured(options.schedule, options.spacing)
    for name, curve in curves.items():
        print(f"{name:22}", "  ".join(f"{count:4d}: {value:.1e}" for count, value in curve))
    if options.picture:
        draw(curves, f"schedule {options.schedule}, spacing {options.spacing}, exact denoiser", options.picture)


if __name__ == "__main__":
    main()
