"""The kinds of text encoder, and one place that opens a stored one.

A run has one text encoder: the text tower of its CLIP, or one of transformers, which stands in a folder of its own
inside the folder of the CLIP.
"""

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


def load(directory: Path) -> tuple[TextModel, artifact.Passport]:
    """The text encoder of the run whose CLIP is in `directory`, frozen, in evaluation mode, and its passport.

    IntegrityError: missing, corrupt, or no text encoder. MachineError: the package transformers is not there.
    """
    folder = folder_of(directory)
    return clip.load(folder) if folder == directory else transformers_tower.load(folder)
