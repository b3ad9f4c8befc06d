"""The kinds of autoencoder: one place that builds a new one, and one that opens a trained one."""

from pathlib import Path

import torch
from pydantic import TypeAdapter

from ldm.autoencoder.model import identity, kl
from ldm.autoencoder.model.network import Autoencoder
from ldm.autoencoder.model.params import AutoencoderParams, IdentityParams, KLAutoencoderParams, with_kind
from ldm.core import artifact

KIND = artifact.Kind("autoencoder", (with_kind,))


def build(params: AutoencoderParams) -> Autoencoder:
    """A new network of the configured kind; its weights come from torch's generator."""
    match params:
        case KLAutoencoderParams():
            return kl.KLAutoencoder(params)
        case IdentityParams():
            return identity.IdentityAutoencoder(params)


def load(directory: Path, device: torch.device) -> tuple[Autoencoder, artifact.Passport]:
    """The trained autoencoder, frozen. IntegrityError: missing, corrupt or of another kind."""
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        network = build(TypeAdapter(AutoencoderParams).validate_python(passport.config))
        network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device), passport
