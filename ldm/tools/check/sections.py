"""Sections of a params file, read together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldm.autoencoder.encoding.params import EncodeLatentsParams
from ldm.autoencoder.training.params import TrainAutoencoderParams
from ldm.core import config
from ldm.core.params import MachineParams, PathsParams
from ldm.corpora.params import PrepareParams
from ldm.denoiser.training.params import TrainUNetParams
from ldm.evaluation.params import EvaluateParams
from ldm.sampling.params import SampleParams
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.training.params import TrainClipParams
from ldm.tools.model.params import ModelParams
from ldm.tools.tasks.params import TasksParams

SECTIONS: dict[str, type[config.Section]] = {
    "machine": MachineParams,
    "prepare": PrepareParams,
    "train_autoencoder": TrainAutoencoderParams,
    "encode_latents": EncodeLatentsParams,
    "train_clip": TrainClipParams,
    "embed_text": EmbedTextParams,
    "train_unet": TrainUNetParams,
    "sample": SampleParams,
    "evaluate": EvaluateParams,
    "model": ModelParams,
    "tasks": TasksParams,
}
"""Sections of a params file; the section `paths` has its own file."""


@dataclass(frozen=True)
class Params:
    """A whole params file, and the paths of the repository."""

    paths: PathsParams
    machine: MachineParams
    prepare: PrepareParams
    train_autoencoder: TrainAutoencoderParams
    encode_latents: EncodeLatentsParams
    train_clip: TrainClipParams
    embed_text: EmbedTextParams
    train_unet: TrainUNetParams
    sample: SampleParams
    evaluate: EvaluateParams
    model: ModelParams
    tasks: TasksParams


def num_steps(made_by: Mapping[str, Any]) -> int | None:
    """Updates of the training with this fingerprint; None if it is none."""
    return next((value for key, value in made_by.items() if key.endswith("training.num_steps")), None)


Finding = tuple[str, str, str]  # dotted key, "found ...; expected ...", what to do
