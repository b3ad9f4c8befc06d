"""Section `model`: what a model takes along when it leaves the repository."""

from ldm.core.config import Section
from ldm.tools.card.params import CardParams, MemorisationParams


class ModelParams(Section):
    """The folder `paths.model`, with which others draw images."""

    with_words: bool
    """Whether the words of all captions travel, sorted, so that `ldm generate` can name words of a prompt that no
    caption has. Captions never travel. false = nothing of them does, for captions whose words are private."""
    card: CardParams
    memorisation: MemorisationParams
