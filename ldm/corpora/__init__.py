"""Where captioned images come from: one module per corpus, each with a function `pairs` for `prepare` to write."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from ldm.params.prepare import FolderParams, OpenMojiParams, PrepareParams, ShapesParams, WebdatasetParams

Split = Literal["train", "val", "unseen", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "val", "unseen", "held_out")
"""`val` repeats what `train` shows in other combinations. `unseen` and `held_out` show what neither does, if the corpus
keeps such compositions back: settings are chosen on `unseen`, `held_out` is looked at once they are chosen."""


class Rejected(Exception):
    """Why a sample cannot be used: a reason code, which is counted, and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Pair:
    """One image with its captions."""

    key: str
    """Letters, digits, "-" and "_", at most 80; equal in image and caption shards."""
    image: UInt8[np.ndarray, "h w 3"] | Callable[[], UInt8[np.ndarray, "h w 3"]]
    """Square pixels, or a picklable function that makes them in a worker process; it may raise `Rejected`."""
    captions: list[str]
    """At least one."""
    claims: list[dict[str, Any] | None]
    """What each caption states, as JSON, for a corpus that can check it; else None."""
    scene: dict[str, Any] | None
    """What the image shows, as JSON, for a corpus that knows it."""
    split: Split
    source: dict[str, Any]
    """Origin, as JSON: corpus, file, licence, attribution."""
    group: str = ""
    """Samples of different groups share a shard only if it would else be nearly empty."""


@dataclass(frozen=True)
class Rejection:
    """A sample that the corpus has and that is not used."""

    key: str
    reason: str
    detail: str
    source: dict[str, Any]


def pairs(params: PrepareParams, source: Path) -> Iterator[Pair | Rejection]:
    """Every sample of the configured corpus, in a fixed order; `source` is the folder that holds what users bring.

    Raises:
        ConfigError: the folder of a user's corpus is missing or holds nothing to read.
        IntegrityError: a user's tar is damaged.
        MachineError: a package that holds a corpus has another version than the params ask for.
    """
    corpus, size_px = params.corpus, params.image_size_px
    match corpus:
        case ShapesParams():
            from ldm.corpora import shapes

            return shapes.pairs(corpus, size_px)
        case OpenMojiParams():
            from ldm.corpora import openmoji

            return openmoji.pairs(corpus, size_px)
        case FolderParams():
            from ldm.corpora import folder

            return folder.pairs(corpus, size_px, source)
        case WebdatasetParams():
            from ldm.corpora import webdataset

            return webdataset.pairs(corpus, size_px, source)


def split_of(key: str, val_fraction: float, seed: int) -> Split:
    """A split that depends on the key alone: adding samples never moves others between splits."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest) < val_fraction * 2**64 else "train"


def key_of(name: str) -> str:
    """A shard key for any file name: the name where it is fit, else what is fit of it and a hash of the whole."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')[:60]}-{digest}"
