"""What the page offers of a model beyond its settings: prompts to begin with, and models that may guide it."""

import json
from dataclasses import dataclass
from pathlib import Path

from ldm.core import artifact, config, shards
from ldm.core.errors import IntegrityError
from ldm.core.params import PathsParams
from ldm.sampling.guidance.params import AutoguidanceParams, ClassifierParams
from ldm.tools.model.parts import Parts
from ldm.tools.tasks.params import TaskParams

_NUM_PROMPTS = 6
_MOST_WORDS = 120
"""Words of a small corpus, which are worth reading."""


@dataclass(frozen=True)
class Examples:
    """Of a model."""

    prompts: tuple[str, ...]
    """Captions of its corpus; none where captions did not travel with the model."""
    guides: tuple[str, ...]
    """Folders of models that a visitor may name for guidance."""
    words: tuple[str, ...]
    """The words that the model knows; none if there are too many to read."""

    @classmethod
    def of(cls, parts: Parts, words: list[str] | None) -> "Examples":
        """Those of a repository or of a model folder. words: of its captions; None = not known."""
        few = words if words is not None and len(words) <= _MOST_WORDS else []
        return cls(tuple(_captions(parts)), tuple(_guides(parts)), tuple(few))


def _captions(parts: Parts) -> list[str]:
    """First captions of validation images, evenly over the split."""
    if not parts.has_captions:
        return []
    try:
        folder = config.read(PathsParams, "paths", parts.root / config.PATHS).captions
        split = shards.Shards(parts.root / folder / "val")
        numbers = range(0, len(split), max(1, len(split) // _NUM_PROMPTS))[:_NUM_PROMPTS]
        found = [json.loads(split[number]["json"])["captions"][0] for number in numbers]
    except IntegrityError:  # captions are not checked out, which drawing does without
        return []
    return list(dict.fromkeys(text for text in found if text))


def _guides(parts: Parts) -> list[str]:
    """Folders that settings name, and in a repository those that were brought for guidance."""
    tasks = [task for _, task in parts.tasks if isinstance(task, TaskParams)]
    kinds = [drawing.guidance for drawing in (parts.drawing, *(task.changes(parts.drawing) for task in tasks))]
    named = [kind.directory for kind in kinds if isinstance(kind, AutoguidanceParams | ClassifierParams)]
    if parts.has_captions:
        models = Path(config.read(PathsParams, "paths", parts.root / config.PATHS).models) / "guidance"
        found = sorted((parts.root / models).glob(f"*/{artifact.PASSPORT}"))
        named += [(models / path.parent.name).as_posix() for path in found]
    return list(dict.fromkeys(named))
