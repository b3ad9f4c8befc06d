"""What a denoising network of any kind offers. Each kind has a module of its own, beside its params in `params.py`."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from ldm.compute.attention import Shape
from ldm.denoiser.model.condition import Condition


class Network(nn.Module, ABC):
    """A function f(z, time, condition) that is trained to denoise. No other code knows which kind it has."""

    latent_shape: tuple[int, int, int]
    """Channels, height and width of the latents it is trained on."""
    attention_shapes: list[Shape]
    """What it asks of attention on latents of this shape."""

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """Output for latents `z` at `time` (0..1000, fractions allowed) under `condition`; the caller knows what it
        means."""
