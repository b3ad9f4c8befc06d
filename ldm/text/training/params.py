"""Section `train_clip`: the text encoder, trained on the corpus or taken as it is."""

from typing import Self

from pydantic import Field, model_validator

from ldm.core.config import BESIDE, Section
from ldm.text.model.params import ClipParams
from ldm.training.params import TrainingParams


class TrainClipParams(Section):
    """Section `train_clip` of params.yaml."""

    pretrained: str | None = Field(min_length=1)
    """null = train `network` on the corpus; else an open_clip tag (`laion2b_s34b_b79k`), a checkpoint file
    in `clip` of `paths.models`, or there a folder with `open_clip_config.json` or one that an earlier run of this stage
    wrote. A path holds a `/`, a tag does not."""
    architecture: str | None = Field(min_length=1)
    """open_clip's name of the architecture (`ViT-L-14`) for a tag or a checkpoint file; null for a folder, which says
    it itself."""
    quick_gelu: bool | None
    """Whether the pretrained model was trained with QuickGELU, as OpenAI's were; a path must say it, null = what the
    architecture says."""
    network: ClipParams | None
    """The model to train; null with `pretrained`."""
    training: TrainingParams | None
    """How it is trained; null with `pretrained`."""
    twins_together: bool
    """Whether samples 2i and 2i + 1 always share a batch, where the corpus puts scenes that differ only by an exchange
    side by side."""
    num_validation_pairs: int = Field(ge=2, le=65536, json_schema_extra=BESIDE)
    """Image-caption pairs with distinct captions among which validation retrieves (fewer if the split has fewer)."""

    @property
    def pretrained_is_path(self) -> bool:
        """Whether `pretrained` names a file or folder, not a tag."""
        return self.pretrained is not None and "/" in self.pretrained

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrained is None:
            self._check_trained()
        else:
            self._check_pretrained()
        return self

    def _check_trained(self) -> None:
        if self.network is None or self.training is None:
            raise ValueError("pretrained is null, so network and training must be given")
        if self.architecture is not None or self.quick_gelu is not None:
            raise ValueError(
                "architecture and quick_gelu belong to a pretrained model; pretrained is null, so they must be null"
            )
        if self.training.num_accumulation_steps != 1:
            raise ValueError(
                "training.num_accumulation_steps must be 1: the contrastive loss compares all pairs of a batch"
            )
        if self.twins_together and self.training.batch_size % 2:
            raise ValueError(f"training.batch_size {self.training.batch_size} must be even with twins_together")

    def _check_pretrained(self) -> None:
        if self.network is not None or self.training is not None:
            raise ValueError("network and training must be null with pretrained: that model is used as it is")
        if self.pretrained_is_path and self.quick_gelu is None:
            raise ValueError(
                "quick_gelu must be true or false with a path: weights do not say with which they were trained"
            )
        if not self.pretrained_is_path and self.architecture is None:
            raise ValueError(f"architecture must name the open_clip architecture of the tag {self.pretrained!r}")
