"""The kinds of text encoder, and one place that opens a stored one.

A run has one text encoder: the text tower of its CLIP, or one of transformers, which stands in a folder of its own
inside the folder of the CLIP.
"""

import json
from pathlib import Path

from ldm.core import artifact
from ldm.text.model import clip, transformers_tower
from ldm.text.model.encoder import TextModel

FOLDER = "text_encoder"


def folder_of(directory: Path) -> Path:
    """The folder of the text encoder of the run whose CLIP is in `directory`: that of another one, if it is there."""
    inside = directory / FOLDER
    return inside if (inside / artifact.PASSPORT).is_file() else directory


def has_clip(directory: Path) -> bool:
    """Whether the run has a CLIP: it may do with another text encoder alone."""
    return folder_of(directory) == directory or (directory / artifact.PASSPORT).is_file()


def is_other(folder: Path) -> bool:
    """Whether a folder holds a text encoder that is no CLIP."""
    try:
        return json.loads((folder / artifact.PASSPORT).read_bytes())["kind"] == transformers_tower.KIND.name
    except (OSError, ValueError, TypeError, LookupError):
        return False  # the reader of a CLIP says what is wrong


def verify(directory: Path) -> artifact.Passport:
    """The passport of the text encoder that `load` opens, once all its files are as it says. IntegrityError: one is
    missing or damaged."""
    folder = folder_of(directory)
    return transformers_tower.verify(folder) if is_other(folder) else clip.verify(folder)


def load(directory: Path) -> tuple[TextModel, artifact.Passport]:
    """The text encoder of the run whose CLIP is in `directory`, or the one that the folder itself holds, frozen, in
    evaluation mode, and its passport.

    IntegrityError: missing, corrupt, or no text encoder. MachineError: the package transformers is not there.
    """
    folder = folder_of(directory)
    return transformers_tower.load(folder) if is_other(folder) else clip.load(folder)
