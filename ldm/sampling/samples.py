"""Samples on disk: images in shards, with prompt, claim and origin.

A folder of samples holds one split of shards per set of prompts (parts png, and json {"prompt", "claim",
"prompt_number", "split", "key", "sample"}), `grid.png` and a passport with the hash of every set.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.core import artifact, shards
from ldm.core.errors import IntegrityError

KIND = artifact.Kind("samples")
HELD_OUT, UNSEEN, REWORDED, SEEN = "held_out", "unseen", "reworded", "seen"
SETS = (HELD_OUT, UNSEEN, REWORDED, SEEN)
"""Sets that are sampled with the settings of the params; all others belong to the sweep."""
_FIX = "run `dvc repro sample`, or `dvc checkout` to bring back what dvc.lock records"


@dataclass(frozen=True)
class Prompt:
    """A caption to sample, and the sample of the corpus that it comes from."""

    prompt: str
    claim: dict[str, Any] | None
    """What the caption states, for a corpus that can check it."""
    prompt_number: int
    """Number of the noise it starts from."""
    split: str
    key: str
    sample: int | None = None
    """Number of the sample in its split; None in samples of former commits, which did not store it."""


def shown(names: Iterable[str]) -> dict[str, str]:
    """The sets that pictures show, with their titles: seen prompts, then held-out ones, or unseen ones if there are no
    held-out ones, then reworded ones."""
    known = set(names)
    others = [*[name for name in (HELD_OUT, UNSEEN) if name in known][:1], *({REWORDED} & known)]
    return {name: name.replace("_", " ") for name in (SEEN, *others)}


class Samples:
    """One set of samples for reading."""

    def __init__(self, directory: Path, sha256: str, guidance_scale: float) -> None:
        self._shards = shards.Shards(directory)
        if self._shards.sha256 != sha256:
            raise IntegrityError(str(directory / "index.json"), f"SHA-256 {self._shards.sha256}", sha256, _FIX)
        self.guidance_scale = guidance_scale
        self.prompts = [Prompt(**json.loads(self._shards[i]["json"])) for i in range(len(self._shards))]

    def __len__(self) -> int:
        return len(self.prompts)

    def png(self, i: int) -> bytes:
        """Image of prompt i."""
        return self._shards[i]["png"]


def read(folder: Path) -> tuple[artifact.Passport, dict[str, Samples]]:
    """All sets by name, those of `SETS` first. IntegrityError: missing, corrupt or of another kind."""
    passport = artifact.read_passport(folder, KIND)
    with artifact.fitting(folder):
        facts: dict[str, Any] = passport.facts["sets"]
        sweep = sorted(facts.keys() - set(SETS), key=lambda name: facts[name]["guidance_scale"])
        names = [*(name for name in SETS if name in facts), *sweep]
        return passport, {name: Samples(folder / name, **facts[name]) for name in names}
