"""Names of weights in the files of other tools, and how to go from one layout to the other and back.

There are two layouts of Stable Diffusion. diffusers has a folder per network; our UNet and autoencoder have its names.
A single file (CompVis's latent diffusion, Stability's `sgm`; what ComfyUI loads) holds all networks, each below a
prefix. Text encoders are in the layout of transformers (Stable Diffusion 1) or of open_clip (2).

Each pair of functions is exact in both directions. A name that has no place in the other layout is kept as it is, so
that whoever loads the weights can say which names do not fit. Tensors may be on the meta device.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

UNET = "model.diffusion_model."
"""Prefix of the UNet in a single file."""
VAE = "first_stage_model."
"""Prefix of the autoencoder in a single file; a file of the autoencoder alone often has none."""
TRANSFORMERS_TEXT = "cond_stage_model.transformer."
"""Prefix of a text encoder in transformers' layout, as in Stable Diffusion 1."""
OPEN_CLIP_TEXT = "cond_stage_model.model."
"""Prefix of a text encoder in open_clip's layout, as in Stable Diffusion 2."""
TEXT_MODEL = "text_model."
"""What names in transformers' files start with; a `CLIPTextModel` of transformers 5.6 and later leaves it out."""

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_FORMER_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TEXT_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors with a prefix before each name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the first group of a pattern finds in names: those of blocks, say, or layers."""
    return len(_numbers(names, pattern))


def is_single_unet(names: Iterable[str]) -> bool:
    """Whether these are names of a UNet in a single file, without the prefix."""
    return any(name.startswith("input_blocks.") for name in names)


def is_single_vae(names: Iterable[str]) -> bool:
    """Whether these are names of an autoencoder in a single file, without the prefix."""
    return any(name.startswith(("encoder.down.", "decoder.up.")) for name in names)


def unet_to_single(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet in diffusers' layout -> single file, without the prefix."""
    num_levels, num_blocks = (
        count(tensors, r"down_blocks\.(\d+)\."),
        count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
    )
    attend = [any(name.startswith(f"up_blocks.{i}.attentions.") for name in tensors) for i in range(num_levels)]
    return _renamed(tensors, dict(_unet_modules(num_levels, num_blocks, attend)))


