"""How an exported model is used elsewhere, in the words of the other tool."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.schedules import NUM_TABLE_STEPS
from ldm.tools.export import call, parts
from ldm.tools.export.topology import Format, diffusion_params, unet_params
from ldm.tools.pipeline import Pipeline

_COMFY_UNET = {"channels": [320, 640, 1280, 1280], "num_res_blocks": 2, "norm_groups": 32}
_COMFY_SHAPES = (
    {"context_width": 768, "linear_projection": False, "head_widths": [40, 80, 160, 160]},
    {"context_width": 1024, "linear_projection": True, "head_widths": [64] * 4},
)
"""Stable Diffusion 1 and 2. Heads and groups are no part of a file: these are taken for granted."""
_COMFY_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
_COMFY_PREDICTIONS = {"eps": "eps", "v": "v_prediction", "x0": "x0"}


def lines(pipeline: Pipeline, path: Path, format: Format) -> list[str]:
    """Python that draws our image from our noise, and what to know about it."""
    noise = f"noise = prompt_noise({pipeline.drawing.seed}, [0], {tuple(pipeline.generator.unet.latent_shape)})"
    arguments = call.arguments(pipeline.drawing, diffusion_params(pipeline).schedule)
    drawn = f'("a prompt", latents=noise, {arguments}).images[0].save("0000.png")'
    written = json.dumps(str(path), ensure_ascii=False)
    if format == "diffusers":
        load = f"StableDiffusionPipeline.from_pretrained({written})"
    else:
        load = f'StableDiffusionPipeline.from_single_file({written}, config="a folder of --format diffusers")'
    notes = [*_differences(pipeline), *(_comfy(pipeline) if format == "single-file" else [])]
    return [
        "from diffusers import StableDiffusionPipeline",
        "from ldm.sampling.trajectory import prompt_noise  # without it: other noise, another image",
        noise,
        f"{load}{drawn}",
        *(f"note: {note}" for note in notes),
    ]


def _differences(pipeline: Pipeline) -> list[str]:
    """Settings of our images that the call above does not have."""
    drawing, is_flow = pipeline.drawing, diffusion_params(pipeline).schedule == "flow"
    kind, eta = drawing.sampler.kind, getattr(drawing.sampler, "eta", 0.0)
    # Of flow, diffusers asks at the times that it is told; with `trailing` it is we who round.
    is_rounded = NUM_TABLE_STEPS % drawing.num_steps != 0 and (not is_flow or drawing.spacing == "trailing")
    others = {
        f"sampler {kind}": kind not in ("euler", "ddim"),
        f"eta {eta:g}": eta > 0,
        f"precision {drawing.precision}": drawing.precision != "fp32",
        f"time_shift {drawing.time_shift:g}": drawing.time_shift != 1 and not is_flow,
        "size_px": drawing.size_px is not None,
        "dynamic_threshold": drawing.dynamic_threshold is not None,
        f"spacing {drawing.spacing}": drawing.spacing not in ("uniform", "trailing"),
        f"num_steps {drawing.num_steps} (diffusers rounds times; one that divides 1000 agrees)": is_rounded,
        f"guidance {drawing.guidance.kind}": drawing.guidance.kind not in ("classifier_free", "ho_salimans"),
        f"guidance_scale {drawing.guidance_scale:g} (diffusers guides above 1 alone)": call.guidance_scale(drawing) < 1,
        "guidance_interval": drawing.guidance_interval != (0, 1),
        "guidance_rescale": drawing.guidance_rescale != 0,
        "a negative prompt": bool(drawing.negative_prompt),
    }
    if not (differing := [name for name, differs in others.items() if differs]):
        return []
    same = "for the same image draw here with `--sampler euler --precision fp32` and none of the others"
    return [f"images here have {', '.join(differing)}; {same}"]


def _comfy(pipeline: Pipeline) -> list[str]:
    """What ComfyUI does not build, has to be told, or computes otherwise."""
    return [*_shapes(unet_params(pipeline), parts.vae(pipeline).config), *_node(pipeline), *_padding(pipeline)]


def _node(pipeline: Pipeline) -> list[str]:
    """A file does not say how its model was trained; ComfyUI takes it for one of `eps` unless a node says otherwise."""
    params, shift = diffusion_params(pipeline), pipeline.drawing.time_shift
    match params.schedule:
        case "flow":
            node = f"ModelSamplingSD3 with shift {shift:g}"
        case "scaled_linear" if params.prediction == "eps":
            return []
        case "scaled_linear" | "zero_terminal_snr":
            zsnr = " and zsnr" if params.schedule == "zero_terminal_snr" else ""
            node = f"ModelSamplingDiscrete with sampling {_COMFY_PREDICTIONS[params.prediction]}{zsnr}"
        case other:
            return [f"ComfyUI has no node for schedule {other}: images there are made of other noise than it knows"]
    return [f"in ComfyUI the model goes through the node {node}"]


def _padding(pipeline: Pipeline) -> list[str]:
    """ComfyUI pads prompts as the text encoder of a file's layout was trained."""
    ours, end = parts.padding(pipeline)
    if ours == (theirs := 0 if parts.is_second(pipeline) else end):
        return []
    return [
        f"ComfyUI pads prompts of this layout by token {theirs}; this UNet was trained with {ours} and reads it, so "
        "images there differ; diffusers takes the tokenizer of a folder"
    ]


def _shapes(unet: UNetParams, vae: Mapping[str, Any]) -> list[str]:
    """ComfyUI knows Stable Diffusion by its widths, and takes heads and groups for granted."""
    is_unet = any(
        all(getattr(unet, key) == value for key, value in (_COMFY_UNET | shape).items()) for shape in _COMFY_SHAPES
    )
    if is_unet and all(vae[key] == value for key, value in _COMFY_VAE.items()):
        return []
    expected = (
        "channels 320, 640, 1280, 1280 with 32 groups, and context_width 768 with heads of 40, 80, 160, 160 channels "
        "(1024 with linear projections and heads of 64), and an autoencoder of 128, 256, 512, 512 with 32 groups"
    )
    return [f"ComfyUI computes models of Stable Diffusion's own shape alone: {expected}; diffusers computes any"]
