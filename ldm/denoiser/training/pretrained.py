"""A UNet that others have trained, as they saved it: a folder of diffusers, a pipeline of them, or a single file.

Its topology follows from names and shapes of its weights, but for heads and groups. A folder says those in its
config.json, and a single file of `ldm export` in its header. Other single files do not: the code that reads Stable
Diffusion 1 has 8 heads at every width, that of 2, whose projections are linear, heads of 64 channels, and both have 32
groups.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ldm.core.errors import IntegrityError
from ldm.denoiser.training.params import Trait
from ldm.exchange import files, names

_PART, _CLASS = "unet", "UNet2DConditionModel"
_GROUPS, _HEADS, _HEAD_WIDTH = 32, 8, 64
_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": (_CLASS,),
    "act_fn": ("silu",),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "center_input_sample": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "time_embedding_type": ("positional",),
    "addition_embed_type": (None,),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "attention_type": ("default",),
}
"""Values of a config that our topology has; each entry of a list must be one of them."""
_BETAS = {"linear": (0.0001, 0.02), "scaled_linear": (0.00085, 0.012)}
"""First and last variance of the schedules that diffusers has under our names."""
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class Pretrained:
    """Weights by their names here, and what their files say of the network and of how it was trained."""

    tensors: dict[str, Tensor]
    network: dict[str, Any]
    """Its params, as far as weights depend on them."""
    traits: dict[Trait, str]
    """Those traits that the files tell."""
    autoencoder: str | None
    """SHA-256 of the autoencoder in the same pipeline; None = there is none."""
    sha256: str


def read(path: Path) -> Pretrained:
    """The UNet of a folder or file. IntegrityError: it is missing, damaged, or no UNet of this topology."""
    found = files.read(path, _PART)
    tensors = names.below(found.tensors, names.UNET) or found.tensors
    if names.is_single_unet(tensors):
        tensors = names.unet_from_single(tensors)
    config = {} if found.config is None else found.config
    if misfits := files.misfits(config, _FIXED):
        raise _unknown(path, misfits)
    traits, autoencoder = dict[Trait, str](), None
    if (path / _PART).is_dir():
        traits, autoencoder = _of_pipeline(path)
    return Pretrained(tensors, _network(path, tensors, config), traits, autoencoder, found.sha256)


def _network(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    middle, heads = "mid_block.attentions.0", config.get("attention_head_dim")
    num_levels = names.count(tensors, r"down_blocks\.(\d+)\.")
    if not _counts(heads, num_levels):
        raise _unknown(path, f"config.json: attention_head_dim {heads} of {num_levels} levels")
    try:
        channels = [len(tensors[f"down_blocks.{i}.resnets.0.conv1.weight"]) for i in range(num_levels)]
        is_linear = tensors[f"{middle}.proj_in.weight"].dim() == 2
        context_width = tensors[f"{middle}.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    except KeyError as error:
        some = ", ".join(sorted(tensors)[:3])
        raise _unknown(path, f"no {error.args[0]}, but {some}") from None
    return {
        "kind": "unet",
        "channels": channels,
        "num_res_blocks": names.count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "attention_levels": [f"down_blocks.{i}.attentions.0.norm.weight" in tensors for i in range(num_levels)],
        "num_transformer_layers": names.count(tensors, rf"{re.escape(middle)}\.transformer_blocks\.(\d+)\."),
        "head_width": _head_widths(channels, heads, is_linear),
        "context_width": context_width,
        "norm_groups": config.get("norm_num_groups", _GROUPS),
        "num_context_layers": 0,
        "position_embedding": False,
    }


def _counts(num_heads: Any, num_levels: int) -> bool:
    """Whether it is a number of heads, one for each level, or None."""
    each = cast(list[object], num_heads) if isinstance(num_heads, list) else [num_heads] * num_levels
    return num_heads is None or (len(each) == num_levels and all(isinstance(n, int) and n > 0 for n in each))


def _head_widths(channels: list[int], num_heads: int | list[int] | None, is_linear: bool) -> list[int]:
    """Channels per head of every level. num_heads: `attention_head_dim` of a config, which counts heads; None = the
    file does not say."""
    if num_heads is None:
        return [_HEAD_WIDTH if is_linear else width // _HEADS for width in channels]
    each = [num_heads] * len(channels) if isinstance(num_heads, int) else num_heads
    return [width // heads for width, heads in zip(channels, each, strict=True)]


def _of_pipeline(folder: Path) -> tuple[dict[Trait, str], str | None]:
    """Traits that the folders beside that of the UNet tell, and the SHA-256 of the autoencoder there."""
    traits: dict[Trait, str] = {}
    scheduler, vae = folder / "scheduler" / "scheduler_config.json", folder / "vae"
    if scheduler.is_file():
        traits["schedule"], traits["prediction"] = _objective(files.read_json(scheduler))
    if not vae.is_dir():
        return traits, None
    found = files.read(vae)
    config = found.config or {}
    factor, shift = config.get("scaling_factor", 0.18215), config.get("shift_factor") or 0.0
    channels = config.get("latent_channels", 4)
    mean, std = (", ".join([f"{value:.6g}"] * channels) for value in (shift, 1 / factor))
    traits["latent_scale"] = f"of mean {mean} and deviation {std}"
    return traits, found.sha256


def _objective(config: Mapping[str, Any]) -> tuple[str, str]:
    """Schedule and prediction of a scheduler's config, by their names here."""
    if "FlowMatch" in config.get("_class_name", ""):
        return "flow", "flow"
    prediction: str = config.get("prediction_type", "epsilon")
    schedule: str = config.get("beta_schedule", "linear")
    betas = (config.get("beta_start", 0.0001), config.get("beta_end", 0.02))
    if schedule == "squaredcos_cap_v2":
        schedule = "cosine"
    elif betas != _BETAS.get(schedule):
        schedule = f"{schedule} from {betas[0]} to {betas[1]}"
    if config.get("rescale_betas_zero_snr"):
        schedule = "zero_terminal_snr" if schedule == "scaled_linear" else f"{schedule}, rescaled to zero terminal SNR"
    return schedule, _PREDICTIONS.get(prediction, prediction)


def _unknown(path: Path, what: str) -> IntegrityError:
    expected = f"a UNet of diffusers ({_CLASS}) or of a single file, in the topology of Stable Diffusion 1 and 2"
    return IntegrityError(str(path), what, expected, "bring such a UNet, or train from the start with init_from: null")
