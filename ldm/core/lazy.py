"""A sequence whose items are read when they are asked for, and never held."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import SupportsIndex, TypeVar, overload

T = TypeVar("T")


class Lazy(Sequence[T]):
    """Items 0 to count - 1, as a function reads them by number. A slice is a list. Equal to any sequence of equal
    items."""

    def __init__(self, count: int, read: Callable[[Iterable[int]], Iterator[T]]) -> None:
        self._numbers, self._read = range(count), read

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> T | list[T]:
        if isinstance(place, slice):
            return self.at(self._numbers[place])
        return self.at([self._numbers[place]])[0]

    def __iter__(self) -> Iterator[T]:
        return self._read(self._numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def at(self, numbers: Iterable[int]) -> list[T]:
        """Items of these numbers, in their order."""
        return list(self._read(numbers))
