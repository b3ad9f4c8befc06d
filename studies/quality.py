"""Accuracy and kernel distance against evaluations of the network, for every sampler: `python -m studies.quality`.

All rows share prompts and noise, so each is compared with the reference prompt by prompt. An evaluation is one call of
the guided denoiser, which runs the network twice.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from ldm.core import stage
from ldm.core.config import Section
from ldm.denoiser.model.schedules import ScheduleName
from ldm.evaluation import metrics
from ldm.evaluation.metrics import Estimate
from ldm.sampling import grids, samplers
from ldm.sampling.params import DrawingParams
from ldm.sampling.samplers import SamplerParams
from studies import intervals, study
from studies.lab import CHECKS
from studies.rows import Row, estimate, interval

REFERENCE = "reference"


class ReferenceParams(Section):
    """The drawing that all others are compared with."""

    sampler: SamplerParams
    """Its sampler."""
    num_steps: int = Field(ge=1, le=1000)
    """Its steps."""


class QualityParams(Section):
    """Section `quality`: how good images are after how many evaluations of the network."""

    num_prompts: int = Field(ge=3, le=10**6)
    """Validation prompts of compositions that no training has seen, the same with the same noise for every row (fewer
    if there are fewer)."""
    reference: ReferenceParams
    samplers: list[SamplerParams]
    """The samplers."""
    evaluations: list[int]
    """Most evaluations of the guided denoiser; each sampler takes the most steps that they allow."""


def form(sampler: SamplerParams) -> str:
    """A sampler in one word, such as ddim,eta=0."""
    fields = sampler.model_dump()
    return ",".join([fields.pop("kind"), *(f"{key}={value:g}" for key, value in fields.items())])


def evaluations(drawing: DrawingParams, schedule: ScheduleName) -> int:
    """How often a drawing asks the denoiser, found by running its sampler on a number."""
    asked: list[float] = []

    def denoise(z: float, time: float) -> float:
        asked.append(time)
        return z

    times = grids.times(schedule, drawing.num_steps, drawing.spacing, drawing.time_shift)
    samplers.build(drawing.sampler)(denoise, 0.0, list(grids.steps(schedule, times)), lambda _: 0.0)
    return len(asked)


def drawings(base: DrawingParams, params: QualityParams, schedule: ScheduleName) -> dict[str, DrawingParams]:
    """The reference, then each sampler with each number of evaluations that allows another number of steps."""
    found = {REFERENCE: base.model_copy(update=dict(params.reference))}
    for sampler in params.samplers:
        for budget in params.evaluations:
            fitting = [base.model_copy(update={"sampler": sampler, "num_steps": n}) for n in range(1, budget + 1)]
            affordable = [drawing for drawing in fitting if evaluations(drawing, schedule) <= budget]
            if affordable:
                found[f"{form(sampler)} {affordable[-1].num_steps}"] = affordable[-1]
    return found


def compared(measured: Mapping[str, Tensor], reference: Mapping[str, Tensor], real: Tensor) -> dict[str, Estimate]:
    """Accuracies and kernel distance, and how much higher each is than the reference's."""
    found: dict[str, Estimate] = {}
    for name in CHECKS:
        found[name] = metrics.proportion(measured[name].tolist())
        found[f"{name}_difference"] = metrics.mean_interval(measured[name].double() - reference[name].double())
    terms, of_reference = (intervals.kernel_terms(part["features"], real) for part in (measured, reference))
    found["kid"] = intervals.kernel_distance(terms)
    found["kid_difference"] = intervals.kernel_distance(terms - of_reference)
    return found


def least(rows: Sequence[Row]) -> dict[str, dict[str, int | None]]:
    """Sampler -> the least evaluations from which on its accuracy is no lower, and its distance no greater, than the
    reference's; None if no row's is."""
    found: dict[str, dict[str, int | None]] = {}
    for name in dict.fromkeys(row["sampler"] for row in rows if row["name"] != REFERENCE):
        own = [row for row in rows if row["sampler"] == name and row["name"] != REFERENCE]
        better = {"scene": [(row["evaluations"], estimate(row["scene_difference"])) for row in own]}
        better["kid"] = [(row["evaluations"], _reversed(row["kid_difference"])) for row in own]
        found[name] = {measure: intervals.least_equal(points) for measure, points in better.items()}
    return found


def _reversed(values: list[float]) -> Estimate:
    value, low, high = values
    return Estimate(-value, -high, -low, 0)


def main() -> str:
    this = study.start(QualityParams, "quality", __file__)
    cases = this.lab.cases("unseen", this.params.num_prompts)
    real = this.lab.features(cases.images)
    schedule = this.lab.pipeline.generator.schedule.name
    first: dict[str, Tensor] = {}

    def compute(drawing: DrawingParams) -> dict[str, Tensor]:
        images = this.lab.draw(cases.prompts, drawing)
        return {"features": this.lab.features(images), **this.lab.workers.check(images, cases.claims)}

    def row(drawing: DrawingParams, measured: Mapping[str, Tensor]) -> Row:
        if not first:
            first.update(measured)
        asked = evaluations(drawing, schedule)
        facts = {"num_steps": drawing.num_steps, "evaluations": asked, "count": len(cases)}
        numbers = {name: interval(value) for name, value in compared(measured, first, real).items()}
        return {"sampler": form(drawing.sampler), **facts, **numbers}

    return this.run(drawings(this.lab.drawing, this.params, schedule), compute, row, {"cases": cases.sha256})


if __name__ == "__main__":
    stage.run(main)
