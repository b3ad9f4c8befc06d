"""Stage `encode_latents`: mean and log-variance of the latent of every image, and the scale that gives latents mean 0
and deviation 1."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from ldm.autoencoder.encoding import latents
from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.encoding.params import EncodeLatentsParams
from ldm.autoencoder.encoding.shards import keys, prove_attention, scales, write_shards
from ldm.autoencoder.model import networks
from ldm.compute import compilation, devices, fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import Shards
from ldm.precompute.cache import CacheWriter

SPLITS = ("train", "val")


def main() -> str:
    params = config.read(EncodeLatentsParams, "encode_latents")
    paths, machine = config.read(PathsParams, "paths"), config.read(MachineParams, "machine")
    accelerator = devices.start(machine)
    autoencoder, passport = networks.load(Path(paths.autoencoder), accelerator.device)
    shards = {split: Shards(Path(paths.images) / split) for split in SPLITS}
    sizes_px = {size for split in SPLITS for size in shards[split].image_sizes_px}
    prove_attention(autoencoder, sizes_px, params, accelerator.device)
    compilation.prepare(machine, *autoencoder.halves)
    network = {"autoencoder": passport.content_sha256, "config": passport.config_sha256}
    inputs = {**network, "device": accelerator.device.type}
    made_by = fingerprint.of(__file__, params, inputs, without=fingerprint.AROUND)
    run = state.Run(workspace.runs(paths.runs), "encode_latents", made_by, machine)
    summary = ""
    outputs = process.outputs(accelerator, Path(paths.latents), Path(paths.latents_results))
    with run.opened(accelerator), outputs as (folder, results):
        precision = devices.settle_in(run, params.precision, autoencoder, accelerator)
        params = params.model_copy(update={"precision": precision})
        writers = {split: CacheWriter(folder / split, LATENTS) for split in SPLITS}
        for split in SPLITS:
            write_shards(writers[split], autoencoder, shards[split], params, machine.num_workers, accelerator, run)
        if accelerator.is_main_process:
            measured = {split: latents.measure(writers[split].shards(shards[split].num_shards)) for split in SPLITS}
            scale, scaled = scales(params, measured["train"], measured["val"], f"{paths.images}/val")
            facts = {
                "latent_scale": scale.to_facts(),
                "autoencoder_sha256": passport.content_sha256,
                "factor": autoencoder.factor,
                "image_size_px": math.isqrt(max(height * width for height, width in sizes_px)),
            }
            for split in SPLITS:
                inputs = {"autoencoder": passport.content_sha256, "images": shards[split].sha256}
                sha256 = [run.file(key)[1] for key in keys(shards[split], params)]
                writers[split].finish(len(sha256), params.model_dump(), inputs, facts, sha256=sha256)
            artifact.write_json(results / "metrics.json", latents.metrics(scale, scaled))
            run.retain([key for split in SPLITS for key in keys(shards[split], params)])
            summary = ", ".join(f"{len(shards[split])} {split}" for split in SPLITS)
    return f"encode_latents: {summary} latents -> {paths.latents}"


if __name__ == "__main__":
    stage.run(main)
