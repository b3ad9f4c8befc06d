"""The call of diffusers that draws as a model of ours does."""

from ldm.sampling.guidance.params import HoSalimansParams
from ldm.sampling.params import DrawingParams


def arguments(drawing: DrawingParams, schedule: str) -> str:
    """Arguments of a `StableDiffusionPipeline` after the prompt, as Python. schedule: that of the training."""
    steps = drawing.num_steps
    # Its flow scheduler would otherwise end at time 0.001, and not step from 1 / steps to 0.
    of_flow = f"sigmas=[1 - i / {steps} for i in range({steps})]"
    times = of_flow if schedule == "flow" else f"num_inference_steps={steps}"
    return f"{times}, guidance_scale={guidance_scale(drawing):g}"


def guidance_scale(drawing: DrawingParams) -> float:
    """The scale as diffusers has it, which knows the form of Stable Diffusion alone: `ho_salimans` is a shift of it."""
    shift = 1 - drawing.guidance.neutral if isinstance(drawing.guidance, HoSalimansParams) else 0
    return drawing.guidance_scale + shift
