"""All captions of a corpus to token states, in shards."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ldm.compute import process, ranks
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.core import artifact
from ldm.core.errors import ConfigError
from ldm.precompute.cache import CacheWriter
from ldm.precompute.work import keep_each
from ldm.text.embedding.embeddings import KeptRows
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.model import clip


def context_tokens_of(params: EmbedTextParams, model: clip.Clip, longest: int) -> int:
    """Tokens kept per caption. ConfigError: more than the encoder has, or it has no penultimate layer."""
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
    """Shards of all captions, of those that `run` has kept and those that are encoded now; each process does its share.
    Returns how many shards there are."""
    kept = KeptRows(run)
    new = [caption for caption in captions if caption not in kept]
    ranks.wait()
    parts = [new[start : start + num_per_shard] for start in range(0, len(new), num_per_shard)]
    work = {artifact.sha256_json(part): part for part in parts}
    keep_each(run, work, lambda part: (encode(part), {"captions": part}), "embed_text", "shard", accelerator)
    kept = KeptRows(run)
    starts = range(0, len(captions), num_per_shard)
    for number, start in process.share_of(list(enumerate(starts)), accelerator):
        writer.write_shard(number, kept.gather(captions[start : start + num_per_shard]))
    ranks.wait()
    if accelerator.is_main_process:
        run.retain(kept.keys_of(captions))
    return len(starts)
