"""How unusual images are to the trained networks."""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import randomness
from ldm.autoencoder.model.network import to_signal
from ldm.sampling import trajectory
from ldm.tools import probability_flow
from ldm.tools.tasks.anomaly import reconstruction_error
from ldm.tools.tasks.draw import Batch
from ldm.tools.tasks.params import ScoreParams


def scores(params: ScoreParams, batch: Batch) -> dict[str, Float[Tensor, " b"]]:
    """Scores of the images of a batch by name, on the CPU; higher = more unusual.

    `autoencoder_error` is the mean squared error, in the range -1..1, of what the autoencoder alone makes of the image.
    `reconstruction_error` is `anomaly.reconstruction_error`; `bits_per_dimension` is that of the latent, if it has
    probes (`probability_flow.bits_per_dimension`). Both without guidance.
    """
    with torch.no_grad():
        pixels = batch.images()
        z0 = batch.generator.encode(pixels)
        difference = batch.generator.signals_of(z0) - to_signal(pixels.to(z0.device))
        noises = torch.stack([_noise(batch, f"score noise {i}") for i in range(params.num_noises)])
        error = reconstruction_error(batch.unguided, batch.schedule, z0, params.times, noises)
    found = {"autoencoder_error": difference.square().flatten(1).mean(1).cpu(), "reconstruction_error": error.cpu()}
    if params.num_probes:
        signs = torch.stack([_noise(batch, f"score probe {i}").sign() for i in range(params.num_probes)])
        bits = probability_flow.bits_per_dimension(batch.unguided, batch.schedule, z0, signs, params.tolerance)
        found["bits_per_dimension"] = bits.detach().cpu()
    return found


def _noise(batch: Batch, purpose: str) -> Float[Tensor, "b c h w"]:
    """Noise that belongs to (seed, purpose, number of the image)."""
    seed = randomness.key(batch.drawing.seed, purpose)
    noise = trajectory.prompt_noise(seed, batch.prompt_numbers, batch.latent_shape)
    return noise.to(batch.generator.device)
