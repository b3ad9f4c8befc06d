"""The kinds of autoencoder: one place that builds a new one, and one that opens a trained one."""

from pathlib import Path

import torch
from pydantic import TypeAdapter

from ldm.autoencoder.model import dc_ae, identity, kl
from ldm.autoencoder.model.network import Autoencoder
from ldm.autoencoder.model.params import (
    DCAEParams,
    IdentityParams,
    KLAutoencoderParams,
    StoredParams,
    with_kind,
    with_quant_conv,
)
from ldm.core import artifact

KIND = artifact.Kind("autoencoder", (with_kind, with_quant_conv))


def build(params: StoredParams) -> Autoencoder:
    """A new network of the configured kind; its weights come from torch's generator. MachineError: it needs a package
    that is not installed."""
    match params:
        case KLAutoencoderParams():
            return kl.KLAutoencoder(params)
        case IdentityParams():
            return identity.IdentityAutoencoder(params)
        case DCAEParams():
            return dc_ae.DCAutoencoder(params)


def params_of(passport: artifact.Passport) -> StoredParams:
    """What a passport says of its network. ValidationError: it does not fit this code."""
    return TypeAdapter[StoredParams](StoredParams).validate_python(passport.config)


def load(directory: Path, device: torch.device) -> tuple[Autoencoder, artifact.Passport]:
    """The trained autoencoder, frozen. IntegrityError: missing, corrupt or of another kind."""
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        network = build(params_of(passport))
        network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device), passport
