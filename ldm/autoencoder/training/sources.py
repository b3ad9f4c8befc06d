"""Obtain an autoencoder from any kind of source."""

from dataclasses import dataclass, field
from typing import Any

import torch

from ldm import randomness
from ldm.autoencoder.model.network import Autoencoder
from ldm.autoencoder.model.networks import build
from ldm.autoencoder.model.params import StoredParams
from ldm.autoencoder.training import pretrained
from ldm.autoencoder.training.params import PretrainedAutoencoderParams, TrainAutoencoderParams


@dataclass(frozen=True)
class Obtained:
    """An autoencoder, what rebuilds it, and what its passport says of its origin."""

    network: Autoencoder
    params: StoredParams
    inputs: dict[str, str] = field(default_factory=dict[str, str])
    """Name -> SHA-256 of what was brought."""
    files: dict[str, str] = field(default_factory=dict[str, str])
    """Its files, with their SHA-256."""

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds the network, for its passport."""
        return self.params.model_dump(mode="json")

    @property
    def facts(self) -> dict[str, Any]:
        """What readers compare, and the files that were brought, for its passport."""
        shape = {"factor": self.params.factor, "latent_channels": self.params.latent_channels}
        return shape | ({"source": self.files} if self.files else {})


def obtain(params: TrainAutoencoderParams) -> Obtained:
    """The autoencoder that `params.source` describes, before any training. Weights of a new one are a function of the
    seed; of a brought one, only the decoder is trainable.

    ConfigError: what is brought is not what `source` states. IntegrityError: it is missing, damaged or unknown.
    MachineError: it needs a package that is not installed.
    """
    source = params.source
    if not isinstance(source, PretrainedAutoencoderParams):
        torch.manual_seed(randomness.key(source.training.seed if source.training else 0, "weights"))
        return Obtained(build(source.network), source.network)
    network, found, files = pretrained.load(source)
    for name, weight in network.named_parameters():
        weight.requires_grad_(not name.startswith(("encoder.", "quant_conv.")))
    return Obtained(network, found, {"source": files.sha256}, files.files)
