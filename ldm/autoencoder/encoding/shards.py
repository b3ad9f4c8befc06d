"""Encode images to latents, shard by shard."""

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm.autoencoder.encoding.latents import LatentScale, Measured, check_scaled
from ldm.autoencoder.encoding.params import EncodeLatentsParams, MeasuredScaleParams, StatedScaleParams
from ldm.autoencoder.model.network import Autoencoder, to_signal
from ldm.compute import attention, process, ranks
from ldm.compute.precision import autocast
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.core import images
from ldm.core.params import Size
from ldm.core.shards import Shards
from ldm.precompute.cache import CacheWriter
from ldm.precompute.work import keep_each


def prove_attention(
    autoencoder: Autoencoder, sizes_px: Iterable[Size], params: EncodeLatentsParams, device: torch.device
) -> None:
    """MachineError unless the attention backend can encode images of these sizes."""
    for sides in sizes_px:
        height, width = (side // autoencoder.factor for side in sides)
        attention.prove(device, autoencoder.attention_shapes(height, width), params.precision, trains=False)


@torch.no_grad()
def encode(
    autoencoder: Autoencoder,
    shards: Shards,
    samples: range,
    params: EncodeLatentsParams,
    is_mirrored: bool,
    num_workers: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Encode samples of one bucket: `mean` and `log_variance` [n, c, h, w] of their posteriors, in float16. If
    `is_mirrored`, also those of the mirrored images, under names that end in `_mirrored`.

    num_workers: threads that decode images meanwhile.
    """
    parts: dict[str, list[Tensor]] = {}
    with closing(_batches(shards, samples, params.batch_size, num_workers)) as batches:
        for batch in batches:
            pixels = (batch.pin_memory() if device.type == "cuda" else batch).to(device, non_blocking=True)
            for ending, image in {"": pixels, "_mirrored": pixels.flip(-1)}.items() if is_mirrored else [("", pixels)]:
                with autocast(device, params.precision):
                    posterior = autoencoder.encode(to_signal(image))
                parts.setdefault(f"mean{ending}", []).append(posterior.mean.half())
                parts.setdefault(f"log_variance{ending}", []).append(posterior.log_variance.half())
    # The device is waited for once.
    return {name: torch.cat(tensors).cpu() for name, tensors in parts.items()}


def _batches(shards: Shards, samples: range, batch_size: int, num_workers: int) -> Generator[UInt8[Tensor, "b 3 h w"]]:
    """Decoded images of samples, in order."""
    most = 2 * batch_size if num_workers else 0
    # They are read here, one after the other, as they lie on the disk.
    read = shards.encoded(samples)
    with closing(process.ahead(images.decode, read, num_results=most, num_threads=num_workers)) as decoded:
        while pixels := list(islice(decoded, batch_size)):
            yield images.stacked(pixels)


def scales(params: EncodeLatentsParams, train: Measured, val: Measured, where: str) -> tuple[LatentScale, LatentScale]:
    """The scale that the params ask for, and that of validation latents after they were normalised with it.

    train, val: as measured. where: the validation images. IntegrityError: a measured scale does not fit them.
    """
    match params.scale:
        case MeasuredScaleParams():
            scaled = val.scale.relative_to(train.scale)
            check_scaled(scaled, train.errors(val.num_images), params.statistics_tolerance, where)
            return train.scale, scaled
        case StatedScaleParams(factor=factor, shift=shift):
            ones = torch.ones_like(train.scale.mean)
            stated = LatentScale(shift * ones, ones / factor)
            return stated, val.scale.relative_to(stated)


def keys(shards: Shards, params: EncodeLatentsParams) -> list[str]:
    """By what a run keeps the latents of every shard of images: its hash, and whether there are mirrored ones too."""
    ending = "-mirrored" if _is_mirrored(shards, params) else ""
    return [f"{sha256}{ending}" for sha256 in shards.shard_sha256]


def write_shards(
    writer: CacheWriter,
    autoencoder: Autoencoder,
    shards: Shards,
    params: EncodeLatentsParams,
    num_workers: int,
    accelerator: Accelerator,
    run: Run,
) -> None:
    """Write a split, training images mirrored too if the params say so: one shard of latents per shard of images.
    Shards that `run` has kept are reused, the others are encoded now. Each process does its share.

    num_workers: as of `encode`.
    """
    is_mirrored = _is_mirrored(shards, params)
    kept = keys(shards, params)
    work = {key: shards.shard_samples(number) for number, key in enumerate(kept)}

    def compute(samples: range) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return encode(autoencoder, shards, samples, params, is_mirrored, num_workers, accelerator.device), {}

    keep_each(run, work, compute, f"encode_latents {shards.directory.name}", "shard", accelerator)
    for number in process.share_of(range(shards.num_shards), accelerator):
        writer.link_shard(number, run.file(kept[number])[0])
    ranks.wait()


def _is_mirrored(shards: Shards, params: EncodeLatentsParams) -> bool:
    return params.mirrored and shards.directory.name == "train"
