"""Encode all captions of a corpus to token states, shard by shard, and count their tokens."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ldm.compute import process, ranks
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.core import artifact
from ldm.core.errors import ConfigError
from ldm.precompute.cache import CacheWriter
from ldm.precompute.work import keep_each
from ldm.text.embedding.embeddings import CAPTIONS, KIND, NULL, KeptRows
from ldm.text.embedding.encoder import TextEncoder
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.model import clip
from ldm.text.model.captions import Captions


@dataclass(frozen=True)
class Counts:
    """Counts of captions and tokens: the metrics of stage `embed_text`."""

    num_captions: int
    num_truncated: int
    """Captions with more tokens than are kept."""
    longest_tokens: int
    """Tokens of the longest caption."""
    context_tokens: int
    """Tokens kept per caption."""


def distinct(splits: Iterable[Captions]) -> list[str]:
    """All distinct captions of the splits, sorted."""
    return sorted({text for split in splits for texts in split.texts for text in texts})


def count(captions: Sequence[str], params: EmbedTextParams, model: clip.Clip) -> Counts:
    """Count the tokens of captions, and decide how many are kept. ConfigError: see `context_tokens_of`."""
    num_tokens = model.num_tokens(captions)
    longest = int(num_tokens.max())
    context_tokens = context_tokens_of(params, model, longest)
    return Counts(len(captions), int((num_tokens > context_tokens).sum()), longest, context_tokens)


def write(
    folder: Path,
    captions: Sequence[str],
    counts: Counts,
    encoder: TextEncoder,
    params: EmbedTextParams,
    inputs: Mapping[str, str],
    accelerator: Accelerator,
    run: Run,
) -> None:
    """Write the whole artefact: shards, captions, the null embedding and the passport. Each process does its share.

    inputs: name -> SHA-256, including that of the CLIP as `clip`.
    """

    def encode(part: Sequence[str]) -> dict[str, Tensor]:
        return encoder.in_batches(part, params.batch_size)

    writer = CacheWriter(folder, KIND)
    num_shards = write_shards(writer, captions, encode, params.num_captions_per_shard, accelerator, run)
    if accelerator.is_main_process:
        null = {name: tensor[0] for name, tensor in encode([""]).items()}
        artifact.write_tensors(folder / NULL, null)
        artifact.write_json(folder / CAPTIONS, list(captions))
        facts = {
            "encoder_sha256": inputs["clip"],
            "layer": params.layer,
            "norm": params.norm,
            "context_tokens": counts.context_tokens,
            "context_width": encoder.model.context_width,
            "null_sha256": artifact.sha256_tensors(null),
            "num_truncated": counts.num_truncated,
        }
        writer.finish(num_shards, params.model_dump(), inputs, facts, files=[CAPTIONS, NULL])


def context_tokens_of(params: EmbedTextParams, model: clip.Clip, longest: int) -> int:
    """Tokens kept per caption. ConfigError: more than the encoder reads, or the encoder has no penultimate layer."""
    if params.layer == "penultimate" and model.model_cfg["text_cfg"]["layers"] < 2:
        raise ConfigError(
            "params.yaml: embed_text.layer", "penultimate", "last: the encoder has one layer", "set layer: last"
        )
    if params.context_tokens is None:
        return min(-(-longest // 8) * 8, model.context_length)
    if params.context_tokens > model.context_length:
        expected = f"at most {model.context_length}, the context length of the encoder"
        raise ConfigError("params.yaml: embed_text.context_tokens", str(params.context_tokens), expected, "lower it")
    return params.context_tokens


def write_shards(
    writer: CacheWriter,
    captions: Sequence[str],
    encode: Callable[[Sequence[str]], dict[str, Tensor]],
    num_per_shard: int,
    accelerator: Accelerator,
    run: Run,
) -> int:
    """Write the shards of all captions. Captions that `run` has kept are reused, the others are encoded now. Each
    process does its share. Returns the number of shards."""
    kept = KeptRows(run)
    new = [caption for caption in captions if caption not in kept]
    ranks.wait()
    parts = [new[start : start + num_per_shard] for start in range(0, len(new), num_per_shard)]
    work = {artifact.sha256_json(part): part for part in parts}
    keep_each(run, work, lambda part: (encode(part), {"captions": part}), "embed_text", "shard", accelerator)
    # Read again: the new captions are kept now too.
    kept = KeptRows(run)
    starts = range(0, len(captions), num_per_shard)
    for number, start in process.share_of(list(enumerate(starts)), accelerator):
        writer.write_shard(number, kept.gather(captions[start : start + num_per_shard]))
    ranks.wait()
    if accelerator.is_main_process:
        run.retain(kept.keys_of(captions))
    return len(starts)
