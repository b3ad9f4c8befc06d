"""Encode captions of a corpus to token states: one shard for each shard of captions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldm.compute import process, ranks
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.core import artifact
from ldm.core.errors import ConfigError
from ldm.core.shards import SPLITS
from ldm.precompute.cache import CacheWriter, Lookup
from ldm.precompute.work import keep_each
from ldm.text.embedding.embeddings import INDEX, KIND, NULL, WORDS, TextEncoder
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.embedding.survey import Piece, Survey
from ldm.text.model.encoder import TextModel


@dataclass(frozen=True)
class Counts:
    """Counts of captions and tokens: the metrics of stage `embed_text`."""

    num_captions: int
    """Different captions of all splits."""
    num_stored: int
    """Those of them whose states are stored."""
    num_truncated: int
    """Captions with more tokens than are kept."""
    longest_tokens: int
    """Tokens of the longest caption, before it is cut."""
    context_tokens: int
    """Tokens kept per caption."""


def pieces(survey: Survey, params: EmbedTextParams) -> list[Piece]:
    """The captions to store."""
    is_online = params.train_split.kind == "online"
    return survey.pieces([split for split in SPLITS if split != "train" or not is_online])


def count(survey: Survey, stored: list[Piece], params: EmbedTextParams, model: TextModel) -> Counts:
    """Count the tokens of captions, and decide how many are kept."""
    num_tokens = survey.num_tokens[survey.distinct]
    longest = int(num_tokens.max())
    kept = context_tokens_of(params, model, longest)
    num_stored = sum(len(piece.places) for piece in stored)
    return Counts(len(num_tokens), num_stored, int((num_tokens > kept).sum()), longest, kept)


def write_results(results: Path, survey: Survey, counts: Counts) -> None:
    """Write `metrics.json`, and `caption_tokens.csv`: how many different captions have how many tokens."""
    artifact.write_json(results / "metrics.json", asdict(counts))
    tokens, captions = np.unique(survey.num_tokens[survey.distinct], return_counts=True)
    rows = zip(tokens.tolist(), captions.tolist(), strict=True)
    lines = ["tokens,captions", *(f"{number},{how_many}" for number, how_many in rows)]
    (results / "caption_tokens.csv").write_text("\n".join(lines) + "\n")


def check_fits(params: EmbedTextParams, model: TextModel) -> None:
    """ConfigError: more tokens than the encoder reads, or the encoder has no penultimate layer."""
    if params.layer == "penultimate" and model.num_layers < 2:
        raise ConfigError(
            "params.yaml: embed_text.layer", "penultimate", "last: the encoder has one layer", "set layer: last"
        )
    if params.context_tokens is not None and params.context_tokens > model.context_length:
        expected = f"at most {model.context_length}, the context length of the encoder"
        raise ConfigError("params.yaml: embed_text.context_tokens", str(params.context_tokens), expected, "lower it")


def context_tokens_of(params: EmbedTextParams, model: TextModel, longest: int) -> int:
    """Tokens kept per caption."""
    return params.context_tokens or min(-(-longest // 8) * 8, model.context_length)


def write(
    folder: Path,
    survey: Survey,
    stored: list[Piece],
    counts: Counts,
    encoder: TextEncoder,
    params: EmbedTextParams,
    inputs: Mapping[str, str],
    accelerator: Accelerator,
    run: Run,
) -> None:
    """Write the whole artefact: shards, the columns that find captions in them, words, the embedding of "" and the
    passport. Captions that `run` has kept are not encoded again. Each process does its share.

    inputs: name -> SHA-256, including that of the text encoder, by its kind.
    """
    work = {piece.key(counts.context_tokens): piece for piece in stored}

    def encode(piece: Piece) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return encoder.in_batches(piece.texts, params.batch_size), {}

    keep_each(run, work, encode, "embed_text", "shard", accelerator)
    writer = CacheWriter(folder, KIND)
    for number, key in process.share_of(list(enumerate(work)), accelerator):
        writer.link_shard(number, run.file(key)[0])
    ranks.wait()
    if not accelerator.is_main_process:
        return
    run.retain([*survey.keys, *work])
    # As the first row of a batch of the usual size, like every caption.
    null = {name: part[0] for name, part in encoder([""] * params.batch_size).items()}
    null = {name: part.half() if part.is_floating_point() else part for name, part in null.items()}
    artifact.write_tensors(folder / NULL, null)
    artifact.write_tensors(folder / INDEX, Lookup.columns(np.concatenate([piece.digests for piece in stored])))
    artifact.write_json(folder / WORDS, survey.words)
    facts = {
        "encoder_sha256": inputs[encoder.model.kind.name],
        "layer": params.layer,
        "norm": params.norm,
        "context_tokens": counts.context_tokens,
        "context_width": encoder.model.context_width,
        "null_sha256": artifact.sha256_tensors(null),
        "num_truncated": counts.num_truncated,
    }
    sha256 = [run.file(key)[1] for key in work]
    writer.finish(len(work), params.model_dump(), inputs, facts, files=[INDEX, NULL, WORDS], sha256=sha256)
