"""What a model card is made of: how the samples of a model compare with its training images, its scores, its data."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.core import artifact, stage
from ldm.core.artifact import Passport
from ldm.core.shards import SPLITS, Shards
from ldm.corpora.params import PrepareParams
from ldm.evaluation import metrics
from ldm.evaluation.real_images import RealImages
from ldm.sampling import samples
from ldm.sampling.params import DrawingParams
from ldm.tools.card import card, memorisation
from ldm.tools.model.params import CardParams, MemorisationParams

CARD = "README.md"


@dataclass(frozen=True)
class Evidence:
    """Folders of what was made beside a model."""

    images: Path
    samples: Path
    evaluation: Path

    def check(self, unet: Passport) -> Passport:
        """The passport of the evaluation. IntegrityError: the samples are not those of this UNet, or the evaluation not
        that of these samples."""
        of_samples, _ = samples.read(self.samples)
        artifact.check_input(self.samples, of_samples, "unet", unet.content_sha256)
        evaluation = artifact.read_passport(self.evaluation, metrics.KIND)
        artifact.check_input(self.evaluation, evaluation, "samples", of_samples.content_sha256)
        return evaluation

    def compare(self, results: Path, params: MemorisationParams) -> memorisation.Memorisation:
        """Compare samples with training images, and write numbers and picture into the folder `results`.

        RejectedError: too many samples are copies; what was written stays, since it shows why. ConfigError: there are
        too few images. IntegrityError: something is missing or damaged.
        """
        real = RealImages(self.images, SPLITS)
        found = memorisation.measure(samples.read(self.samples)[1], real, params)
        with stage.output(results) as folder:
            artifact.write_json(folder / "metrics.json", found.numbers())
            found.picture(real).save(folder / card.NEIGHBOURS)
        found.check(str(results / card.NEIGHBOURS))
        return found

    def write_card(
        self,
        model: Path,
        results: Path,
        parts: Mapping[str, Passport],
        prepare: PrepareParams,
        drawing: DrawingParams,
        compared: memorisation.Memorisation,
        params: CardParams,
    ) -> None:
        """Write the card and its pictures into a model folder.

        parts: passports of `unet`, `autoencoder`, `clip` and `embeddings`. results: where `compare` has written.
        IntegrityError: as of `check`.
        """
        evaluation = self.check(parts["unet"])
        facts = card.Facts(
            parts=parts,
            prepare=prepare,
            counts={split: len(Shards(self.images / split)) for split in SPLITS},
            drawing=drawing,
            evaluation=evaluation,
            metrics=json.loads((self.evaluation / "metrics.json").read_bytes()),
            table=(self.evaluation / "table.md").read_text(encoding="utf-8"),
            memorisation=compared.numbers(),
            compared=compared.params,
        )
        (model / CARD).write_text(card.write(facts, params), encoding="utf-8")
        if params.pictures:
            shutil.copyfile(self.samples / "grid.png", model / card.GRID)
            shutil.copyfile(results / card.NEIGHBOURS, model / card.NEIGHBOURS)
