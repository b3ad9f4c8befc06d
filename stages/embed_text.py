"""Stage `embed_text`: token states and pooled features of every distinct caption, and of the empty caption."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from dataclasses import asdict

from ldm.compute import fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import SPLITS
from ldm.text.embedding import shards
from ldm.text.embedding.encoder import TextEncoder
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.model import clip
from ldm.text.model.captions import Captions


def main() -> str:
    params = config.read(EmbedTextParams, "embed_text")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = process.start("fp32", machine)
    splits = {split: Captions(Path(paths.captions) / split) for split in SPLITS}
    captions = shards.distinct(splits.values())
    model, clip_passport = clip.load(Path(paths.clip))
    model = model.to(accelerator.device)
    counts = shards.count(captions, params, model)
    inputs = {"clip": clip_passport.content_sha256}
    # Kept rows may be reused whenever the encoder and its settings are the same, even for other captions.
    made_by = {**inputs, "context_tokens": str(counts.context_tokens), "device": accelerator.device.type}
    key = fingerprint.of(__file__, params, made_by, without=fingerprint.AROUND)
    run = state.Run(workspace.runs(paths.runs), "embed_text", key, machine)
    encoder = TextEncoder(model, params.layer, params.norm, counts.context_tokens, accelerator.device)
    inputs |= {f"captions_{name}": split.sha256 for name, split in splits.items()}
    outputs = process.outputs(accelerator, Path(paths.embeddings), Path(paths.embeddings_results))
    with run.opened(accelerator), outputs as (folder, results):
        shards.write(folder, captions, counts, encoder, params, inputs, accelerator, run)
        if accelerator.is_main_process:
            artifact.write_json(results / "metrics.json", asdict(counts))
    counted = f"{counts.num_captions} captions, {counts.context_tokens} tokens each, {counts.num_truncated} truncated"
    return f"embed_text: {counted} -> {paths.embeddings}"


if __name__ == "__main__":
    stage.run(main)
