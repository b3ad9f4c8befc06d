"""What a corpus offers: captioned images, each in a split, and rejections with their reasons, in units of work."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ldm.core.shards import Split

SIDE, ASPECT = "side_px=", "aspect="
"""How `size_notes` begin."""
REPEAT = "repeat"
"""Note of a picture that a mixture has repeated on purpose."""


class Rejected(Exception):
    """Why a sample cannot be used: a reason code, which is counted, and details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels of an image, and what the report counts about it."""

    pixels: UInt8[np.ndarray, "h w 3"]
    notes: tuple[str, ...] = ()
    """Its format and what was done to its pixels, such as "jpeg" or "icc_profile", and its `size_notes`."""


def size_notes(width: int, height: int) -> tuple[str, str]:
    """The least power of two that the shorter side has, and longer over shorter side, rounded down to quarters."""
    short, long = sorted((width, height))
    return f"{SIDE}{1 << short.bit_length() - 1}", f"{ASPECT}{long * 4 // short / 4:g}"


@dataclass(frozen=True)
class ByContent:
    """A split that what a picture shows decides, and not its name: equal pictures are always in the same one."""

    val_fraction: float
    """Share of pictures kept for validation."""
    seed: int
    """Chooses which ones."""


@dataclass(frozen=True)
class Pair:
    """One image with its captions."""

    key: str
    """Letters, digits, "-" and "_", at most 80; equal in image and caption shards."""
    image: UInt8[np.ndarray, "h w 3"] | Callable[[], UInt8[np.ndarray, "h w 3"] | Picture]
    """Square pixels, or a picklable function that makes them in a worker process; it may raise `Rejected`."""
    captions: list[str]
    """At least one."""
    claims: list[dict[str, Any] | None]
    """What each caption states, as JSON, for a corpus that can check it; else None."""
    scene: dict[str, Any] | None
    """What the image shows, as JSON, for a corpus that knows it."""
    split: Split | ByContent
    source: dict[str, Any]
    """Origin, as JSON: corpus, file, licence, attribution."""
    group: str = ""
    """Samples of different groups share a shard only if it would otherwise be nearly empty."""


@dataclass(frozen=True)
class Rejection:
    """A sample of the corpus that is not used."""

    key: str
    reason: str
    detail: str
    source: dict[str, Any]


@dataclass(frozen=True)
class Litter:
    """Files of the corpus that hold no sample, such as caches and films."""

    counts: Mapping[str, int]
    """How many there are, by suffix with its dot in lower case, or "without suffix"."""


Item = Pair | Rejection | Litter
"""What a corpus is made of."""


@dataclass(frozen=True)
class Unit:
    """A part of a corpus that is prepared and kept on its own, such as a tar or a slice of a folder."""

    name: str
    """What users know it by, such as the name of the tar. Samples of different units share a shard only if it would
    otherwise be nearly empty."""
    sha256: str
    """Of all that its samples are made from: equal hashes and equal params give equal samples."""
    items: Callable[[], Iterable[Item]]
    """All of it, in a fixed order; picklable."""


def split_of(key: str, val_fraction: float, seed: int, held_out_fraction: float = 0.0) -> Split:
    """A split that depends only on the key and the seed: adding samples never moves others between splits."""
    place = int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()) / 2**64
    if place < val_fraction:
        return "val"
    return "held_out" if place < val_fraction + held_out_fraction else "train"


def class_claim(name: str) -> dict[str, str]:
    """What a caption claims that says of which class an image is."""
    return {"class": name}


def _bytes_of(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte, as JSON may hold them
        return name.encode("utf-8", "surrogatepass")


def key_of(name: str) -> str:
    """A shard key for any file name: the name if it is a legal key, else its legal characters and a hash of it."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        return name
    digest = hashlib.blake2b(_bytes_of(name), digest_size=8).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')[:60]}-{digest}"