def unet_from_single(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet of a single file, without the prefix -> diffusers' layout."""
    downsamplers = _numbers(tensors, r"input_blocks\.(\d+)\.0\.op\.")
    num_levels = len(downsamplers) + 1
    # Level 0 is the first convolution, then the blocks, then the downsampler.
    num_blocks = min(downsamplers, default=count(tensors, r"input_blocks\.(\d+)\.")) - 1
    firsts = [i * (num_blocks + 1) for i in range(num_levels)]
    attend = [any(name.startswith(f"output_blocks.{first}.1.norm.") for name in tensors) for first in firsts]
    return _renamed(tensors, _inverse(_unet_modules(num_levels, num_blocks, attend)))


def _unet_modules(num_levels: int, num_blocks: int, attend: list[bool]) -> Iterator[tuple[str, str]]:
    """Names of a UNet's modules in both layouts.

    num_blocks: residual blocks of a level on the way down. attend: whether each level on the way up has attention.

    A single file numbers the blocks of all levels in one row, and within a block its layers: residual block, attention,
    change of resolution.
    """
    yield from _UNET_ENDS.items()
    for level in range(num_levels):
        down, up, per_level = f"down_blocks.{level}", f"up_blocks.{level}", num_blocks + 1
        first_down, first_up = level * per_level + 1, level * per_level
        for block in range(num_blocks):
            yield from _resnet(f"{down}.resnets.{block}", f"input_blocks.{first_down + block}.0")
            yield f"{down}.attentions.{block}", f"input_blocks.{first_down + block}.1"
        yield f"{down}.downsamplers.0.conv", f"input_blocks.{first_down + num_blocks}.0.op"
        for block in range(per_level):
            yield from _resnet(f"{up}.resnets.{block}", f"output_blocks.{first_up + block}.0")
            if attend[level]:
                yield f"{up}.attentions.{block}", f"output_blocks.{first_up + block}.1"
        yield f"{up}.upsamplers.0.conv", f"output_blocks.{first_up + num_blocks}.{1 + attend[level]}.conv"
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _resnet("mid_block.resnets.1", "middle_block.2")


def _resnet(diffusers: str, single: str) -> Iterator[tuple[str, str]]:
    for ours, theirs in _UNET_RESNET.items():
        yield f"{diffusers}.{ours}", f"{single}.{theirs}"


def with_projections(tensors: Mapping[str, Tensor], *, linear: bool) -> dict[str, Tensor]:
    """A UNet in either layout whose projections around attention are linear (as in Stable Diffusion 2), or else 1x1
    convolutions (as in 1): the same function with weights of another shape."""
    ends = (".proj_in.weight", ".proj_out.weight")
    return {
        name: _with_dims(tensor, 2 if linear else 4) if name.endswith(ends) else tensor
        for name, tensor in tensors.items()
    }


def vae_to_single(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder in diffusers' layout -> single file, without the prefix; its attention becomes 1x1
    convolutions."""
    num_levels = count(tensors, r"(?:encoder\.down|decoder\.up)_blocks\.(\d+)\.")
    num_blocks = count(tensors, r"\.resnets\.(\d+)\.")
    return _with_attention(_renamed(tensors, dict(_vae_modules(num_levels, num_blocks))), "attn_1", 4)


def vae_from_single(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder of a single file, without the prefix -> diffusers' layout."""
    num_levels, num_blocks = count(tensors, r"\.(?:down|up)\.(\d+)\."), count(tensors, r"\.block\.(\d+)\.")
    return _with_attention(_renamed(tensors, _inverse(_vae_modules(num_levels, num_blocks))), "attentions.0", 2)


def modern_vae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder in diffusers' layout, with the names of today: those of attention were others before 0.17."""
    former = [
        (f"{half}.mid_block.attentions.0.{old}", new)
        for half in ("encoder", "decoder")
        for old, new in _FORMER_VAE_ATTENTION.items()
    ]
    modules = {name: f"{name.rpartition('.')[0]}.{new}" for name, new in former}
    return _with_attention(_renamed(tensors, modules), "attentions.0", 2)


def _vae_modules(num_levels: int, num_blocks: int) -> Iterator[tuple[str, str]]:
    """Names of an autoencoder's modules in both layouts. The decoder's levels are numbered in opposite order."""
    for half, blocks, levels, sampler, change in (
        ("encoder", "down_blocks", "down", "downsamplers", "downsample"),
        ("decoder", "up_blocks", "up", "upsamplers", "upsample"),
    ):
        yield f"{half}.conv_norm_out", f"{half}.norm_out"
        for level in range(num_levels):
            theirs = f"{half}.{levels}.{level if half == 'encoder' else num_levels - 1 - level}"
            ours = f"{half}.{blocks}.{level}"
            for block in range(num_blocks):
                yield from _vae_resnet(f"{ours}.resnets.{block}", f"{theirs}.block.{block}")
            yield f"{ours}.{sampler}.0", f"{theirs}.{change}"
        for block in range(2):
            yield from _vae_resnet(f"{half}.mid_block.resnets.{block}", f"{half}.mid.block_{block + 1}")
        for ours, theirs in _VAE_ATTENTION.items():
            yield f"{half}.mid_block.attentions.0.{ours}", f"{half}.mid.attn_1.{theirs}"


def _vae_resnet(diffusers: str, single: str) -> Iterator[tuple[str, str]]:
    yield diffusers, single
    yield f"{diffusers}.conv_shortcut", f"{single}.nin_shortcut"


def _with_attention(tensors: Mapping[str, Tensor], attention: str, num_dims: int) -> dict[str, Tensor]:
    """An autoencoder whose matrices of attention have this many dimensions."""
    return {
        name: _with_dims(tensor, num_dims) if f".{attention}." in name and tensor.dim() > 1 else tensor
        for name, tensor in tensors.items()
    }


def text_to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text tower in open_clip's layout -> transformers' layout with `text_model.`; the projection beside it, if there
    is one, is `text_projection.weight`."""
    found: dict[str, Tensor] = {}
    for name, tensor in _renamed_whole(tensors, {theirs: TEXT_MODEL + ours for ours, theirs in _TEXT_ENDS.items()}):
        layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.(\w+)", name)
        if stacked := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            attention = f"{TEXT_MODEL}encoder.layers.{stacked[1]}.self_attn"
            parts = zip("qkv", tensor.chunk(3), strict=True)
            found |= {f"{attention}.{part}_proj.{stacked[2]}": value.clone() for part, value in parts}
        elif layer and layer[2] in _TEXT_LAYER.values():
            (ours,) = (ours for ours, theirs in _TEXT_LAYER.items() if theirs == layer[2])
            found[f"{TEXT_MODEL}encoder.layers.{layer[1]}.{ours}.{layer[3]}"] = tensor
        elif name == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        else:
            found[name] = tensor
    return found


def text_to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder in transformers' layout, with or without `text_model.` -> open_clip's layout."""
    found: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    plain = {name.removeprefix(TEXT_MODEL): tensor for name, tensor in tensors.items()}
    for name, tensor in _renamed_whole(plain, _TEXT_ENDS):
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", name)
        block = f"transformer.resblocks.{layer[1]}" if layer else ""
        if layer and (part := re.fullmatch(r"self_attn\.([qkv])_proj", layer[2])):
            stacks.setdefault(f"{block}.attn.in_proj_{layer[3]}", {})[part[1]] = tensor
        elif layer and layer[2] in _TEXT_LAYER:
            found[f"{block}.{_TEXT_LAYER[layer[2]]}.{layer[3]}"] = tensor
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        else:
            found[name] = tensor
    return found | {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in stacks.items()}


def _renamed(tensors: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors with the longest part of each name that names a module replaced by the module's new name."""
    return {_renamed_one(name, modules): tensor for name, tensor in tensors.items()}


def _renamed_one(name: str, modules: Mapping[str, str]) -> str:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if (new := modules.get(".".join(parts[:end]))) is not None:
            return ".".join([new, *parts[end:]])
    return name


def _renamed_whole(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    return ((names.get(name, name), tensor) for name, tensor in tensors.items())


def _inverse(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in pairs}


def _numbers(names: Iterable[str], pattern: str) -> set[int]:
    return {int(match[1]) for name in names if (match := re.search(pattern, name))}


def _with_dims(tensor: Tensor, num_dims: int) -> Tensor:
    """A matrix as a linear layer or a 1x1 convolution has it. A kernel that is larger stays as it is."""
    if tensor.dim() == 4 and tensor.shape[2:] != (1, 1):
        return tensor
    return tensor.reshape(*tensor.shape[:2], *[1] * (num_dims - 2))
