"""Slices of a long list of samples whose ends depend on names alone: an added sample changes one slice."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_MEAN, _MOST = 1024, 8192
"""Samples in a slice: as many as are worth a unit of work."""


def slices(
    samples: Iterable[T], name_of: Callable[[T], str], mean: int = _MEAN, most: int = _MOST
) -> Iterator[list[T]]:
    """Consecutive samples, in lists of about `mean`.

    A slice begins at a name whose hash says so, not after a count: so where the others begin does not change when a
    sample comes or goes. Neighbours of equal name stay together. Only a slice without such a name for `most` samples
    ends by count.
    """
    part: list[T] = []
    last: str | None = None
    for sample in samples:
        name = name_of(sample)
        if part and name != last and (_begins(name, mean) or len(part) >= most):
            yield part
            part = []
        part.append(sample)
        last = name
    if part:
        yield part


def _begins(name: str, mean: int) -> bool:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) % mean == 0
