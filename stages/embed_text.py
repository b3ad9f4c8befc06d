"""Stage `embed_text`: token states and pooled features of every caption of the corpus, once each, and of no caption."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

import torch
from torch import Tensor
from tqdm import tqdm

from ldm import artifact, clip, config, stage
from ldm.cache import CAPTIONS, EMBEDDINGS, NULL, CacheWriter
from ldm.captions import Captions
from ldm.errors import ConfigError
from ldm.params.embed_text import EmbedTextParams
from ldm.params.machine import MachineParams
from ldm.params.paths import PathsParams

SPLITS = ("train", "val", "held_out")


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
        ids = model.tokenise(captions[start : start + params.batch_size], context_tokens).to(device)
        states, features = model.encode_text(ids, params.layer, params.norm)
        tokens.append(states[:, :context_tokens].half().cpu())
        pooled.append(features.half().cpu())
    return {"tokens": torch.cat(tokens), "pooled": torch.cat(pooled)}


def main() -> str:
    params = config.read(EmbedTextParams, "embed_text")
    paths = config.read(PathsParams, "paths")
    accelerator = stage.start("fp32", config.read(MachineParams, "machine"))
    splits = {split: Captions(Path(paths.captions) / split) for split in SPLITS}
    captions = sorted({text for split in splits.values() for texts in split.texts for text in texts})
    model, encoder = clip.load(Path(paths.clip))
    model = model.to(accelerator.device)
    num_tokens = model.num_tokens(captions)
    context_tokens = context_tokens_of(params, model, int(num_tokens.max()))
    num_truncated = int((num_tokens > context_tokens).sum())
    num_shards = -(-len(captions) // params.num_captions_per_shard)
    with (
        stage.output(Path(paths.embeddings), accelerator) as folder,
        stage.output(Path(paths.embeddings_results), accelerator) as results,
    ):
        writer = CacheWriter(folder, EMBEDDINGS)
        for number in tqdm(
            stage.share_of(num_shards, accelerator), "embed_text", disable=not accelerator.is_main_process
        ):
            start = number * params.num_captions_per_shard
            part = captions[start : start + params.num_captions_per_shard]
            writer.write_shard(number, encode(model, part, params, context_tokens, accelerator.device))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            null = {
                name: tensor[0]
                for name, tensor in encode(model, [""], params, context_tokens, accelerator.device).items()
            }
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
