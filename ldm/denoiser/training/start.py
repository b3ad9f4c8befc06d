"""Start a training from a trained denoiser, ours or Stable Diffusion's, and check that both trainings have the same
traits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ldm.autoencoder.encoding.latents import LatentScale
from ldm.core import artifact, workspace
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser.model.networks import KIND
from ldm.denoiser.model.params import NetworkParams
from ldm.denoiser.training import pretrained
from ldm.denoiser.training.inputs import Inputs
from ldm.denoiser.training.params import InitFromParams, TrainUNetParams, Trait
from ldm.exchange import files, names

_WHERE = "params.yaml: train_unet"
_FREE = {"latent_channels", "latent_size", "linear_projection", "gradient_checkpointing"}
"""Params that may differ: weights do not depend on them, or are made to fit."""
_POSITIONS = "position_embedding"
_OF_CHANNELS = {"conv_in.weight": 1, "conv_out.weight": 0, "conv_out.bias": 0}
"""Weights with a row or column per channel of a latent, and in which dimension."""


def start(unet: nn.Module, params: TrainUNetParams, inputs: Inputs) -> tuple[Inputs, dict[str, str]]:
    """Load the weights of `params.init_from`, if there is one; returns the inputs of its training, and the SHA-256 of
    all that it starts from.

    New images have another latent scale even with the same autoencoder, but a denoiser goes on with the scale that it
    knows, unless `latent_scale` may differ. Errors: those of `load_weights`.
    """
    if params.init_from is None:
        return inputs, inputs.sha256
    passport = Path(params.init_from.path) / artifact.PASSPORT
    if passport.is_file() and "latent_scale" not in params.init_from.may_differ:
        with artifact.fitting(passport.parent):
            scale = LatentScale.from_facts(artifact.read_passport(passport.parent, KIND).facts["latent_scale"])
        inputs = inputs.scaled(_of_as_many_channels(scale, inputs.train.latent_shapes[0][0]))
    return inputs, {**inputs.sha256, "init_from": load_weights(unet, params.init_from, params, inputs)}


def _of_as_many_channels(scale: LatentScale, num_channels: int) -> LatentScale:
    if len(scale.mean) == num_channels:
        return scale
    found, expected = f"latents of {num_channels} channels", f"{len(scale.mean)}, as its latent scale has"
    fix = "name latent_scale in may_differ, so that the scale of these latents is used"
    raise ConfigError(f"{_WHERE}.init_from", found, expected, fix)


def load_weights(unet: nn.Module, init_from: InitFromParams, params: TrainUNetParams, inputs: Inputs) -> str:
    """Load the weights of a trained denoiser into `unet`; returns the SHA-256 of the trained denoiser.

    Another size of latents is fine: learned positions are interpolated. Channels that only the network here has start
    at zero, and those that only the other has (the mask of an inpainting model) are left out. Projections around
    attention may be linear in one and 1x1 convolutions in the other.

    IntegrityError: it is missing, corrupt, or no such network. ConfigError: it has another network, or was trained with
    other traits, or unknown ones, that `init_from.may_differ` does not name; every difference is listed.
    """
    path = Path(init_from.path)
    if not path.exists():
        fix = workspace.left_behind(path) or "correct train_unet.init_from, or bring it back by `dvc pull`"
        raise IntegrityError(str(path), "no such file or folder", "a trained UNet", fix)
    ours = _traits(params.diffusion.model_dump(), inputs.sha256, inputs.facts)
    found = _own(path) if (path / artifact.PASSPORT).is_file() else pretrained.read(path)
    theirs = found.traits
    if found.autoencoder is not None:
        is_same = found.autoencoder == inputs.autoencoder_source
        theirs = theirs | {"autoencoder": ours["autoencoder"] if is_same else f"of SHA-256 {found.autoencoder}"}
    with artifact.fitting(path):
        errors = _of_network(path, params.network, found.network)
    # Compare before loading, so that all differences are reported at once.
    errors += [
        _of_trait(path, trait, value, theirs.get(trait))
        for trait, value in ours.items()
        if value != theirs.get(trait) and trait not in init_from.may_differ
    ]
    if errors:
        raise ConfigError.many(errors)
    _load(path, unet, names.with_projections(found.tensors, linear=params.network.linear_projection))
    return found.sha256


def _own(directory: Path) -> pretrained.Pretrained:
    """A denoiser that this pipeline has trained."""
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        traits = _traits(passport.config["diffusion"], passport.inputs, passport.facts)
    return pretrained.Pretrained(tensors, passport.config["network"], traits, None, passport.content_sha256)


def _of_trait(path: Path, trait: str, ours: str, theirs: str | None) -> ConfigError:
    if theirs is None:
        expected = f"that of {path}, whose files do not tell it"
        fix = f"name {trait} in may_differ if it is the same, or the change is meant"
        return ConfigError(f"{_WHERE}.init_from", f"{trait} {ours}", expected, fix)
    fix = f"train with that one, or name {trait} in may_differ if the change is meant"
    return ConfigError(f"{_WHERE}.init_from", f"{trait} {ours}", f"{theirs}, as in {path}", fix)


def _of_network(path: Path, ours: NetworkParams, theirs: Mapping[str, Any]) -> list[ConfigError]:
    fix = "set it so, or train from the start with init_from: null"
    own, other = _decisive(ours.model_dump(mode="json")), _decisive(theirs)
    return [
        ConfigError(f"{_WHERE}.network.{key}", f"found {value}", f"{other.get(key)}, as in {path}", fix)
        for key, value in own.items()
        if value != other.get(key) and (key != "max_context_tokens" or other["num_context_layers"])
    ]


def _decisive(network: Mapping[str, Any]) -> dict[str, Any]:
    """The params that weights depend on; head widths of every level, as a number where all are equal."""
    found = {key: value for key, value in network.items() if key not in _FREE}
    widths = found["head_width"]
    if isinstance(widths, list) and len(set[int](widths)) == 1:
        found["head_width"] = widths[0]
    if not found["num_context_layers"]:
        found.pop("max_context_tokens", None)
    return found


def _load(path: Path, unet: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ConfigError: names or shapes do not fit."""
    expected = unet.state_dict()
    fitted = {name: _fitted(name, tensor, expected.get(name, tensor)) for name, tensor in tensors.items()}
    if misfits := files.unfit(fitted, expected):
        fix = "set train_unet.network to the topology of that file, or train from the start with init_from: null"
        raise ConfigError(f"{_WHERE}.init_from", f"{path}: {misfits}", "the weights of train_unet.network", fix)
    files.load(path, unet, fitted)


