"""The parts of a model as diffusers and transformers describe and name them: configs, weights, a tokenizer's files.

Nothing here needs these packages: a folder is only files.
"""

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm.autoencoder.model.kl import NORM_EPS as VAE_NORM_EPS
from ldm.autoencoder.model.kl import KLAutoencoder
from ldm.denoiser.model.schedules import NUM_TABLE_STEPS
from ldm.denoiser.model.unet import NORM_EPS
from ldm.exchange import names
from ldm.exchange.files import CONFIG
from ldm.text.model.clip import Clip
from ldm.text.model.transformers_tower import TransformersTower
from ldm.tools.export import folding
from ldm.tools.export.topology import (
    PREDICTIONS,
    clip_of,
    diffusion_params,
    transformers_clip_of,
    unet_params,
)
from ldm.tools.pipeline import Pipeline

DIFFUSERS_VERSION = "0.42.0"
"""The version whose classes and configs these are; later ones read them too."""
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_TABLES: dict[str, dict[str, Any]] = {
    "linear": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    "scaled_linear": _BETAS,
    "zero_terminal_snr": {**_BETAS, "rescale_betas_zero_snr": True},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
_SECOND_WIDTH, _SECOND_BLOCKS = 1024, 24
"""Of the whole text encoder of Stable Diffusion 2; that of 1 has 768 and 12."""
_START, _END, _PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
_OPEN_CLIP_ENDS = {"<start_of_text>": _START, "<end_of_text>": _END}


@dataclass(frozen=True)
class Network:
    """A network as another library builds it."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def unet(pipeline: Pipeline) -> Network:
    """The UNet as a `UNet2DConditionModel`."""
    params = unet_params(pipeline)
    attend = params.attention_levels
    config = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": params.latent_channels,
        "out_channels": params.latent_channels,
        "sample_size": params.latent_size,
        "block_out_channels": params.channels,
        "layers_per_block": params.num_res_blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attend],
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attend)],
        "transformer_layers_per_block": params.num_transformer_layers,
        # A slip in diffusers that its files keep: this is the number of heads. Levels without attention have none.
        "attention_head_dim": [max(c // w, 1) for c, w in zip(params.channels, params.head_widths, strict=True)],
        "cross_attention_dim": params.context_width,
        "use_linear_projection": params.linear_projection,
        "norm_num_groups": params.norm_groups,
        "norm_eps": NORM_EPS,
    }
    return Network(config, _on_cpu(pipeline.generator.unet.state_dict()))


def vae(pipeline: Pipeline) -> Network:
    """The autoencoder as an `AutoencoderKL`, with the scale of latents folded into it."""
    model, scale = pipeline.generator.autoencoder, pipeline.generator.scale
    assert isinstance(model, KLAutoencoder), "checked"
    tensors = _on_cpu(model.state_dict())
    levels = range(len(model.encoder.down_blocks))
    widths = [tensors[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    num_res_blocks = sum(name.startswith("encoder.down_blocks.0.resnets.") for name in tensors if "conv1.bias" in name)
    config = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": len(scale.mean),
        "sample_size": unet_params(pipeline).latent_size * model.factor,
        "block_out_channels": widths,
        "layers_per_block": num_res_blocks,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "mid_block_add_attention": bool(len(model.encoder.mid_block.attentions)),
        "norm_num_groups": model.encoder.conv_norm_out.num_groups,
        "scaling_factor": folding.SCALING_FACTOR,
        "force_upcast": False,
    }
    assert model.encoder.conv_norm_out.eps == VAE_NORM_EPS, "the one that diffusers has"
    return Network(config, tensors | folding.folded(tensors, scale.mean, scale.std))


def text_encoder(pipeline: Pipeline) -> Network:
    """The text tower as a `CLIPTextModel`, without the block that the UNet does not see."""
    num_layers = pipeline.encode.model.num_layers - (pipeline.encode.layer == "penultimate")
    if (tower := transformers_clip_of(pipeline.encode.model)) is not None:
        return _of_transformers(tower, num_layers)
    return _of_open_clip(_clip(pipeline), num_layers)


def _of_transformers(tower: TransformersTower, num_layers: int) -> Network:
    config = tower.config | {"architectures": ["CLIPTextModel"], "num_hidden_layers": num_layers}
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    left_out = tuple(f"encoder.layers.{i}." for i in range(num_layers, tower.num_layers))
    kept = {name: value for name, value in tower.model.state_dict().items() if not name.startswith(left_out)}
    return Network(config, names.under(_on_cpu(kept), names.TEXT_MODEL))


def _of_open_clip(clip: Clip, num_layers: int) -> Network:
    width = clip.context_width
    vocabulary = clip.tokenizer.encoder
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": clip.model.heads,
        "max_position_embeddings": clip.context_length,
        "projection_dim": clip.feature_width,
        "hidden_act": "quick_gelu" if clip.model_cfg.get("quick_gelu", False) else "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocabulary["<start_of_text>"],
        "eos_token_id": vocabulary["<end_of_text>"],
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }
    left_out = tuple(f"transformer.resblocks.{i}." for i in range(num_layers, clip.num_layers))
    kept = {
        name: value for name, value in clip.model.state_dict().items() if not name.startswith((*left_out, "text_proj"))
    }
    return Network(config, names.text_to_transformers(_on_cpu(kept)))


def tokenizer(pipeline: Pipeline) -> dict[str, str]:
    """Files of a `CLIPTokenizer` by name, which pads to as many tokens as the UNet reads."""
    if (tower := transformers_clip_of(pipeline.encode.model)) is None:
        return _of_open_clips_tokenizer(pipeline)
    files = {path.name: path.read_text(encoding="utf-8") for path in tower.tokenizer.files if path.name != CONFIG}
    settings = json.loads(files.get("tokenizer_config.json", "{}"))
    settings |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": pipeline.encode.context_tokens}
    return files | {"tokenizer_config.json": _json(settings)}


def is_second(pipeline: Pipeline) -> bool:
    """Whether a single file has the text encoder as Stable Diffusion 2 has it, not as 1: readers take the last but one
    of its blocks. So it is if ours takes that one, and if it came without the last, as in a folder of diffusers."""
    encode, tower = pipeline.encode, transformers_clip_of(pipeline.encode.model)
    if encode.layer == "penultimate" or tower is None or tower.context_width != _SECOND_WIDTH:
        return encode.layer == "penultimate"
    return tower.config["num_hidden_layers"] < _SECOND_BLOCKS


def padding(pipeline: Pipeline) -> tuple[int, int]:
    """The id that prompts are padded with, and that of the token that ends them."""
    if (tower := transformers_clip_of(pipeline.encode.model)) is not None:
        return tower.tokenizer.padding_id, tower.tokenizer.ids([""])[0][-1]
    return 0, _clip(pipeline).tokenizer.encoder["<end_of_text>"]


def _of_open_clips_tokenizer(pipeline: Pipeline) -> dict[str, str]:
    """Its ids are those of open_clip's tokenizer, except of text that ftfy would repair, such as ligatures and HTML
    entities: ftfy is left out there."""
    own = _clip(pipeline).tokenizer
    vocabulary = {_OPEN_CLIP_ENDS.get(token, token): number for token, number in own.encoder.items()}
    # Padding has id 0, which is also that of a "!" inside a run of punctuation. With a name of its own, padding is not
    # found in prompts.
    vocabulary[_PAD] = 0
    ends = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _PAD}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": pipeline.encode.context_tokens,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **ends,
    }
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in own.bpe_ranks), ""]),
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(ends),
    }


def scheduler(pipeline: Pipeline) -> dict[str, Any]:
    """Config of a scheduler for the model's schedule and prediction, which users may exchange: DDIM, or Euler's method
    for flow. Both are our sampler `euler`, asked at the same times."""
    params = diffusion_params(pipeline)
    common = {"_diffusers_version": DIFFUSERS_VERSION, "num_train_timesteps": NUM_TABLE_STEPS}
    if params.schedule == "flow":
        shift = pipeline.drawing.time_shift
        # `StableDiffusionPipeline` asks every scheduler for this; that of flow matching has it if its config does.
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", **common, "shift": shift, "init_noise_sigma": 1.0}
    return {
        "_class_name": "DDIMScheduler",
        **common,
        **_TABLES[params.schedule],
        "prediction_type": PREDICTIONS[params.prediction],
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "clip_sample": False,
    }


def _clip(pipeline: Pipeline) -> Clip:
    clip = clip_of(pipeline.encode.model)
    assert clip is not None, "checked"
    return clip


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
