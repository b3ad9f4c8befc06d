"""SDEdit: an image is drawn anew from a noisy form of it (Meng et al. 2022)."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule, add_noise
from ldm.sampling import trajectory
from ldm.sampling.samplers import Rule
from ldm.sampling.trajectory import NoiseAtStep


def last_times(times: Sequence[float], strength: float) -> Sequence[float]:
    """The times of the last round(strength N) of N steps; strength 0 is the last time alone, without a step."""
    num_steps = len(times) - 1
    return times[num_steps - round(strength * num_steps) :]


def img2img(
    rule: Rule,
    denoise: Denoiser,
    schedule: Schedule,
    z0: Float[Tensor, "b c h w"],
    times: Sequence[float],
    noise: Float[Tensor, "b c h w"],
    noise_at_step: NoiseAtStep = trajectory.no_noise,
) -> Float[Tensor, "b c h w"]:
    """SDEdit (Meng et al. 2022, algorithm 1): add noise up to times[0], then follow the sampler to times[-1].

    A single time is no step: z0 comes back. Where alpha is 0 at times[0], nothing of z0 is left.
    """
    if len(times) == 1:
        return z0
    z = add_noise(schedule, z0, noise, z0.new_full((len(z0),), times[0]))
    return trajectory.follow(rule, denoise, schedule, z, times, noise_at_step)
