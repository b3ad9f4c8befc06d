"""Training batches of a denoiser: latents, conditions, noise and times of a step."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ldm import randomness
from ldm.denoiser.model.diffusion import training_times
from ldm.denoiser.training.inputs import LatentsAndCaptions, Samples
from ldm.denoiser.training.params import TrainUNetParams


class LatentBatches:
    """Latents, conditions, noise and times of any step, drawn for the global batch and then cut to `rows`."""

    def __init__(self, pairs: LatentsAndCaptions, params: TrainUNetParams) -> None:
        self._pairs, self._params = pairs, params
        self._noise_shape = (2, params.training.batch_size, *pairs.latent_shape)

    def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
        training = self._params.training
        positions = self._positions(step)[rows]
        samples = randomness.order(positions, len(self._pairs), training.seed)
        # Two noises per sample: one selects the posterior sample, the other is that of the forward process.
        both = torch.randn(self._noise_shape, generator=randomness.generator(training.seed, "noise", step))[:, rows]
        captions = self._pairs.captions(samples, training.seed, positions // len(self._pairs))
        dropped = self._uniform("dropout", step)[rows] < self._params.diffusion.caption_dropout
        return {
            "z0": self._pairs.latents(samples, both[0]),
            "noise": both[1] + self._offset(step)[rows] if self._params.diffusion.offset_noise else both[1],
            "t": self._times(step)[rows],
            "dropped": dropped,
            **self._pairs.text.parts(captions, dropped),
        }

    def keys(self, step: int) -> list[str]:
        """Keys of the samples in the global batch of a step."""
        samples = randomness.order(self._positions(step), len(self._pairs), self._params.training.seed)
        return [self._pairs.keys[sample] for sample in samples.tolist()]

    def _positions(self, step: int) -> Samples:
        size = self._params.training.batch_size
        return step * size + np.arange(size, dtype=np.int64)

    def _offset(self, step: int) -> Float[Tensor, "b c 1 1"]:
        """Noise of one number per row and channel (Guttenberg 2023, "Diffusion with Offset Noise")."""
        generator = randomness.generator(self._params.training.seed, "offset noise", step)
        return self._params.diffusion.offset_noise * torch.randn(*self._noise_shape[1:3], 1, 1, generator=generator)

    def _times(self, step: int) -> Float[Tensor, " b"]:
        u = self._uniform("time", step)
        if self._params.diffusion.stratified_times:
            u = (torch.arange(len(u)) + u) / len(u)
        return training_times(u, self._params.diffusion)

    def _uniform(self, purpose: str, step: int) -> Float[Tensor, " b"]:
        training = self._params.training
        return torch.rand(training.batch_size, generator=randomness.generator(training.seed, purpose, step))
