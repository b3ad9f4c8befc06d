"""Stage `encode_latents`: mean and log-variance of every image's latent, and the scale that gives them mean 0 and
deviation 1."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm import stage  # before torch, whose MKL reads once how it is to multiply

# isort: split

import torch
from torch import Tensor

from ldm import artifact, attention, config, fingerprint, images, latents, ranks, state, stopping, workspace
from ldm.autoencoder import Autoencoder, to_signal
from ldm.cache import LATENTS, CacheWriter
from ldm.params.encode_latents import EncodeLatentsParams
from ldm.params.machine import MachineParams
from ldm.params.networks import AutoencoderParams
from ldm.params.paths import PathsParams
from ldm.shards import Shards

if TYPE_CHECKING:
    from accelerate import Accelerator

SPLITS = ("train", "val")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def encode(
    autoencoder: Autoencoder, shards: Shards, samples: range, params: EncodeLatentsParams, device: torch.device
) -> dict[str, Tensor]:
    """`mean` and `log_variance` [n, c, h, w] of the posteriors of samples, in float16."""
    means, log_variances = list[Tensor](), list[Tensor]()
    for start in range(samples.start, samples.stop, params.batch_size):
        numbers = range(start, min(start + params.batch_size, samples.stop))
        pixels = images.to_tensor([shards[number]["png"] for number in numbers]).to(device)
        with torch.autocast(device.type, PRECISIONS[params.precision], enabled=params.precision != "fp32"):
            posterior = autoencoder.encode(to_signal(pixels))
        means.append(posterior.mean.half().cpu())
        log_variances.append(posterior.log_variance.half().cpu())
    return {"mean": torch.cat(means), "log_variance": torch.cat(log_variances)}


def write_shards(
    writer: CacheWriter,
    autoencoder: Autoencoder,
    shards: Shards,
    params: EncodeLatentsParams,
    accelerator: "Accelerator",
    run: state.Run,
) -> None:
    """This process's share of a split: one shard of latents per shard of images, unless `run` has kept it."""
    name = f"encode_latents {shards.directory.name}"
    for number in stopping.units(range(shards.num_shards), name, "shard", accelerator):
        key = shards.shard_sha256[number]
        if (kept := run.kept(key)) is not None:
            writer.write_shard(number, kept.tensors)
            continue
        tensors = encode(autoencoder, shards, shards.shard_samples(number), params, accelerator.device)
        writer.write_shard(number, tensors)
        run.keep(key, tensors)
    ranks.wait()


def main() -> str:
    params = config.read(EncodeLatentsParams, "encode_latents")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = stage.start(params.precision, machine)
    passport, tensors = artifact.read(Path(paths.autoencoder), "autoencoder")
    autoencoder = Autoencoder(AutoencoderParams.model_validate(passport.config))
    autoencoder.load_state_dict(tensors)
    autoencoder = autoencoder.eval().to(accelerator.device)
    shards = {split: Shards(Path(paths.images) / split) for split in SPLITS}
    size_px = int(images.decode_png(shards["train"][0]["png"]).shape[0])
    shapes = autoencoder.attention_shapes(size_px // autoencoder.factor)
    attention.prove(accelerator.device, shapes, params.precision, trains=False)
    made_by = fingerprint.of(params, {"autoencoder": passport.content_sha256, "device": accelerator.device.type})
    run = state.Run(workspace.runs(paths.runs), "encode_latents", made_by, machine)
    summary = ""
    with (
        run.opened(accelerator),
        stage.outputs(accelerator, Path(paths.latents), Path(paths.latents_results)) as (folder, results),
    ):
        writers = {split: CacheWriter(folder / split, LATENTS) for split in SPLITS}
        for split in SPLITS:
            write_shards(writers[split], autoencoder, shards[split], params, accelerator, run)
        if accelerator.is_main_process:
            measured = {split: latents.measure(writers[split].shards(shards[split].num_shards)) for split in SPLITS}
            scale, scaled = measured["train"], measured["val"].relative_to(measured["train"])
            latents.check_scaled(scaled, params.statistics_tolerance, f"{paths.images}/val")
            facts = {
                "latent_scale": scale.to_facts(),
                "autoencoder_sha256": passport.content_sha256,
                "factor": autoencoder.factor,
                "image_size_px": size_px,
            }
            for split in SPLITS:
                inputs = {"autoencoder": passport.content_sha256, "images": shards[split].sha256}
                writers[split].finish(shards[split].num_shards, params.model_dump(), inputs, facts)
            artifact.write_json(results / "metrics.json", latents.metrics(scale, scaled))
            run.retain([key for split in SPLITS for key in shards[split].shard_sha256])
            summary = ", ".join(f"{len(shards[split])} {split}" for split in SPLITS)
    return f"encode_latents: {summary} latents -> {paths.latents}"


if __name__ == "__main__":
    stage.run(main)
