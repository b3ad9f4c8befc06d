"""What a denoiser is conditioned on, besides the noisy latent and the time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class Condition:
    """The condition of a batch of images: row i of every part belongs to image i.

    A network uses the parts that it is made for. It may ignore pooled features, since they only summarise the tokens.
    It must either use or refuse a mask and an image.
    """

    tokens: Float[Tensor, "b n d"]
    """Token states of the captions."""
    mask: Bool[Tensor, "b n"] | None = None
    """True for tokens that may be attended to, at least one per row; None = all of them, padding included."""
    pooled: Float[Tensor, "b f"] | None = None
    """CLIP's feature vector of each caption, which stage `embed_text` stores beside the tokens. Training reads it only
    for a network that `takes_pooled`."""
    image: Float[Tensor, "b c h w"] | None = None
    """Extra input channels of the same height and width as the latent."""

    @classmethod
    def of_batch(cls, batch: Mapping[str, Tensor]) -> Self:
        """From a training batch, which holds the `parts` of a condition among other tensors, as they are stored."""
        parts = {field.name: batch[field.name] for field in fields(cls) if field.name in batch}
        return cls(**{name: part.float() if part.is_floating_point() else part for name, part in parts.items()})

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors by name, without those that are None.

        A training batch holds these tensors beside the others instead of a `Condition`. The training loop and
        validation can then move, compare and slice all tensors of a batch in the same way.
        """
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if part is not None}

    def to(self, device: torch.device) -> Self:
        """A copy on another device."""
        return self._each(lambda part: part.to(device))

    def expand(self, num: int) -> Self:
        """Repeat the only row `num` times, without copying memory."""
        return self._each(lambda part: part.expand(num, *part.shape[1:]))

    def with_rows(self, rows: Int[Tensor, " r"] | Bool[Tensor, " b"], others: Self) -> Self:
        """A copy in which `rows` (row numbers or a mask) are replaced by those of `others`.

        others: as many rows as are replaced, or one row for all of them; it must have the same parts.
        """
        assert self.parts.keys() == others.parts.keys(), f"parts {[*self.parts]} and {[*others.parts]}"
        return type(self)(**{name: part.index_put((rows,), others.parts[name]) for name, part in self.parts.items()})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{name: change(part) for name, part in self.parts.items()})


@dataclass(frozen=True)
class Prepared:
    """What one network makes of a condition before it knows latents and time, so once for all steps of a sampling."""

    keys_values: Mapping[nn.Module, tuple[Float[Tensor, "b k n d"], Float[Tensor, "b k n d"]]]
    """Keys and values of each of its cross-attentions, by heads."""
    mask: Bool[Tensor, "b n"] | None
    """As that of a `Condition`."""

    def followed_by(self, others: Self) -> Self:
        """The rows of both, one after the other; the same network must have prepared `others`, masked if these are."""
        mask = None if self.mask is None or others.mask is None else torch.cat([self.mask, others.mask])
        assert (mask is None) == (self.mask is None) == (others.mask is None), "one is masked, and the other is not"
        pairs = ((layer, zip(own, others.keys_values[layer], strict=True)) for layer, own in self.keys_values.items())
        joined = {layer: tuple(map(torch.cat, pair)) for layer, pair in pairs}
        return type(self)({layer: (keys, values) for layer, (keys, values) in joined.items()}, mask)


def _leaves(prepared: Prepared) -> tuple[list[Tensor], tuple[nn.Module, ...]]:
    tensors = [part for pair in prepared.keys_values.values() for part in pair]
    return tensors + ([] if prepared.mask is None else [prepared.mask]), tuple(prepared.keys_values)


def _of_leaves(tensors: Iterable[Tensor], layers: tuple[nn.Module, ...]) -> Prepared:
    given = list(tensors)
    pairs = zip(given[::2], given[1::2], strict=False)
    mask = given[-1] if len(given) > 2 * len(layers) else None
    return Prepared(dict(zip(layers, pairs, strict=True)), mask)


# So that CUDA graphs (`ldm.compute.graphs`) find the tensors of either.
pytree.register_pytree_node(
    Condition,
    lambda condition: (list(condition.parts.values()), tuple(condition.parts)),
    lambda parts, names: Condition(**dict(zip(names, parts, strict=True))),
)
pytree.register_pytree_node(Prepared, _leaves, _of_leaves)
