"""RePaint: what is known of an image is kept on the way from noise to data (Lugmayr et al. 2022).

Any sampler and any denoiser. Knowledge is a function from a clean latent to the nearest one that agrees with what is
known; `knowing` applies it to each z0_hat, so the sampler itself puts known parts on the path from noise to the known
values, with its own noise. The unknown part sees only what the network makes of that, and does not fit it well. So the
path goes back up by the forward process, and down again: known and unknown parts are noised and denoised together.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers import Rule
from ldm.sampling.trajectory import NoiseAtStep

Knowledge = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]
"""From a clean latent to one like it that has what is known."""
Noises = Callable[[int], NoiseAtStep]
"""Noise of every descent, by its number."""


def descents(num_steps: int, num_resamplings: int, jump_length: int) -> Iterator[tuple[int, int]]:
    """(first, last) places in the grid of times of every descent, in order (Lugmayr et al. 2022, algorithm 1 and
    appendix B). Where one starts above the end of the one before it, the path goes up in between.

    Stretches of `jump_length` steps, of which the lowest ends one step above the clean latent, are taken
    `num_resamplings` times.
    """
    start = 0
    for lowest in reversed(range(0, num_steps - jump_length, jump_length) if num_resamplings > 1 else ()):
        end = num_steps - 1 - lowest
        yield start, end
        yield from [(end - jump_length, end)] * (num_resamplings - 1)
        start = end
    yield start, num_steps


def repaint(
    rule: Rule,
    denoise: Denoiser,
    schedule: Schedule,
    z: Float[Tensor, "b c h w"],
    times: Sequence[float],
    stretches: Iterator[tuple[int, int]],
    noises: Noises,
) -> Float[Tensor, "b c h w"]:
    """From the latent at times[0] to that at times[-1], down the stretches and up between them.

    denoise: one of `knowing`. noises: the jump up to stretch i takes noise 0 of noises(-i).
    """
    place = 0
    for number, (first, last) in enumerate(stretches):
        if first < place:
            z = noisier(schedule, z, times[place], times[first], noises(-number)(0))
        z = trajectory.follow(rule, denoise, schedule, z, times[first : last + 1], noises(number))
        place = last
    return z


def noisier(
    schedule: Schedule, z: Float[Tensor, "b c h w"], time: float, later: float, noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """A sample of z at a later time given z at `time`, by the forward process (Ho et al. 2020, equation 2)."""
    ((s, t),) = grids.steps(schedule.name, [time, later])
    kept = t.alpha / s.alpha
    return kept * z + math.sqrt(max(t.sigma**2 - (kept * s.sigma) ** 2, 0.0)) * noise.to(z)


def knowing(denoise: Denoiser, knowledge: Knowledge) -> Denoiser:
    """A denoiser whose clean latents have what is known."""
    return lambda z, t: knowledge(denoise(z, t))


def known_cells(z0: Float[Tensor, "b c h w"], unknown: Bool[Tensor, "b 1 h w"]) -> Knowledge:
    """The cells of z0 that are not unknown."""
    return lambda z0_hat: unknown.to(z0_hat) * z0_hat + (~unknown).to(z0_hat) * z0


def known_pixels(
    image: Float[Tensor, "b 3 h2 w2"],
    unknown: Bool[Tensor, "h2 w2"],
    decode: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b 3 h2 w2"]],
    encode: Callable[[Float[Tensor, "b 3 h2 w2"]], Float[Tensor, "b c h w"]],
) -> Knowledge:
    """Pixels inside cells: they are put into the decoded latent, which is encoded again."""
    return lambda z0_hat: encode(unknown.to(image) * decode(z0_hat) + (~unknown).to(image) * image)


def cells(unknown: Bool[Tensor, "b 1 h w"], factor: int) -> Bool[Tensor, "b 1 h2 w2"]:
    """The latent cells of which any pixel is unknown. factor: side of a cell in pixels."""
    return functional.max_pool2d(unknown.float(), factor) > 0
