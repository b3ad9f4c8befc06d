"""Sequences that read their items when they are asked for."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from ldm.core.lazy import Lazy


def test_only_what_is_asked_for_is_read() -> None:
    read: list[int] = []

    def squares(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            read.append(number)
            yield number**2

    items = Lazy(10**12, squares)
    assert (items[3], items[-1], items[np.int64(5)]) == (9, (10**12 - 1) ** 2, 25)
    assert items[2:8:3] == [4, 25] and items.at([7, 1]) == [49, 1]
    assert next(iter(items)) == 0 and len(items) == 10**12
    assert read == [3, 10**12 - 1, 5, 2, 5, 7, 1, 0]
    for place in (10**12, -(10**12) - 1):
        with pytest.raises(IndexError):
            items[place]


def test_it_is_equal_to_a_sequence_of_equal_items() -> None:
    items = Lazy(3, iter)
    assert items == [0, 1, 2] == items and items == (0, 1, 2)
    assert items not in ([0, 1], [0, 1, 3], {0, 1, 2}) and list(reversed(items)) == [2, 1, 0]
