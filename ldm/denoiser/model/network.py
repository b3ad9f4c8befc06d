"""What a denoising network of any kind offers. Each kind has a module of its own, beside its params in `params.py`."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from ldm.compute.attention import Shape
from ldm.denoiser.model.condition import Condition, Prepared


class Network(nn.Module, ABC):
    """A function f(z, time, condition) that is trained to denoise. No other code knows which kind it has."""

    latent_shape: tuple[int, int, int]
    """Channels, height and width of the square latents it is trained on."""
    size_multiple: int
    """Height and width of a latent should be multiples of this."""
    takes_any_size: bool
    """Whether it takes latents of other sizes too."""

    @abstractmethod
    def attention_shapes(self, height: int, width: int) -> list[Shape]:
        """What it asks of attention on latents of this size."""

    @abstractmethod
    def prepare(self, condition: Condition) -> Prepared:
        """What `forward` takes instead of a condition that is the same at every step; its output is then equal in every
        bit."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Parts that are called as modules and hold most of the weights; those within others come first. One at a time
        is whole where a network is split over processes (`ldm.training.sharding`)."""

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b"], condition: Condition | Prepared
    ) -> Float[Tensor, "b c h w"]:
        """Output for latents `z` at `time` (0..1000, fractions allowed) under `condition`; the caller knows what it
        means."""
