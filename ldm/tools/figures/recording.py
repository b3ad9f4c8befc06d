"""What a sampler asks of a denoiser, and what it is answered."""

from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser

Calls = list[tuple[float, Tensor, Tensor]]
"""Time, z and z0_hat of every call, in order."""


def recorded(denoise: Denoiser) -> tuple[Denoiser, Calls]:
    """The same denoiser, and the list to which it adds its calls. All rows of a call are at one time."""
    calls: Calls = []

    def denoise_and_note(z: Tensor, t: Tensor) -> Tensor:
        z0_hat = denoise(z, t)
        calls.append((float(t[0]), z, z0_hat))
        return z0_hat

    return denoise_and_note, calls
