"""Seeds on the command line: 7, 3-7, or 1,4-6."""

import argparse
import re
from collections.abc import Sequence

_MOST = 10**6
_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)
_EXPECTED = "a seed or several, such as 7, 3-7 or 1,4-6"


def add(parser: argparse.ArgumentParser) -> None:
    """The option `--seed`, whose value is a list of seeds."""
    about = "seed of the noise, or several: 3-7, or 1,4-6; every prompt is drawn with each of them"
    parser.add_argument("--seed", type=read, dest="seeds", metavar="SEEDS", help=about)


def read(text: str) -> list[int]:
    """The seeds that a text names, each once, in order. Whether one is legal, the params say."""
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        try:
            low, high = (int(match[1]), int(match[2])) if match else (int(part), int(part))
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected {_EXPECTED}") from None
        if low > high or high - low >= _MOST - len(found):
            raise argparse.ArgumentTypeError(f"found {part.strip()}; expected low-high, {_MOST} seeds at most")
        found.extend(range(low, high + 1))
    return list(dict.fromkeys(found))


def written(seeds: Sequence[int]) -> str:
    """The shortest text that `read` turns into these seeds: consecutive ones are a range."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
