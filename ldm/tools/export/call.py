"""The call of diffusers that draws as a model of ours does."""

from ldm.sampling.params import DrawingParams


def arguments(drawing: DrawingParams, schedule: str) -> str:
    """Arguments of a `StableDiffusionPipeline` after the prompt, as Python. schedule: that of the training."""
    steps = drawing.num_steps
    # Its flow scheduler would otherwise end at time 0.001, and not step from 1 / steps to 0.
    of_flow = f"sigmas=[1 - i / {steps} for i in range({steps})]"
    times = of_flow if schedule == "flow" else f"num_inference_steps={steps}"
    return f"{times}, guidance_scale={drawing.guidance_scale:g}"
