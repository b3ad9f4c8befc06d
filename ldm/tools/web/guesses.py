"""How often somebody may be wrong about the password of the page."""

import time
from collections import defaultdict
from collections.abc import Callable


class Guesses:
    """Wrong guesses of the last while, by the address that they came from."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """most: wrong guesses of one address within `seconds`, after which further ones are refused."""
        self._most, self._seconds, self._clock = most, seconds, clock
        self._times: dict[str, list[float]] = defaultdict(list)

    def add(self, address: str) -> None:
        """Count a guess, before it is known to be wrong: many may come at once."""
        self._forget()
        self._times[address].append(self._clock())

    def take_back(self, address: str) -> None:
        """The guess was right."""
        if self._times.get(address):
            self._times[address].pop()

    def are_over(self, address: str) -> bool:
        """Whether this address has to wait."""
        self._forget()
        return len(self._times.get(address, ())) >= self._most

    def _forget(self) -> None:
        since = self._clock() - self._seconds
        for address, times in list(self._times.items()):
            kept = [each for each in times if each > since]
            if kept:
                self._times[address] = kept
            else:
                del self._times[address]
