"""The call of diffusers that an exported model is shown with."""

import pytest

from ldm.core import config
from ldm.sampling.params import DrawingParams, SampleParams
from ldm.tools.export import call
from tests.import_closure import ROOT


@pytest.fixture(scope="module")
def drawing() -> DrawingParams:
    found = config.read(SampleParams, "sample", ROOT / "recipes/default.yaml").drawing
    return found.changed({"num_steps": 4, "guidance_scale": 3})


def test_a_flow_model_names_its_times_and_another_one_their_number(drawing: DrawingParams) -> None:
    names = {"range": range}
    of_flow = eval(f"dict({call.arguments(drawing, 'flow')})", names)
    assert of_flow == {"sigmas": [1.0, 0.75, 0.5, 0.25], "guidance_scale": 3}
    assert eval(f"dict({call.arguments(drawing, 'cosine')})", names) == {"num_inference_steps": 4, "guidance_scale": 3}


@pytest.mark.parametrize("schedule", ["flow", "cosine"])
def test_a_scale_in_the_form_of_the_paper_becomes_that_of_stable_diffusion(
    drawing: DrawingParams, schedule: str
) -> None:
    of_paper = drawing.changed({"guidance": "ho_salimans"})
    assert call.arguments(of_paper, schedule) == call.arguments(drawing.changed({"guidance_scale": 4}), schedule)
