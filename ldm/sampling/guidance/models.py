"""Models that guide a denoiser: they are opened from their folders, and must fit it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.core.artifact import Passport
from ldm.core.errors import ConfigError
from ldm.denoiser.model import networks
from ldm.denoiser.model.diffusion import Prediction, Schedule
from ldm.denoiser.model.network import Network


@dataclass(frozen=True)
class WorseModel:
    """A denoiser for autoguidance. Network and prediction may be others than those of the denoiser that it guides."""

    network: Network
    prediction: Prediction
    sha256: str


def load_worse(directory: Path, traits: Mapping[str, str], of: Path, device: torch.device) -> WorseModel:
    """Open a denoiser that must have the same traits as the one in the folder `of`.

    ConfigError: there is no such folder, or traits differ, all of which are listed. IntegrityError: it is corrupt or of
    another kind.
    """
    fix = "name the folder of a denoiser that was trained on the same latents and embeddings, with the same schedule"
    if not directory.is_dir():
        raise ConfigError("guidance.directory", f"no folder {directory}", "a trained denoiser", fix)
    network, diffusion, passport = networks.load(directory, device)
    theirs = traits_of(Schedule(diffusion.schedule), network, passport)
    differing = [name for name, value in traits.items() if theirs[name] != value]
    if differing:
        found, expected = (", ".join(f"{name} {of[name]}" for name in differing) for of in (theirs, traits))
        raise ConfigError("guidance.directory", f"{directory} has {found}", f"{expected}, as {of} has", fix)
    return WorseModel(network, diffusion.prediction, passport.content_sha256)


def traits_of(schedule: Schedule, network: Network, passport: Passport) -> dict[str, str]:
    """What two denoisers must share so that their z0_hat can be compared: the meaning of z, of t and of the prompt."""
    scale = {name: [f"{value:.6g}" for value in values] for name, values in passport.facts["latent_scale"].items()}
    return {
        "schedule": schedule.name,
        "autoencoder": str(passport.inputs.get("autoencoder")),
        "embeddings": str(passport.inputs.get("embeddings")),
        "latent_scale": f"of mean {', '.join(scale['mean'])} and deviation {', '.join(scale['std'])}",
        "latents of": " x ".join(map(str, network.latent_shape)),
    }
