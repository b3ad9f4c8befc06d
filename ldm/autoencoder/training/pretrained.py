"""An autoencoder that others have trained: a folder of diffusers, a single file, or an artefact of this project.

Its topology follows from names and shapes of its weights; only the groups of its norms do not, which config.json says,
and the header of a single file of `ldm export`. Any other single file has 32, as all code that writes such files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ldm.autoencoder.model import networks
from ldm.autoencoder.model.network import Autoencoder
from ldm.autoencoder.model.params import DCAEParams, KLAutoencoderParams, StoredParams
from ldm.autoencoder.training.params import PretrainedAutoencoderParams
from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.exchange import files, names

_WHERE = "params.yaml: train_autoencoder.source"
_PART = "vae"
"""Folder of the autoencoder in that of a pipeline."""
_KL, _DC = "AutoencoderKL", "AutoencoderDC"
_OURS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""What names of an autoencoder start with; a trainer's file also has those of its losses."""
_SINGLE_FILE_CONFIG = {"_class_name": _KL, "norm_num_groups": 32}
_FIXED = {
    "act_fn": ("silu",),
    "in_channels": (3,),
    "out_channels": (3,),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
}
"""Values of an AutoencoderKL's config that our topology has; each entry of a list must be one of them."""


def load(source: PretrainedAutoencoderParams) -> tuple[Autoencoder, StoredParams, files.Source]:
    """The network with its weights, its params and its files.

    ConfigError: it is of another factor or has other channels than `source` states. IntegrityError: it is missing,
    damaged, incomplete or of a kind that is not known here.
    """
    path = Path(source.path)
    if (path / artifact.PASSPORT).is_file():
        network, passport = networks.load(path, torch.device("cpu"))
        params = networks.params_of(passport)
        _check_stated(source, params)
        return network, params, files.Source(path, {}, None, {artifact.WEIGHTS: passport.content_sha256})
    found = files.read(path, _PART)
    config = _SINGLE_FILE_CONFIG if found.config is None else found.config
    params, tensors = _understood(found, config)
    _check_stated(source, params)
    try:
        network = networks.build(params)
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError) as error:  # what diffusers' classes raise
        raise _unknown(found, f"config.json: {str(error).splitlines()[0]}") from error
    files.load(path, network, tensors)
    return network.eval(), params, found


def _understood(found: files.Source, config: Mapping[str, Any]) -> tuple[StoredParams, dict[str, Tensor]]:
    """Params of the network, and its weights by their names here."""
    match config.get("_class_name"):
        case "AutoencoderKL":
            tensors = _named(found)
            return _kl_params(found, tensors, config), tensors
        case "AutoencoderDC":
            arguments = {key: value for key, value in config.items() if not key.startswith("_")}
            try:
                return DCAEParams(kind="dc_ae", config=arguments), found.tensors
            except ValidationError as error:
                raise _unknown(found, f"config.json: {error.errors()[0]['msg']}") from None
        case other:
            raise _unknown(found, f"a {other or 'network without _class_name'}")


def _named(found: files.Source) -> dict[str, Tensor]:
    """Weights of a KL autoencoder by their names here, from any layout."""
    tensors = names.below(found.tensors, names.VAE) or found.tensors
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_OURS)}
    if not tensors:
        some = ", ".join(sorted(found.tensors)[:3])
        raise _unknown(found, f"no autoencoder, but {some}")
    return names.vae_from_single(tensors) if names.is_single_vae(tensors) else names.modern_vae(tensors)


def _kl_params(found: files.Source, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> KLAutoencoderParams:
    if misfits := files.misfits(config, _FIXED):
        raise _unknown(found, misfits)
    try:
        first_convs = [
            tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"]
            for i in range(names.count(tensors, r"encoder\.down_blocks\.(\d+)\."))
        ]
        return KLAutoencoderParams(
            kind="kl",
            patch_px=1,
            channels=[len(conv) for conv in first_convs],
            num_res_blocks=names.count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            latent_channels=tensors["decoder.conv_in.weight"].shape[1],
            middle_attention=any(".mid_block.attentions." in name for name in tensors),
            quant_conv="quant_conv.weight" in tensors,
            norm_groups=config.get("norm_num_groups", 32),
        )
    except KeyError as error:
        raise _unknown(found, f"no {error.args[0]}") from None
    except ValidationError as error:
        raise _unknown(found, str(error.errors()[0]["msg"])) from None


def _unknown(found: files.Source, what: str) -> IntegrityError:
    expected = f"an autoencoder of diffusers ({_KL} or {_DC}), or a single file of a KL autoencoder"
    fix = "bring that of Stable Diffusion 1, 2, XL or 3, of FLUX, or a DC-AE as a folder"
    return IntegrityError(str(found.path), what, expected, fix)


def _check_stated(source: PretrainedAutoencoderParams, params: StoredParams) -> None:
    errors = [
        ConfigError(f"{_WHERE}.{key}", f"found {stated}", f"{true}, as {source.path} has", f"set {key}: {true}")
        for key, stated, true in (
            ("factor", source.factor, params.factor),
            ("latent_channels", source.latent_channels, params.latent_channels),
        )
        if stated != true
    ]
    if errors:
        raise ConfigError.many(errors)
