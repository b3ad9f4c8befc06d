"""DDIM inversion: the noise from which a deterministic sampler draws a given latent."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import trajectory
from ldm.sampling.samplers.ancestral import ddim


def invert(
    denoise: Denoiser, schedule: Schedule, z0: Float[Tensor, "b c h w"], times: Sequence[float]
) -> Float[Tensor, "b c h w"]:
    """The latent at the first of falling `times` that leads to z0 at the last of them: DDIM backwards (Song et al.
    2021, section 5.4).

    A step asks the denoiser where it starts, on the way up as on the way down. So the two ways differ by an error that
    shrinks as 1 / number of steps.
    """
    return trajectory.follow(ddim, denoise, schedule, z0, times[::-1])
