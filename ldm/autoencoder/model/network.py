"""Images to latents and back: pixel ranges, posteriors, the interface of every autoencoder, and its loss.

Each kind has a module of its own, beside its params in `params.py`; `networks.py` builds and opens them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ldm.autoencoder.model.params import ReconstructionParams
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

    @abstractmethod
    def attention_shapes(self, height: int, width: int) -> list[Shape]:
        """Shapes of its attention on latents of this size."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "b 3 h w"]) -> Posterior:
        """Posterior over latents (b, latent_channels, h / factor, w / factor) of signals in -1..1."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Signal in about -1..1 from latents on the scale of `encode`."""


class ReconstructionObjective(nn.Module):
    """Loss of an autoencoder per pixel value: distortion, or a negative log-likelihood, plus kl_weight x KL.

    The distortion D is |e| (L1) or e^2 (L2) of the error e, plus `gradient_weight` times `gradient_error`. With a
    trained log variance v, the distortion is replaced by -log p of a density of variance exp(v), up to a constant:
    (D exp(-v) + v) / 2 for L2, a Gaussian, and sqrt(2) D exp(-v/2) + v/2 for L1, a Laplace density.
    """

    def __init__(self, autoencoder: Autoencoder, params: ReconstructionParams) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.params = params
        self.log_variance = nn.Parameter(torch.zeros(())) if params.learned_log_variance else None

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts, as means over the batch.

        batch: `image` (uint8, b 3 h w) and `noise` (b c h w), which selects the posterior sample.

        Keys of the result: loss; l1 and mse per pixel value of signals in -1..1; kl in nats per image; gradient and
        log_variance if they are switched on.
        """
        params, signal = self.params, to_signal(batch["image"])
        posterior = self.autoencoder.encode(signal)
        error = self.autoencoder.decode(posterior.sample(batch["noise"])) - signal
        parts = {"l1": error.abs().mean(), "mse": error.square().mean(), "kl": posterior.kl().mean()}
        distortion = parts["l1"] if params.error == "l1" else parts["mse"]
        if params.gradient_weight:
            parts["gradient"] = gradient_error(error, params.num_gradient_scales)
            distortion = distortion + params.gradient_weight * parts["gradient"]
        if self.log_variance is not None:
            parts["log_variance"] = self.log_variance
            distortion = self._negative_log_likelihood(distortion, self.log_variance)
        # The KL divergence is per image; here it is divided by the number of pixel values of an image.
        loss = distortion + params.kl_weight * parts["kl"] * (len(signal) / signal.numel())
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    def _negative_log_likelihood(self, distortion: Tensor, log_variance: Tensor) -> Tensor:
        if self.params.error == "l2":
            return 0.5 * (distortion * torch.exp(-log_variance) + log_variance)
        return 2**0.5 * distortion * torch.exp(-0.5 * log_variance) + 0.5 * log_variance


def gradient_error(error: Float[Tensor, "b c h w"], num_scales: int) -> Float[Tensor, ""]:
    """Mean absolute difference of horizontal and vertical neighbours, averaged over resolutions that are halved.

    Differences are linear, so on an error image this compares the gradients of two images. Edges weigh more than in L1
    or L2, which leave them soft.
    """
    total = error.new_zeros(())
    for scale in range(num_scales):
        error = functional.avg_pool2d(error, 2) if scale else error
        assert min(error.shape[2:]) >= 2, f"images too small for {num_scales} gradient scales"
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return total / (2 * num_scales)
