"""Stage `embed_text`: token states and pooled features of every caption of the corpus, once each, and of no caption."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm import stage  # before torch, whose MKL reads once how it is to multiply

# isort: split

import torch
from torch import Tensor

from ldm import artifact, clip, config, fingerprint, ranks, state, stopping, workspace
from ldm.cache import CAPTIONS, EMBEDDINGS, NULL, CacheWriter, KeptRows
from ldm.captions import Captions
from ldm.corpora import SPLITS
from ldm.errors import ConfigError
from ldm.params.embed_text import EmbedTextParams
from ldm.params.machine import MachineParams
from ldm.params.paths import PathsParams

if TYPE_CHECKING:
    from accelerate import Accelerator


def context_tokens_of(params: EmbedTextParams, model: clip.Clip, longest: int) -> int:
    """Tokens kept per caption. ConfigError: more than the encoder has, or a penultimate layer that it has not."""
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


@torch.no_grad()
def encode(
    model: clip.Clip, captions: list[str], params: EmbedTextParams, context_tokens: int, device: torch.device
) -> dict[str, Tensor]:
    """`tokens` [b, n, d] and `pooled` [b, f] in float16."""
    tokens, pooled = list[Tensor](), list[Tensor]()
    for start in range(0, len(captions), params.batch_size):
        part = captions[start : start + params.batch_size]
        # Batches of one size, so that the bits of a caption do not depend on how many others are new with it.
        full = [*part, *[""] * (params.batch_size - len(part))]
        states, features = model.encode_text(model.tokenise(full, context_tokens).to(device), params.layer, params.norm)
        tokens.append(states[: len(part), :context_tokens].half().cpu())
        pooled.append(features[: len(part)].half().cpu())
    return {"tokens": torch.cat(tokens), "pooled": torch.cat(pooled)}


def write_shards(
    writer: CacheWriter,
    captions: list[str],
    encode_part: Callable[[list[str]], dict[str, Tensor]],
    num_per_shard: int,
    accelerator: "Accelerator",
    run: state.Run,
) -> int:
    """This process's share of the shards, of captions that `run` has kept or that are encoded now; returns how many
    shards there are."""
    kept = KeptRows(run)
    new = [caption for caption in captions if caption not in kept]
    ranks.wait()
    for start in stopping.units(range(0, len(new), num_per_shard), "embed_text", "shard", accelerator):
        part = new[start : start + num_per_shard]
        run.keep(artifact.sha256_json(part), encode_part(part), {"captions": part})
    ranks.wait()
    kept = KeptRows(run)
    starts = range(0, len(captions), num_per_shard)
    for number in stage.share_of(len(starts), accelerator):
        start = starts[number]
        writer.write_shard(number, kept.gather(captions[start : start + num_per_shard]))
    ranks.wait()
    if accelerator.is_main_process:
        run.retain(kept.keys_of(captions))
    return len(starts)


def main() -> str:
    params = config.read(EmbedTextParams, "embed_text")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = stage.start("fp32", machine)
    splits = {split: Captions(Path(paths.captions) / split) for split in SPLITS}
    captions = sorted({text for split in splits.values() for texts in split.texts for text in texts})
    model, encoder = clip.load(Path(paths.clip))
    model = model.to(accelerator.device)
    num_tokens = model.num_tokens(captions)
    context_tokens = context_tokens_of(params, model, int(num_tokens.max()))
    num_truncated = int((num_tokens > context_tokens).sum())
    inputs = {"clip": encoder.content_sha256, "context_tokens": str(context_tokens), "device": accelerator.device.type}
    made_by = fingerprint.of(params, inputs)
    run = state.Run(workspace.runs(paths.runs), "embed_text", made_by, machine)

    def encode_part(part: list[str]) -> dict[str, Tensor]:
        return encode(model, part, params, context_tokens, accelerator.device)

    with (
        run.opened(accelerator),
        stage.outputs(accelerator, Path(paths.embeddings), Path(paths.embeddings_results)) as (folder, results),
    ):
        writer = CacheWriter(folder, EMBEDDINGS)
        num_shards = write_shards(writer, captions, encode_part, params.num_captions_per_shard, accelerator, run)
        if accelerator.is_main_process:
            null = {name: tensor[0] for name, tensor in encode_part([""]).items()}
            artifact.write_tensors(folder / NULL, null)
            artifact.write_json(folder / CAPTIONS, captions)
            facts = {
                "encoder_sha256": encoder.content_sha256,
                "layer": params.layer,
                "norm": params.norm,
                "context_tokens": context_tokens,
                "context_width": model.context_width,
                "null_sha256": artifact.sha256_tensors(null),
                "num_truncated": num_truncated,
            }
            inputs = {
                "clip": encoder.content_sha256,
                **{f"captions_{name}": split.sha256 for name, split in splits.items()},
            }
            writer.finish(num_shards, params.model_dump(), inputs, facts, files=[CAPTIONS, NULL])
            counts = {
                "num_captions": len(captions),
                "num_truncated": num_truncated,
                "longest_tokens": int(num_tokens.max()),
            }
            artifact.write_json(results / "metrics.json", {**counts, "context_tokens": context_tokens})
    counted = f"{len(captions)} captions, {context_tokens} tokens each, {num_truncated} truncated"
    return f"embed_text: {counted} -> {paths.embeddings}"


if __name__ == "__main__":
    stage.run(main)
