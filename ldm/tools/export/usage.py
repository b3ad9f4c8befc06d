"""How an exported model is used elsewhere, in the words of the other tool."""

from pathlib import Path

from ldm.denoiser.model.params import UNetParams
from ldm.sampling.params import DrawingParams
from ldm.tools.export import call
from ldm.tools.export.topology import Format, diffusion_params, unet_params
from ldm.tools.pipeline import Pipeline

_COMFY_UNET = ([320, 640, 1280, 1280], 2)
_COMFY_CONTEXT = {768: False, 1024: True}
"""Width of the context -> whether projections are linear: Stable Diffusion 1 and 2."""


def lines(pipeline: Pipeline, path: Path, format: Format) -> list[str]:
    """Python that draws our image from our noise, and what to know about it."""
    drawn = f'("a prompt", {_arguments(pipeline)}).images[0].save("0000.png")'
    if format == "diffusers":
        load = f'StableDiffusionPipeline.from_pretrained("{path}")'
    else:
        load = f'StableDiffusionPipeline.from_single_file("{path}", config="a folder of --format diffusers")'
    notes = [*_differences(pipeline.drawing), *(_comfy(unet_params(pipeline)) if format == "single-file" else [])]
    return ["from diffusers import StableDiffusionPipeline", f"{load}{drawn}", *(f"note: {note}" for note in notes)]


def _arguments(pipeline: Pipeline) -> str:
    return call.arguments(pipeline.drawing, diffusion_params(pipeline).schedule)


def _differences(drawing: DrawingParams) -> list[str]:
    """Settings of our images that the call above does not have."""
    kind = drawing.sampler.kind
    others = {
        f"sampler {kind}": kind not in ("euler", "ddim"),
        f"spacing {drawing.spacing}": drawing.spacing not in ("uniform", "trailing"),
        f"guidance {drawing.guidance.kind}": drawing.guidance.kind != "classifier_free",
        "guidance_interval": drawing.guidance_interval != (0, 1),
        "guidance_rescale": drawing.guidance_rescale != 0,
        "a negative prompt": bool(drawing.negative_prompt),
    }
    if not (differing := [name for name, differs in others.items() if differs]):
        return []
    return [
        f"images here have {', '.join(differing)}; for the same image draw with `--sampler euler` and without these"
    ]


def _comfy(params: UNetParams) -> list[str]:
    """What ComfyUI does not build: it knows Stable Diffusion by these widths."""
    shape = (list(params.channels), params.num_res_blocks)
    if shape == _COMFY_UNET and _COMFY_CONTEXT.get(params.context_width) == params.linear_projection:
        return []
    expected = "channels 320, 640, 1280, 1280 and context_width 768 (1024 with linear projections)"
    return [f"ComfyUI builds models of Stable Diffusion's own widths alone: {expected}; diffusers builds any"]
