"""Params of the autoencoder's loss."""

from typing import Literal

from pydantic import Field

from ldm.core.config import Section
from ldm.training.params import AdversaryParams


class PerceptualParams(Section):
    """LPIPS: a distance of the features of an ImageNet network, weighted to agree with people (Zhang et al. 2018).

    The package `lpips` computes it and brings the weighting; the weights of the ImageNet network are a file of yours.
    """

    backbone: Literal["vgg", "alex", "squeeze"]
    """Network whose features are compared: torchvision's vgg16, alexnet or squeezenet1_1. `vgg` is usual for a loss."""
    weights: str
    """State dict of torchvision's network: a file below the folder `lpips` of `paths.models`."""
    weight: float = Field(gt=0, le=100)
    """Weight of the distance beside the mean error per pixel value; 1 is usual beside `error: l1`."""


class AdversarialParams(AdversaryParams):
    """A discriminator of patches, which learns to tell reconstructions from images while the decoder learns to deceive
    it (Isola et al. 2017, section 3.2.2; Esser et al. 2021, section 3.1)."""

    weight: float = Field(gt=0, le=100)
    """Strength: the gradient that deceiving gives the decoder's last layer, relative to that of all other errors. 0.5
    is usual."""
    channels: int = Field(ge=8, le=1024, multiple_of=8)
    """Channels after its first convolution; each following one has twice as many, up to eight times."""
    num_layers: int = Field(ge=1, le=6)
    """Convolutions of stride 2. The convolutions under a verdict see 70 pixels with 3 of them, 34 with 2, 16 with 1."""


class EquivarianceParams(Section):
    """Decode scaled and turned latents as scaled and turned images (EQ-VAE; Kouzelis et al. 2025, section 3.2).

    Latents then change with an image as pixels do, which makes them easier to learn for a denoiser.
    """

    probability: float = Field(gt=0, le=1)
    """Share of the updates that scale and turn; the others reconstruct as usual."""
    min_scale: float = Field(gt=0, le=1)
    """Least scale of the latents' sides; scales are uniform between it and 1. 1 = turns alone."""


class ReconstructionParams(Section):
    """Loss of the autoencoder, per pixel value: reconstruction + kl_weight x KL."""

    error: Literal["l1", "l2"]
    """Mean absolute or mean squared error."""
    kl_weight: float = Field(ge=0, le=1)
    """Weight of the KL divergence in nats per pixel value; with a likelihood, 1 gives the evidence lower bound."""
    learned_log_variance: bool
    """Whether the error is divided by a trained output scale, as in a likelihood; false = scale 1."""
    gradient_weight: float = Field(ge=0, le=100)
    """Weight of the error of image gradients, a perceptual term that needs no pretrained network; 0 = off."""
    num_gradient_scales: int = Field(ge=1, le=6)
    """Number of resolutions at which image gradients are compared, each half the one before."""
    perceptual: PerceptualParams | None
    """LPIPS, added to the error; null = off."""
    adversarial: AdversarialParams | None
    """A discriminator, which is trained along; null = off."""
    equivariance: EquivarianceParams | None
    """Regularisation of the latents by scaling and turning; null = off."""
    turned_colours: float = Field(ge=0, le=1)
    """Share of the training images whose hues are turned by a random angle, for shapes in colours that the corpus does
    not show; 0 = off."""
    latent_noise: float = Field(ge=0, le=100)
    """Noise that the decoder learns to see through, since no denoiser predicts latents exactly: normal noise is added
    to the latents, of a standard deviation drawn for each image, uniform between 0 and this; 0 = off. The latents of
    the default deviate by about 1 without it, and by about 2 with 1.0."""
