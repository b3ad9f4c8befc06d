"""Images to latents and back: pixel ranges, posteriors, the interface of every autoencoder.

Each kind has a module of its own, beside its params in `params.py`; `networks.py` builds and opens them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ldm.compute.attention import Shape

IMAGE_CHANNELS = 3
LOG_VARIANCE_RANGE = (-30.0, 20.0)


def to_signal(image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Map pixels 0..255 to the signal that the networks work on: -1..1 in float32."""
    return image.float() / 127.5 - 1


def to_image(x: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """Map a signal to the nearest pixel values 0..255; values outside -1..1 are clamped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Posterior:
    """Independent Gaussians over latents, in float32; log variances are clamped to -30..20."""

    mean: Float[Tensor, "b c h w"]
    log_variance: Float[Tensor, "b c h w"]

    @classmethod
    def from_moments(cls, moments: Float[Tensor, "b c2 h w"]) -> Self:
        """From an encoder's output: the first half of the channels holds the means, the second the log variances."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        return cls(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def sample(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The sample that standard-normal `noise` selects (Kingma & Welling 2014, equation 10)."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def mode(self) -> Float[Tensor, "b c h w"]:
        """The most likely latent."""
        return self.mean

    def kl(self) -> Float[Tensor, "b"]:
        """KL divergence from the standard normal in nats per image (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance).flatten(1).sum(1)


class Autoencoder(nn.Module, ABC):
    """The interface of every kind of autoencoder: images to latents and back. Users never need to know the kind."""

    factor: int
    """Side in pixels of the square that one latent position covers."""

    @property
    def halves(self) -> list[nn.Module]:
        """Encoder and decoder, of those kinds that have weights."""
        return [part for name, part in self.named_children() if name in ("encoder", "decoder")]

    @abstractmethod
    def attention_shapes(self, height: int, width: int) -> list[Shape]:
        """Shapes of its attention on latents of this size."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "b 3 h w"]) -> Posterior:
        """Posterior over latents (b, latent_channels, h / factor, w / factor) of signals in -1..1."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Signal in about -1..1 from latents on the scale of `encode`."""
