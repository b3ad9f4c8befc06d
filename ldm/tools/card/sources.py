"""What this project knows of where images come from, and under which licence."""

from dataclasses import dataclass

from ldm.corpora.params import (
    CorpusParams,
    DigitsParams,
    MixtureParams,
    OpenMojiParams,
    ShapesParams,
    TorchvisionParams,
)

_TORCHVISION = {
    "MNIST": ("LeCun, Cortes and Burges", "cc-by-sa-3.0"),
    "FashionMNIST": ("Zalando SE", "mit"),
    "KMNIST": ("ROIS-DS Center for Open Data in the Humanities", "cc-by-sa-4.0"),
}
"""Name of a dataset -> who made it, and its licence, as their pages say; of others, nothing is known here."""


@dataclass(frozen=True)
class Source:
    """A corpus, in words."""

    name: str
    text: str
    """A sentence: what the images show, who made them, and under which licence they are."""
    licence: str | None
    """The licence that a model of these images should have, as the Hugging Face hub names it; None = not known."""


def of(corpus: CorpusParams) -> Source:
    """What is known of a corpus."""
    match corpus:
        case ShapesParams():
            text = "Scenes of coloured shapes with captions, drawn at random by this project's code; they are nobody's."
            return Source("scenes of coloured shapes", text, "apache-2.0")
        case OpenMojiParams():
            text = (
                "Drawings of [OpenMoji](https://openmoji.org), the open-source emoji and icon project, under CC BY-SA "
                f"4.0 (version {corpus.openmoji_version}), captioned by names of the package `emoji` (BSD licence). "
                "Pictures of them are under the same terms, and this model is meant to be shared under them too."
            )
            return Source("OpenMoji", text, "cc-by-sa-4.0")
        case DigitsParams():
            text = (
                "Handwritten digits of scikit-learn: part of Optical Recognition of Handwritten Digits (Alpaydin and "
                "Kaynak, UCI Machine Learning Repository), under CC BY 4.0."
            )
            return Source("handwritten digits", text, "cc-by-4.0")
        case TorchvisionParams(dataset=dataset):
            maker, licence = _TORCHVISION.get(dataset, (None, None))
            whose = "Its licence is **not stated** here." if maker is None else f"By {maker}, licence {licence}."
            return Source(dataset, f"The dataset {dataset}, as torchvision downloads it. {whose}", licence)
        case MixtureParams(parts=parts):
            found = [of(part.corpus) for part in parts.values()]
            names, texts = (list(dict.fromkeys(each)) for each in ([s.name for s in found], [s.text for s in found]))
            licences = {source.licence for source in found}
            return Source(" and ".join(names), "\n\n".join(texts), licences.pop() if len(licences) == 1 else None)
        case _:
            text = (
                "Images and captions of the owner of this model. Whose they are and their licence are **not stated**."
            )
            return Source("images of the model's owner", text, None)
