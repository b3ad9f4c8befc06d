"""Training batches of a denoiser: latents, conditions, noise and times of a step."""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import randomness
from ldm.denoiser.model.diffusion import training_times
from ldm.denoiser.training.inputs import LatentsAndCaptions
from ldm.denoiser.training.mirroring import Mirroring
from ldm.denoiser.training.params import TrainUNetParams
from ldm.randomness import Order


class LatentBatches:
    """Latents, conditions, noise and times of any step, of the `rows` of its global batch."""

    def __init__(self, pairs: LatentsAndCaptions, params: TrainUNetParams) -> None:
        self._pairs, self._params, self._latent_shapes = pairs, params, pairs.latent_shapes
        seed, mirroring = params.training.seed, params.mirroring
        self._mirroring = None if mirroring is None else Mirroring(mirroring, seed)
        self._order = Order(pairs.buckets, params.training.batch_size, params.training.seed)

    def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
        training, draw = self._params.training, self._order.at_step(step)
        samples = draw.samples[rows]
        # Two noises per sample: one selects the posterior sample, the other is that of the forward process.
        shape = 2, *self._latent_shapes[draw.bucket]
        posterior_noise, noise = randomness.normal(rows, shape, training.seed, "noise", step).unbind(1)
        if self._params.diffusion.offset_noise:
            noise = noise + self._offset(step, rows)
        captions = self._pairs.captions(samples, training.seed, draw.epochs[rows])
        mirrored = None if self._mirroring is None else self._mirroring(samples, draw.epochs[rows], captions)
        dropped = self._uniform("dropout", step)[rows] < self._params.diffusion.caption_dropout
        return {
            "z0": self._pairs.latents(samples, posterior_noise if self._params.latents == "sample" else None, mirrored),
            "noise": noise,
            "t": self._times(step)[rows],
            "dropped": dropped,
            **self._pairs.text.parts(captions, dropped),
        }

    def keys(self, step: int) -> list[str]:
        """Keys of the samples in the global batch of a step."""
        return [self._pairs.keys[sample] for sample in self._order.at_step(step).samples.tolist()]

    def _offset(self, step: int, rows: slice) -> Float[Tensor, "b c 1 1"]:
        """Noise of one number per row and channel (Guttenberg 2023, "Diffusion with Offset Noise")."""
        shape = self._latent_shapes[0][0], 1, 1
        drawn = randomness.normal(rows, shape, self._params.training.seed, "offset noise", step)
        return self._params.diffusion.offset_noise * drawn

    def _times(self, step: int) -> Float[Tensor, " b"]:
        u = self._uniform("time", step)
        if self._params.diffusion.stratified_times:
            u = (torch.arange(len(u)) + u) / len(u)
        return training_times(u, self._params.diffusion)

    def _uniform(self, purpose: str, step: int) -> Float[Tensor, " b"]:
        training = self._params.training
        return torch.rand(training.batch_size, generator=randomness.generator(training.seed, purpose, step))