def _fitted(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A weight that depends on the size or the channels of latents, as the network has it."""
    if name == _POSITIONS and tensor.shape[1] == like.shape[1] and tensor.shape != like.shape:
        return functional.interpolate(tensor.float(), like.shape[2:], mode="bicubic", align_corners=False)
    if name in _OF_CHANNELS and tensor.dim() == like.dim():
        of_channels, shape = _OF_CHANNELS[name], list(tensor.shape)
        num_common = min(like.shape[of_channels], shape[of_channels])
        shape[of_channels] = like.shape[of_channels]
        fitted = tensor.new_zeros(shape)
        fitted.narrow(of_channels, 0, num_common).copy_(tensor.narrow(of_channels, 0, num_common))
        return fitted
    return tensor


def _traits(diffusion: Mapping[str, Any], inputs: Mapping[str, str], facts: Mapping[str, Any]) -> dict[Trait, str]:
    """The traits that the weights of a denoiser depend on besides its network, in words: the meaning of its output, of
    the tokens that it attends to, and of its latents. The latent scale alone does not identify the latents, since two
    autoencoders may have the same scale."""
    scale = {name: [f"{value:.6g}" for value in values] for name, values in facts["latent_scale"].items()}
    return {
        "schedule": diffusion["schedule"],
        "prediction": diffusion["prediction"],
        "text_encoder": f"with null embedding {facts['null_sha256']} of {facts['context_tokens']} tokens",
        "autoencoder": inputs["autoencoder"],
        "latent_scale": f"of mean {', '.join(scale['mean'])} and deviation {', '.join(scale['std'])}",
    }
