"""Models that guide a denoiser: they are opened from their folders, and must fit it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ldm.core.artifact import Passport
from ldm.core.errors import ConfigError
from ldm.denoiser.model import networks
from ldm.denoiser.model.diffusion import Prediction, Schedule
from ldm.denoiser.model.network import Network
from ldm.sampling.guidance import classifier
from ldm.sampling.guidance.classifier import NoisyClassifier

Traits = Mapping[str, str]
"""What a model must share with the denoiser that it guides, in words."""


@dataclass(frozen=True)
class WorseModel:
    """A denoiser for autoguidance. Network and prediction may be others than those of the denoiser that it guides."""

    network: Network
    prediction: Prediction
    sha256: str


@dataclass(frozen=True)
class Classifier:
    """A classifier for classifier guidance."""

    network: NoisyClassifier
    sha256: str


class Guides:
    """Models that guide the denoiser with these traits in the folder `of`. Folders that settings name are below `root`;
    each is read once."""

    worse: Callable[[str], WorseModel]
    """The model for autoguidance in a folder. Errors: as `load_worse`."""
    classifier: Callable[[str], Classifier]
    """The classifier in a folder. Errors: as `load_classifier`."""

    def __init__(self, root: Path, traits: Traits, of: Path, device: torch.device) -> None:
        self.worse = cache(lambda directory: load_worse(root / directory, traits, of, device))
        self.classifier = cache(lambda directory: load_classifier(root / directory, traits, of, device))


def load_worse(directory: Path, traits: Traits, of: Path, device: torch.device) -> WorseModel:
    """Open a denoiser that must have the same traits as the one in the folder `of`.

    ConfigError: there is no such folder, or traits differ, all of which are listed. IntegrityError: it is corrupt or of
    another kind.
    """
    _check_there(directory)
    network, diffusion, passport = networks.load(directory, device)
    theirs = traits_of(Schedule(diffusion.schedule), network.latent_shape, passport)
    _check_fits(directory, theirs, traits, of)
    return WorseModel(network, diffusion.prediction, passport.content_sha256)


def load_classifier(directory: Path, traits: Traits, of: Path, device: torch.device) -> Classifier:
    """Open a classifier of noisy latents that must have the same traits as the denoiser in the folder `of`. Errors: as
    `load_worse`."""
    _check_there(directory)
    network, passport = classifier.load(directory, device)
    params: Mapping[str, Any] = passport.config["network"]
    shape = (params["latent_channels"], params["latent_size"], params["latent_size"])
    _check_fits(directory, traits_of(Schedule(passport.config["schedule"]), shape, passport), traits, of)
    return Classifier(network, passport.content_sha256)


def traits_of(schedule: Schedule, latent_shape: tuple[int, int, int], passport: Passport) -> dict[str, str]:
    """What two models must share so that z, t and the prompt mean the same to both."""
    scale = {name: [f"{value:.6g}" for value in values] for name, values in passport.facts["latent_scale"].items()}
    return {
        "schedule": schedule.name,
        "autoencoder": str(passport.inputs.get("autoencoder")),
        "embeddings": str(passport.inputs.get("embeddings")),
        "latent_scale": f"of mean {', '.join(scale['mean'])} and deviation {', '.join(scale['std'])}",
        "latents": " x ".join(map(str, latent_shape)),
    }


_FIX = "name the folder of a model that was trained on the same latents and embeddings, with the same schedule"


def _check_there(directory: Path) -> None:
    if not directory.is_dir():
        raise ConfigError("guidance.directory", f"no folder {directory}", "a trained model", _FIX)


def _check_fits(directory: Path, theirs: Traits, ours: Traits, of: Path) -> None:
    differing = [name for name, value in ours.items() if theirs[name] != value]
    if differing:
        found, expected = (", ".join(f"{name} {each[name]}" for name in differing) for each in (theirs, ours))
        raise ConfigError("guidance.directory", f"{directory} has {found}", f"{expected}, as {of} has", _FIX)
