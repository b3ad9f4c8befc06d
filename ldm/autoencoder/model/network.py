"""Images to latents and back (Kingma & Welling 2014; Rombach et al. 2022, section 3.1): pixel ranges, networks, loss.

Topology and parameter names are those of Stable Diffusion's autoencoder in diffusers' layout; the patchifying stem is
the one option outside it. Residual branches start at zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ldm.autoencoder.model.blocks import Attention, ResBlock, Upsample
from ldm.autoencoder.model.params import AutoencoderParams, ReconstructionParams
from ldm.compute.attention import Shape
from ldm.core import artifact

KIND = artifact.Kind("autoencoder")
IMAGE_CHANNELS = 3
NORM_EPS = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)


def to_signal(image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pixels 0..255 as the networks see them, -1..1 in float32."""
    return image.float() / 127.5 - 1


def to_image(x: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """The nearest pixel values 0..255 of a signal; what lies outside -1..1 is clamped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Posterior:
    """Independent Gaussians over latents, in float32; log variances lie in -30..20."""

    mean: Float[Tensor, "b c h w"]
    log_variance: Float[Tensor, "b c h w"]

    @classmethod
    def from_moments(cls, moments: Float[Tensor, "b c2 h w"]) -> Self:
        """The first half of the channels holds the means, the second the log variances."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        return cls(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def sample(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The latent that standard-normal `noise` picks (Kingma & Welling 2014, equation 10)."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def mode(self) -> Float[Tensor, "b c h w"]:
        """The likeliest latent."""
        return self.mean

    def kl(self) -> Float[Tensor, "b"]:
        """KL divergence from the standard normal in nats per image (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance).flatten(1).sum(1)


class Autoencoder(nn.Module):
    """KL autoencoder; `factor` is the side in pixels of the square that one latent position covers."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        self.factor = params.factor
        self._middle_width = params.channels[-1] if params.middle_attention else None
        self.encoder = Encoder(params)
        self.decoder = Decoder(params)
        self.quant_conv = nn.Conv2d(2 * params.latent_channels, 2 * params.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(params.latent_channels, params.latent_channels, 1)

    def attention_shapes(self, latent_size: int) -> list[Shape]:
        """What it asks of attention on latents of this height and width: one head over all positions, or nothing."""
        return [Shape(latent_size**2, latent_size**2, self._middle_width)] if self._middle_width else []

    def encode(self, x: Float[Tensor, "b 3 h w"]) -> Posterior:
        """Posterior over latents (b, latent_channels, h / factor, w / factor) of signals in -1..1."""
        size = tuple(x.shape[2:])
        assert not any(side % self.factor for side in size), f"factor {self.factor} does not divide the size {size}"
        return Posterior.from_moments(self.quant_conv(self.encoder(x)))

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Signal in about -1..1 of latents as `encode` gives them."""
        return self.decoder(self.post_quant_conv(z)).float()


class Encoder(nn.Module):
    """Signal -> moments of the posterior, before `quant_conv`."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        widths = params.channels
        self.patch_px = params.patch_px
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS * params.patch_px**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            downsamplers = [] if level == len(widths) - 1 else [Downsample(width)]
            resnets = _resnets(params, widths[max(level - 1, 0)], width, params.num_res_blocks)
            self.down_blocks.append(Level(resnets, downsamplers=downsamplers))
        self.mid_block = Middle(params)
        self.conv_norm_out = nn.GroupNorm(params.norm_groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * params.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Twice `latent_channels` channels, a `factor`th of the size."""
        h = self.conv_in(functional.pixel_unshuffle(x, self.patch_px))
        for level in self.down_blocks:
            h = level(h)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """Latents, after `post_quant_conv`, -> signal."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        widths = params.channels[::-1]
        self.patch_px = params.patch_px
        self.conv_in = nn.Conv2d(params.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(params)
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            upsamplers = [] if level == len(widths) - 1 else [Upsample(width)]
            resnets = _resnets(params, widths[max(level - 1, 0)], width, params.num_res_blocks + 1)
            self.up_blocks.append(Level(resnets, upsamplers=upsamplers))
        self.conv_norm_out = nn.GroupNorm(params.norm_groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], IMAGE_CHANNELS * params.patch_px**2, 3, padding=1)

    def forward(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Three channels, `factor` times the size."""
        h = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            h = level(h)
        return functional.pixel_shuffle(self.conv_out(functional.silu(self.conv_norm_out(h))), self.patch_px)


class Level(nn.Module):
    """Residual blocks of one resolution, then the way to the next."""

    def __init__(
        self,
        resnets: Sequence[nn.Module],
        *,
        downsamplers: Sequence[nn.Module] = (),
        upsamplers: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.downsamplers = nn.ModuleList(downsamplers)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """The layers one after the other."""
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            h = layer(h)
        return h


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, self-attention between them."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        width = params.channels[-1]
        self.resnets = nn.ModuleList(ResBlock(width, width, params.norm_groups, NORM_EPS, None) for _ in range(2))
        self.attentions = nn.ModuleList([SelfAttention(width, params.norm_groups)] if params.middle_attention else [])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same shape."""
        first, last = self.resnets
        h = first(x)
        for attention in self.attentions:
            h = attention(h)
        return last(h)


class SelfAttention(Attention):
    """Attention of all positions of a feature map to each other, by one head; a residual connection leads around it."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__(width, width, num_heads=1, bias=True)
        self.group_norm = nn.GroupNorm(norm_groups, width, NORM_EPS)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same shape."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + super().forward(tokens, tokens).transpose(1, 2).unflatten(2, x.shape[-2:])


class Downsample(nn.Module):
    """A convolution of stride 2 that pads below and to the right alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Half the size."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class ReconstructionObjective(nn.Module):
    """Loss of an autoencoder per pixel value: distortion + kl_weight x KL; the distortion may become a likelihood.

    The distortion D is |e| (L1) or e^2 (L2) of the error e, plus `gradient_weight` times `gradient_error`. With a
    trained log variance v, -log p is (D exp(-v) + v) / 2 for L2, a Gaussian, and sqrt(2) D exp(-v/2) + v/2 for L1, a
    Laplace density of variance exp(v), both up to a constant.
    """

    def __init__(self, autoencoder: Autoencoder, params: ReconstructionParams) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.params = params
        self.log_variance = nn.Parameter(torch.zeros(())) if params.learned_log_variance else None

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts, means over the batch, of `image` (uint8, b 3 h w) and posterior `noise` (b c h w).

        Keys: loss; l1 and mse per pixel value of signals in -1..1; kl in nats per image; gradient and log_variance
        where they are on.
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
        loss = distortion + params.kl_weight * parts["kl"] * (len(signal) / signal.numel())
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    def _negative_log_likelihood(self, distortion: Tensor, log_variance: Tensor) -> Tensor:
        if self.params.error == "l2":
            return 0.5 * (distortion * torch.exp(-log_variance) + log_variance)
        return 2**0.5 * distortion * torch.exp(-0.5 * log_variance) + 0.5 * log_variance


def gradient_error(error: Float[Tensor, "b c h w"], num_scales: int) -> Float[Tensor, ""]:
    """Mean absolute difference of neighbouring values, across and down, averaged over halved resolutions.

    Differences are linear, so that of an error image it compares the gradients of two images: edges weigh more than in
    L1 or L2, which leave them soft.
    """
    total = error.new_zeros(())
    for scale in range(num_scales):
        error = functional.avg_pool2d(error, 2) if scale else error
        assert min(error.shape[2:]) >= 2, f"images too small for {num_scales} gradient scales"
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return total / (2 * num_scales)


def _resnets(params: AutoencoderParams, in_width: int, width: int, num_blocks: int) -> list[ResBlock]:
    in_widths = [in_width, *[width] * (num_blocks - 1)]
    return [ResBlock(before, width, params.norm_groups, NORM_EPS, None) for before in in_widths]


def load(directory: Path, device: torch.device) -> tuple[Autoencoder, artifact.Passport]:
    """The trained autoencoder, frozen. IntegrityError: missing, corrupt or of another kind."""
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        network = Autoencoder(AutoencoderParams.model_validate(passport.config))
        network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device), passport
