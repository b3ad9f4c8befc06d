"""The call of diffusers that an exported model is shown with."""

from ldm.core import config
from ldm.sampling.params import SampleParams
from ldm.tools.export import call
from tests.import_closure import ROOT


def test_a_flow_model_names_its_times_and_another_one_their_number() -> None:
    drawing = config.read(SampleParams, "sample", ROOT / "recipes/default.yaml").drawing
    drawing = drawing.changed({"num_steps": 4, "guidance_scale": 3})
    names = {"range": range}
    of_flow = eval(f"dict({call.arguments(drawing, 'flow')})", names)
    assert of_flow == {"sigmas": [1.0, 0.75, 0.5, 0.25], "guidance_scale": 3}
    assert eval(f"dict({call.arguments(drawing, 'cosine')})", names) == {"num_inference_steps": 4, "guidance_scale": 3}
