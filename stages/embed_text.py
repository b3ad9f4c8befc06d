"""Stage `embed_text`: token states and pooled features of every distinct caption to be stored, and of the empty one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from ldm.compute import devices, fingerprint, process, state
from ldm.core import config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import SPLITS
from ldm.text.embedding import shards
from ldm.text.embedding.embeddings import TextEncoder
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.embedding.survey import survey
from ldm.text.embedding.tower import load_text
from ldm.text.model.captions import Captions


def main() -> str:
    params = config.read(EmbedTextParams, "embed_text")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = devices.start(machine)
    splits = {split: Captions(Path(paths.captions) / split) for split in SPLITS}
    model, made_with = load_text(Path(paths.clip))
    shards.check_fits(params, model)
    inputs = {made_with.kind: made_with.content_sha256}
    # What is kept may be used again whenever the encoder and its settings are the same, even for other captions.
    made_by = {**inputs, "config": made_with.config_sha256, "device": accelerator.device.type}
    key = fingerprint.of(__file__, params, made_by, without=fingerprint.AROUND)
    run = state.Run(workspace.runs(paths.runs), "embed_text", key, machine)
    inputs |= {f"captions_{name}": split.sha256 for name, split in splits.items()}
    outputs = process.outputs(accelerator, Path(paths.embeddings), Path(paths.embeddings_results))
    with run.opened(accelerator), outputs as (folder, results):
        captions = survey(splits, model, accelerator, run)
        stored = shards.pieces(captions, params)
        counts = shards.count(captions, stored, params, model)
        states = params.layer, params.norm, counts.context_tokens, params.padding == "masked"
        encoder = TextEncoder(model.to(accelerator.device), *states, accelerator.device)
        shards.write(folder, captions, stored, counts, encoder, params, inputs, accelerator, run)
        if accelerator.is_main_process:
            shards.write_results(results, captions, counts)
    counted = f"{counts.num_captions} captions, {counts.context_tokens} tokens each, {counts.num_truncated} truncated"
    return f"embed_text: {counted} -> {paths.embeddings}"


if __name__ == "__main__":
    stage.run(main)
