"""The loss of an autoencoder."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ldm import randomness
from ldm.autoencoder.model.network import Autoencoder, Posterior, to_signal
from ldm.autoencoder.training import colours, equivariance
from ldm.autoencoder.training.discriminator import PatchDiscriminator, absent, adversarial_loss
from ldm.autoencoder.training.loss_params import ReconstructionParams
from ldm.autoencoder.training.params import TrainAutoencoderParams
from ldm.autoencoder.training.perceptual import Lpips
from ldm.compute import compilation
from ldm.core.errors import ConfigError
from ldm.core.params import MachineParams


class ReconstructionObjective(nn.Module):
    """Loss of an autoencoder per pixel value: distortion, or a negative log-likelihood, plus kl_weight x KL.

    The distortion D is |e| (L1) or e^2 (L2) of the error e, plus `gradient_weight` times `gradient_error`, plus the
    weighted LPIPS. With a trained log variance v, the distortion is replaced by -log p of a density of variance exp(v),
    up to a constant: (D exp(-v) + v) / 2 for L2, a Gaussian, and sqrt(2) D exp(-v/2) + v/2 for L1, a Laplace density.

    In training, a discriminator (`adversary`) adds `adversarial_loss`; validation leaves it out.
    """

    def __init__(self, autoencoder: Autoencoder, params: ReconstructionParams) -> None:
        """IntegrityError, MachineError: LPIPS is asked for, and its weights or its package are not there."""
        super().__init__()
        self.autoencoder = autoencoder
        self.params = params
        self.log_variance = nn.Parameter(torch.zeros(())) if params.learned_log_variance else None
        self.perceptual = None if params.perceptual is None else Lpips(params.perceptual)
        self.adversary = None if params.adversarial is None else PatchDiscriminator(params.adversarial)

    @property
    def inputs(self) -> dict[str, str]:
        """Name -> SHA-256 of what the loss was made from."""
        return {} if self.perceptual is None else {"lpips": self.perceptual.sha256}

    def check_sizes(self, latent_sizes: Sequence[tuple[int, int]]) -> None:
        """ConfigError: images that belong to latents of these sizes become too small for a term of the loss."""
        terms = {"perceptual": self.perceptual, "adversarial": self.adversary}
        least = {name: term.min_side_px for name, term in terms.items() if term is not None}
        if self.params.gradient_weight:
            least["num_gradient_scales"] = 2**self.params.num_gradient_scales  # the last one is of two pixels
        scale = 1.0 if self.params.equivariance is None else self.params.equivariance.min_scale
        smallest = min(side for size in latent_sizes for side in equivariance.scaled_size(size, scale))
        side_px = self.autoencoder.factor * smallest
        for name, min_side_px in least.items():
            if side_px < min_side_px:
                expected = f"at least {min_side_px} px"
                smaller = "lower it" if name == "num_gradient_scales" else "choose a smaller network"
                fix = f"raise equivariance.min_scale or the size of the images, or {smaller}"
                raise ConfigError(f"train_autoencoder: {name}", f"images of {side_px} px", expected, fix)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts, as means over the batch.

        batch: `image` (uint8, b 3 h w) and `noise` (b c h2 w2), which selects the posterior sample. Latents are scaled
        to the size of the noise, and turned by the quarter `turns` (int64, b), if there are any; so is what they
        should decode to. The hues of images are turned before by the angles `hues` (b, radians), if there are any, and
        `latent_noise` (b c h2 w2) is added to the sample. The discriminator takes part if there is a key `adversarial`.

        Keys of the result: loss; l1 and mse per pixel value of signals in -1..1; kl in nats per image; gradient,
        lpips, log_variance and those of `adversarial_loss` if they are switched on.
        """
        image = to_signal(batch["image"])
        if "hues" in batch:
            image = colours.turned(image, batch["hues"])
        posterior = self.autoencoder.encode(image)
        z, target = self._transformed(posterior, image, batch)
        reconstruction = self.autoencoder.decode(z)
        distortion, parts = self._distortion(reconstruction, target, posterior.kl().mean())
        # The KL divergence is per image; here it is divided by the number of pixel values of an image.
        loss = distortion + self.params.kl_weight * parts["kl"] * (len(image) / image.numel())
        if self.adversary is not None and self.params.adversarial is not None and self.training:
            weight, takes_part = self.params.adversarial.weight, "adversarial" in batch
            players = (self.adversary, weight, distortion, reconstruction, target, last_weight(self.autoencoder))
            added, health = adversarial_loss(*players) if takes_part else absent(self.adversary)
            loss, parts = loss + added, parts | health
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    def _transformed(self, posterior: Posterior, image: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The latents to decode, and the signal that they should decode to."""
        z = equivariance.scaled(posterior, batch["noise"].shape[2:]).sample(batch["noise"])
        if "latent_noise" in batch:
            z = z + batch["latent_noise"]
        if "turns" not in batch:
            return z, image
        size = torch.Size(self.autoencoder.factor * side for side in z.shape[2:])
        target = equivariance.resized(image, size)
        return equivariance.turned(z, batch["turns"]), equivariance.turned(target, batch["turns"])

    def _distortion(self, reconstruction: Tensor, target: Tensor, kl: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Distortion or negative log-likelihood, and what it consists of, beside the KL divergence."""
        params, error = self.params, reconstruction - target
        parts = {"l1": error.abs().mean(), "mse": error.square().mean(), "kl": kl}
        distortion = parts["l1"] if params.error == "l1" else parts["mse"]
        if params.gradient_weight:
            parts["gradient"] = gradient_error(error, params.num_gradient_scales)
            distortion = distortion + params.gradient_weight * parts["gradient"]
        if self.perceptual is not None and params.perceptual is not None:
            parts["lpips"] = self.perceptual(reconstruction, target).mean()
            distortion = distortion + params.perceptual.weight * parts["lpips"]
        if self.log_variance is not None:
            parts["log_variance"] = self.log_variance
            distortion = self._negative_log_likelihood(distortion, self.log_variance)
        return distortion, parts

    def _negative_log_likelihood(self, distortion: Tensor, log_variance: Tensor) -> Tensor:
        if self.params.error == "l2":
            return 0.5 * (distortion * torch.exp(-log_variance) + log_variance)
        return 2**0.5 * distortion * torch.exp(-0.5 * log_variance) + 0.5 * log_variance


def build(
    autoencoder: Autoencoder, params: TrainAutoencoderParams, machine: MachineParams
) -> ReconstructionObjective | None:
    """The loss of the params, computed as `machine` says; None if they train nothing. The weights of a discriminator
    are a function of the seed.

    IntegrityError, MachineError: LPIPS is asked for, and its weights or its package are not there.
    """
    if params.reconstruction is None or params.training is None:
        return None
    torch.manual_seed(randomness.key(params.training.seed, "adversary"))
    objective = ReconstructionObjective(autoencoder, params.reconstruction)
    # A discriminator asks for gradients in the middle of the loss, which then is no single graph.
    compilation.prepare(machine, objective, as_wholes=objective.adversary is None)
    return objective


def last_weight(autoencoder: Autoencoder) -> nn.Parameter:
    """The kernel of the decoder's last layer, which every kind that has weights defines last."""
    return [weight for weight in autoencoder.get_submodule("decoder").parameters() if weight.dim() > 1][-1]


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
