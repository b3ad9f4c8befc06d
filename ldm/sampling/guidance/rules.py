"""Rules of guidance: functions that make one denoiser of others.

A rule knows no sampler, no network and no prediction type. It acts on z0_hat, which is as good as acting on the
predicted noise: at given z and t each is a linear function of the other, so a rule that is linear in one has the same
weights in the other.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule

Pair = Callable[
    [Float[Tensor, "b c h w"], Float[Tensor, " b"]], tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]
]
"""What two denoisers say of the same latents."""
LogProbability = Callable[[Float[Tensor, "b c h w"], Float[Tensor, " b"]], Float[Tensor, " b"]]
"""log p(y | z_t) of every row, as a differentiable function of (z, t)."""


def one_by_one(better: Denoiser, worse: Denoiser) -> Pair:
    """Two calls."""
    return lambda z, t: (better(z, t), worse(z, t))


def in_one_batch(joint: Denoiser, better: Denoiser, worse: Denoiser, max_cells: int) -> Pair:
    """One call of a denoiser whose first rows are those of `better` and last rows those of `worse`; two calls where the
    latents of a batch have more than `max_cells` cells together."""

    def ask(
        z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        if z[:, 0].numel() > max_cells:
            return better(z, t), worse(z, t)
        first, last = joint(torch.cat([z, z]), torch.cat([t, t])).chunk(2)
        return first, last

    return ask


def extrapolate(
    better: Denoiser, worse: Denoiser, scale: float, rescale: float = 0.0, pair: Pair | None = None
) -> Denoiser:
    """z0_hat = worse + scale (better - worse). Scale 1 is `better` and 0 is `worse`, bit for bit, and the other one is
    not called.

    - Classifier-free guidance (Ho and Salimans 2022): `better` has the prompt and `worse` has none, or a negative
      prompt. Their equation 6, (1 + w) conditional - w unconditional, is this with scale 1 + w.
    - Autoguidance (Karras et al. 2024, equation 3): both have the prompt, `worse` is a worse model.

    rescale: see `rescaled`. pair: how both are asked; None = `one_by_one`.
    """
    if scale == 1:
        return better
    if scale == 0:
        return worse
    ask = one_by_one(better, worse) if pair is None else pair

    def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        z0_hat, base = ask(z, t)
        return rescaled(base + scale * (z0_hat - base), z0_hat, rescale)

    return denoise


def follow_classifier(
    unconditional: Denoiser, log_probability: LogProbability, schedule: Schedule, scale: float, rescale: float = 0.0
) -> Denoiser:
    """Classifier guidance: z0_hat + scale sigma^2 / alpha times the gradient of log p(y | z_t) with respect to z_t.

    This is eps_hat - scale sigma times the gradient (Dhariwal and Nichol 2021, algorithm 2), written for
    z0_hat = (z - sigma eps_hat) / alpha. With the true classifier, scale 1 is the denoiser of class y. Where alpha = 0,
    z says nothing about y, and there is no guidance.

    rescale: see `rescaled`.
    """
    if scale == 0:
        return unconditional

    def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        z0_hat = unconditional(z, t)
        with torch.enable_grad():
            moved = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_probability(moved, t).sum(), moved)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        factor = torch.where(alpha > 0, scale * sigma**2 / alpha, 0.0)
        return rescaled(z0_hat + _column(factor, z) * gradient, z0_hat, rescale)

    return denoise


def rescaled(
    guided: Float[Tensor, "b c h w"], unguided: Float[Tensor, "b c h w"], share: float
) -> Float[Tensor, "b c h w"]:
    """Mix the guided z0_hat with a copy that is scaled to the standard deviation of the unguided one, per image (Lin et
    al. 2023, section 3.4, equations 15 and 16, where the share is phi). 0 = as it is.

    Guidance makes values too large, which shows as overexposed colours. A guided image without deviation stays.
    """
    if share == 0 or guided[0].numel() == 1:
        return guided
    own, other = unguided.flatten(1).std(1), guided.flatten(1).std(1)
    factor = torch.where(other > 0, own / other, 1.0)
    return _column(1 + share * (factor - 1), guided) * guided


def within(interval: tuple[float, float], guided: Denoiser, unguided: Denoiser) -> Denoiser:
    """`guided` at times in the interval, which includes its ends, and `unguided` at all others, where `guided` is not
    called (Kynkaanniemi et al. 2024)."""
    low, high = interval
    if (low, high) == (0, 1):
        return guided

    def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        inside = (t >= low) & (t <= high)
        if bool(inside.all()):
            return guided(z, t)
        if not bool(inside.any()):
            return unguided(z, t)
        return torch.where(inside.reshape(-1, 1, 1, 1), guided(z, t), unguided(z, t))

    return denoise


def thresholded(denoise: Denoiser, quantile: float) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3) of z0_hat that are images of signals in -1..1.

    s is this quantile of the absolute values of an image, but at least 1. Values are clipped to -s..s and divided by s.
    So they stay within -1..1, and what guidance drove beyond is not all at the ends. 0 clips to -1..1 ("static
    thresholding"), unless every value is beyond; 1 only divides.
    """

    def denoise_within(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        z0_hat = denoise(z, t)
        limit = _column(z0_hat.abs().flatten(1).float().quantile(quantile, dim=1).clamp(min=1), z0_hat)
        return z0_hat.clamp(-limit, limit) / limit

    return denoise_within


def _column(x: Float[Tensor, " b"], like: Tensor) -> Tensor:
    return x.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
