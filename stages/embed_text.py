"""Stage `embed_text`: token states and pooled features of every caption of the corpus, once each, and of no caption."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from torch import Tensor

from ldm.compute import fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import SPLITS
from ldm.precompute.cache import CacheWriter
from ldm.text.embedding.embeddings import CAPTIONS, NULL
from ldm.text.embedding.embeddings import KIND as EMBEDDINGS
from ldm.text.embedding.encoder import TextEncoder
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.embedding.shards import context_tokens_of, write_shards
from ldm.text.model import clip
from ldm.text.model.captions import Captions


def main() -> str:
    params = config.read(EmbedTextParams, "embed_text")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = process.start("fp32", machine)
    splits = {split: Captions(Path(paths.captions) / split) for split in SPLITS}
    captions = sorted({text for split in splits.values() for texts in split.texts for text in texts})
    model, of_clip = clip.load(Path(paths.clip))
    model = model.to(accelerator.device)
    num_tokens = model.num_tokens(captions)
    context_tokens = context_tokens_of(params, model, int(num_tokens.max()))
    num_truncated = int((num_tokens > context_tokens).sum())
    inputs = {"clip": of_clip.content_sha256, "context_tokens": str(context_tokens), "device": accelerator.device.type}
    made_by = fingerprint.of(__file__, params, inputs, without=fingerprint.AROUND)
    run = state.Run(workspace.runs(paths.runs), "embed_text", made_by, machine)

    encoder = TextEncoder(model, params.layer, params.norm, context_tokens, accelerator.device)

    def encode_part(part: Sequence[str]) -> dict[str, Tensor]:
        return encoder.in_batches(part, params.batch_size)

    with (
        run.opened(accelerator),
        process.outputs(accelerator, Path(paths.embeddings), Path(paths.embeddings_results)) as (folder, results),
    ):
        writer = CacheWriter(folder, EMBEDDINGS)
        num_shards = write_shards(writer, captions, encode_part, params.num_captions_per_shard, accelerator, run)
        if accelerator.is_main_process:
            null = {name: tensor[0] for name, tensor in encode_part([""]).items()}
            artifact.write_tensors(folder / NULL, null)
            artifact.write_json(folder / CAPTIONS, captions)
            facts = {
                "encoder_sha256": of_clip.content_sha256,
                "layer": params.layer,
                "norm": params.norm,
                "context_tokens": context_tokens,
                "context_width": model.context_width,
                "null_sha256": artifact.sha256_tensors(null),
                "num_truncated": num_truncated,
            }
            inputs = {
                "clip": of_clip.content_sha256,
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
