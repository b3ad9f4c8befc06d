"""How well DDIM inversion and DDIM bring real images back, by number of steps: `python -m studies.inversion`.

Latents of real images go to noise and back with their own prompts, without guidance. The error should shrink as one
over the number of steps (Song et al. 2021, DDIM, section 5.4).
"""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from ldm.core import stage
from ldm.core.config import Section
from ldm.evaluation import metrics
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers.ancestral import ddim
from ldm.tools.tasks import inversion
from studies import study
from studies.rows import Row, interval


class InversionParams(Section):
    """Section `inversion`."""

    num_images: int = Field(ge=2, le=10**6)
    """Images of compositions that no training has seen."""
    num_steps: list[int]
    """Steps of each way."""


def main() -> str:
    this = study.start(InversionParams, "inversion", __file__)
    lab = this.lab
    cases = lab.cases("unseen", this.params.num_images)
    generator = lab.pipeline.generator
    drawing = lab.drawing.model_copy(update={"guidance_scale": 1.0, "precision": "fp32"})

    def compute(num_steps: int) -> dict[str, Tensor]:
        times = grids.times(generator.schedule.name, num_steps, "uniform", 1.0)

        def batch(rows: range) -> Tensor:
            z0 = generator.encode(cases.images[rows.start : rows.stop])
            denoise = generator.guided(lab.condition(cases.prompts[rows.start : rows.stop]), drawing)
            noise = inversion.invert(denoise, generator.schedule, z0, times)
            back = trajectory.follow(ddim, denoise, generator.schedule, noise, times)
            return (back - z0).square().flatten(1).mean(1).sqrt().cpu()

        return {"error": lab.in_batches(batch, len(cases))}

    def row(num_steps: int, measured: Mapping[str, Tensor]) -> Row:
        error = metrics.mean_interval(measured["error"])
        return {"num_steps": num_steps, "count": len(cases), "error": interval(error)}

    work = {f"steps_{number}": number for number in this.params.num_steps}
    return this.run(work, compute, row, {"cases": cases.sha256})


if __name__ == "__main__":
    stage.run(main)
