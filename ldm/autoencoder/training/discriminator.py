"""A discriminator of patches, and what it adds to the loss of an autoencoder."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ldm.autoencoder.model.blocks import GroupNorm
from ldm.autoencoder.model.network import IMAGE_CHANNELS
from ldm.autoencoder.training.loss_params import AdversarialParams

HEALTH: tuple[str, ...] = ("adversarial", "adversarial_weight", "discriminator", "logits_real", "logits_fake")
"""Names of what is logged of both players."""
_NUM_GROUPS = 8
_SLOPE = 0.2
_MAX_WIDENING = 8
_MAX_ADAPTIVE_WEIGHT = 1e4  # as in the code of Esser et al. 2021
_LEAST_NORM = 1e-12


class PatchDiscriminator(nn.Module):
    """Convolutions of 4x4 that end in one verdict per patch (Isola et al. 2017, appendix 6.1.2).

    Group norms stand for their batch norms: a verdict then depends on its own image alone. So processes and
    accumulation passes change nothing of it, nor of how it is trained.
    """

    def __init__(self, params: AdversarialParams) -> None:
        super().__init__()
        widths = [params.channels * min(2**i, _MAX_WIDENING) for i in range(params.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(IMAGE_CHANNELS, widths[0], 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for i in range(1, params.num_layers + 1):
            stride = 2 if i < params.num_layers else 1
            convolution = nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False)
            layers += [convolution, GroupNorm(_NUM_GROUPS, widths[i]), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.min_side_px = 3 * 2**params.num_layers
        """Least side of an image that it can judge."""

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h2 w2"]:
        """Verdicts on signals in -1..1: above 0 for images, below 0 for reconstructions."""
        return self.layers(x).float()


def adversarial_loss(
    discriminator: PatchDiscriminator,
    weight: float,
    distortion: Float[Tensor, ""],
    reconstruction: Float[Tensor, "b 3 h w"],
    target: Float[Tensor, "b 3 h w"],
    last_weight: Tensor,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """What is added to the distortion, and the health of both players. last_weight: of the decoder's last layer.

    The value is the loss of the decoder alone. The gradient is that of both players: of the decoder's loss in what made
    the reconstruction, and of the hinge loss (Lim and Ye 2017, section 2) in the discriminator. So one backward pass
    gives both, and the two optimizers take the same update.

    The health has the keys of `HEALTH`: the decoder's loss and its factor; the hinge loss, which is 1 for verdicts of 0
    and 0 for a perfect judge; the mean verdicts on images and on reconstructions.

    The factor is that of these rows. So the gradient of the decoder depends on how a global batch is divided into
    processes and passes, by a few per cent; it would take a second pass over the batch to have one factor for all.
    """
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    deceived: Tensor = -functional_call(discriminator, fixed, (reconstruction,)).mean()
    factor = weight * adaptive_weight(distortion, deceived, last_weight)
    real, fake = discriminator(target), discriminator(reconstruction.detach())
    hinge = 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
    values = (deceived, factor, hinge, real.mean(), fake.mean())
    logged: dict[str, Tensor] = dict(zip(HEALTH, values, strict=True))
    return factor * deceived + (hinge - hinge.detach()), logged


def health(row: Mapping[str, float]) -> dict[str, float]:
    """What a row of the curve says of both players, and how many updates were skipped; nothing without a
    discriminator."""
    if HEALTH[0] not in row:
        return {}
    return {name: round(row[name], 5) for name in (*HEALTH, "grad_norm", "adversary_grad_norm", "num_skipped")}


def absent(discriminator: PatchDiscriminator) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """`adversarial_loss` before the discriminator takes part: nothing. Its weights get gradients of zero, since
    processes exchange the gradients of all weights."""
    zero = 0 * torch.stack([parameter.sum() for parameter in discriminator.parameters()]).sum()
    return zero, dict.fromkeys(HEALTH, zero)


def adaptive_weight(
    distortion: Float[Tensor, ""], deceived: Float[Tensor, ""], last_weight: Tensor
) -> Float[Tensor, ""]:
    """The factor that makes the second loss pull as hard as the first at the weights of the last layer, at most 1e4
    (Esser et al. 2021, equation 7).

    Gradients in the pixels would not do: those of LPIPS are large there and cancel out in the weights.
    """
    norms = [torch.autograd.grad(loss, last_weight, retain_graph=True)[0].norm() for loss in (distortion, deceived)]
    return (norms[0] / norms[1].clamp(min=_LEAST_NORM)).clamp(max=_MAX_ADAPTIVE_WEIGHT).detach()
