"""What the params of every corpus share."""

from ldm.core.config import Section
from ldm.core.params import Size


class CorpusBase(Section):
    """What `ldm check` asks of a corpus, whatever its kind."""

    @property
    def has_twins(self) -> bool:
        """Whether samples 2i and 2i + 1 differ by an exchange only, such as which of two objects is above."""
        return False

    @property
    def val_repeats_train(self) -> bool:
        """Whether validation shows again what training showed, in other combinations."""
        return False

    @property
    def has_classes(self) -> bool:
        """Whether every caption claims of which class its image is."""
        return False

    def sizes_px(self, size_px: int) -> list[Size]:
        """Height and width of every size that images have, if `prepare.image_size_px` is `size_px`."""
        return [(size_px, size_px)]
