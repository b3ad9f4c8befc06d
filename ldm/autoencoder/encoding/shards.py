"""Encode images to latents, shard by shard."""

from typing import Any

import torch
from torch import Tensor

from ldm.autoencoder.encoding.params import EncodeLatentsParams
from ldm.autoencoder.model.network import Autoencoder, to_signal
from ldm.compute import process, ranks
from ldm.compute.precision import autocast
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.core.shards import Shards
from ldm.precompute.cache import CacheWriter
from ldm.precompute.work import keep_each


@torch.no_grad()
def encode(
    autoencoder: Autoencoder, shards: Shards, samples: range, params: EncodeLatentsParams, device: torch.device
) -> dict[str, Tensor]:
    """Encode samples: `mean` and `log_variance` [n, c, h, w] of their posteriors, in float16."""
    means: list[Tensor] = []
    log_variances: list[Tensor] = []
    for start in range(samples.start, samples.stop, params.batch_size):
        numbers = range(start, min(start + params.batch_size, samples.stop))
        pixels = shards.images(numbers).to(device)
        with autocast(device, params.precision):
            posterior = autoencoder.encode(to_signal(pixels))
        means.append(posterior.mean.half().cpu())
        log_variances.append(posterior.log_variance.half().cpu())
    return {"mean": torch.cat(means), "log_variance": torch.cat(log_variances)}


def write_shards(
    writer: CacheWriter,
    autoencoder: Autoencoder,
    shards: Shards,
    params: EncodeLatentsParams,
    accelerator: Accelerator,
    run: Run,
) -> None:
    """Write a split: one shard of latents per shard of images. Shards that `run` has kept are reused, the others are
    encoded now. Each process does its share."""
    work = {key: shards.shard_samples(number) for number, key in enumerate(shards.shard_sha256)}

    def compute(samples: range) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return encode(autoencoder, shards, samples, params, accelerator.device), {}

    keep_each(run, work, compute, f"encode_latents {shards.directory.name}", "shard", accelerator)
    for number in process.share_of(range(shards.num_shards), accelerator):
        writer.link_shard(number, run.file(shards.shard_sha256[number])[0])
    ranks.wait()
