"""Start a training from a trained denoiser, and check that both trainings have the same traits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ldm.core import artifact, workspace
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser.model.networks import KIND
from ldm.denoiser.model.params import NetworkParams
from ldm.denoiser.training.inputs import Inputs
from ldm.denoiser.training.params import InitFromParams, TrainUNetParams, Trait

_WHERE = "params.yaml: train_unet"


def load_weights(unet: nn.Module, init_from: InitFromParams, params: TrainUNetParams, inputs: Inputs) -> str:
    """Load the weights of a trained denoiser into `unet`; returns the SHA-256 of the trained denoiser.

    IntegrityError: it is missing or corrupt. ConfigError: it has another network, or was trained with other traits that
    `init_from.may_differ` does not name; every difference is listed.
    """
    directory = Path(init_from.path)
    if not directory.is_dir():
        fix = workspace.left_behind(directory) or "correct train_unet.init_from, or bring it back by `dvc pull`"
        raise IntegrityError(str(directory), "no such folder", "a trained UNet", fix)
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        theirs = _traits(passport.config["diffusion"], passport.inputs, passport.facts)
        errors = _of_network(directory, params.network, passport.config["network"])
    # Compare before loading, so that all differences are reported at once.
    ours = _traits(params.diffusion.model_dump(), inputs.sha256, inputs.facts)
    for trait, value in ours.items():
        if value != theirs[trait] and trait not in init_from.may_differ:
            fix = f"train with that one, or name {trait} in may_differ if the change is meant"
            expected = f"{theirs[trait]}, as in {directory}"
            errors.append(ConfigError(f"{_WHERE}.init_from", f"{trait} {value}", expected, fix))
    if errors:
        raise ConfigError.many(errors)
    with artifact.fitting(directory):
        unet.load_state_dict(tensors)
    return passport.content_sha256


def _of_network(directory: Path, ours: NetworkParams, theirs: Mapping[str, Any]) -> list[ConfigError]:
    fix = "set it so, or train from the start with init_from: null"
    return [
        ConfigError(f"{_WHERE}.network.{key}", f"found {value}", f"{theirs.get(key)}, as in {directory}", fix)
        for key, value in ours.model_dump(mode="json").items()
        if value != theirs.get(key)
    ]


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
