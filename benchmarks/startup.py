"""What a start costs: seconds and memory of one process until its first batch is there, by number of samples.

The samples are synthetic. Every shard is a hard link of one shard of 1,000 samples, so that ten million of them take no
more room on disk than their indices. A start is a process of its own, which opens what a stage opens and reads its
first batch. `first` is that of a machine that has seen none of the files; `next` is any later one. Seconds and
memory are those beyond the imports; memory is the peak of the resident set, with the mapped pages.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.model import networks
from ldm.autoencoder.model.params import IdentityParams, StoredParams
from ldm.autoencoder.training.reconstruction import open_splits
from ldm.compute import devices, process
from ldm.core import artifact, config, hashes, images, shards, shards_index
from ldm.core.params import MachineParams
from ldm.core.shards import SPLITS, Shards
from ldm.denoiser.training.batches import LatentBatches
from ldm.denoiser.training.inputs import load_inputs
from ldm.denoiser.training.params import TrainUNetParams
from ldm.evaluation.measure import subjects as subjects_of
from ldm.evaluation.measure import units
from ldm.evaluation.params import EvaluateParams
from ldm.evaluation.real_images import RealImages
from ldm.precompute.cache import CacheWriter, Lookup
from ldm.sampling import plan
from ldm.sampling.params import SampleParams
from ldm.text.embedding.embeddings import INDEX, NULL, WORDS
from ldm.text.embedding.embeddings import KIND as EMBEDDINGS
from ldm.text.embedding.words import words_of
from ldm.text.training.contrastive import Batches
from ldm.text.training.pairs import ImagesAndCaptions

NUM_PER_SHARD = 1000
_SIDE_PX, _BATCH_SIZE = 2, 256
_PIXELS = IdentityParams(kind="identity", latent_channels=1)
_COUNTS = [10_000, 100_000, 1_000_000, 10_000_000]


def repeat(split: Path, count: int) -> None:
    """Make a split of one tar one of `count` equal tars."""
    index, ends, _ = shards_index.read(split)
    (shard,) = index.shards
    keys, digest = "".join(f"{key}\n" for key in Shards(split).keys).encode(), hashlib.sha256()
    names = [shards_index.name_of(number) for number in range(count)]
    for name in names[1:]:
        os.link(split / shard.name, split / name)
    for _ in names:
        digest.update(keys)
    np.save(split / shards_index.ENDS, np.tile(ends, count))
    tars = [shard.model_copy(update={"name": name}) for name in names]
    ends_sha256 = hashes.sha256_file(split / shards_index.ENDS)
    shards_index.Index.of(tars, digest.hexdigest(), ends_sha256).write(split)


def write_split(root: Path, split: str, num_shards: int) -> None:
    """Images, captions and latents of `num_shards` equal shards; no caption of a shard is twice in it."""
    png = images.encode_png(np.zeros((_SIDE_PX, _SIDE_PX, 3), dtype=np.uint8))
    keys = [f"{split}-{number:05d}" for number in range(NUM_PER_SHARD)]
    told = [json.dumps({"captions": [text], "claims": [None]}).encode() for text in texts()]
    for name, parts in {"images": [{"png": png}] * len(keys), "captions": [{"json": text} for text in told]}.items():
        shards.write(root / name / split, list(zip(keys, parts, strict=True)) if num_shards else [], NUM_PER_SHARD)
        if num_shards:
            repeat(root / name / split, num_shards)


def texts() -> list[str]:
    """The captions of a shard."""
    return [f"caption number {number:03d} of a thousand that are all different" for number in range(NUM_PER_SHARD)]


def write_corpus(
    root: Path,
    num_samples: int,
    network: StoredParams = _PIXELS,
    latent_shape: tuple[int, int, int] = (1, _SIDE_PX, _SIDE_PX),
    context_shape: tuple[int, int] = (4, 8),
) -> None:
    """All that the measured stages read: `num_samples` samples to train on, and a shard for validation.

    network: of the autoencoder. context_shape: tokens of a caption and their width.
    """
    counts = {"train": num_samples // NUM_PER_SHARD, "val": 1, "reworded": 0, "unseen": 0, "held_out": 0}
    for split, count in counts.items():
        write_split(root, split, count)
    weights = networks.build(network).state_dict()
    made = artifact.write(root / "autoencoder", networks.KIND, network.model_dump(), weights, {}, {})
    inputs = {"autoencoder": made.content_sha256}
    scale = {"latent_scale": {"mean": [0.0] * latent_shape[0], "std": [1.0] * latent_shape[0]}}
    rows = torch.zeros(NUM_PER_SHARD, *latent_shape).half()
    for split in ("train", "val"):
        writer = CacheWriter(root / "latents" / split, LATENTS)
        writer.write_shard(0, {"mean": rows, "log_variance": rows.clone()})
        (first,) = writer.directory.glob("*.safetensors")
        for number in range(1, counts[split]):
            os.link(first, first.with_name(f"{number:05d}.safetensors"))
        writer.finish(counts[split], {}, inputs, scale)
    _write_embeddings(root / "embeddings", root / "captions", *context_shape)


def _write_embeddings(folder: Path, captions: Path, num_tokens: int, width: int) -> None:
    writer = CacheWriter(folder, EMBEDDINGS)
    rows = {"tokens": torch.zeros(NUM_PER_SHARD, num_tokens, width), "pooled": torch.zeros(NUM_PER_SHARD, width)}
    rows = {name: part.half() for name, part in rows.items()}
    null = {name: part[0] for name, part in rows.items()}
    writer.write_shard(0, rows)
    artifact.write_tensors(folder / NULL, null)
    artifact.write_tensors(folder / INDEX, Lookup.columns(Lookup.digests(texts())))
    artifact.write_json(folder / WORDS, sorted(words_of(texts())))
    inputs = {f"captions_{split}": Shards(captions / split).sha256 for split in SPLITS}
    facts = {"null_sha256": artifact.sha256_tensors(null), "context_tokens": num_tokens}
    made_with = {"padding": "attended", "train_split": {"kind": "stored"}}
    writer.finish(1, made_with, inputs, facts, files=[INDEX, NULL, WORDS])


def train_autoencoder(root: Path) -> None:
    """The images, all checked, and a batch."""
    splits = open_splits(root / "images", is_trained=True, accelerator=_accelerator())
    splits["train"].images(_scattered(len(splits["train"])))


def train_clip(root: Path) -> None:
    """Images and captions, all checked, and a batch."""
    pairs, val = (ImagesAndCaptions(root / "images" / split, root / "captions" / split) for split in ("train", "val"))
    process.check_files([*pairs.files, *val.files], _accelerator())
    samples, _ = Batches(pairs.captions.texts, _BATCH_SIZE, 0, twins_together=False).at_step(0)
    pairs.pixels(samples, _SIDE_PX)


def train_clip_pretrained(root: Path) -> None:
    """Validation pairs of a CLIP from elsewhere."""
    _, val = (ImagesAndCaptions(root / "images" / split, root / "captions" / split) for split in ("train", "val"))
    val.pixels(val.distinct(_BATCH_SIZE)[0], _SIDE_PX)


def train_unet(root: Path) -> None:
    """Latents, captions and embeddings, all checked, and a batch."""
    params = config.read(TrainUNetParams, "train_unet")
    folders = [root / name for name in ("latents", "captions", "embeddings", "autoencoder", "clip")]
    inputs = load_inputs(*folders, takes_pooled=False)
    process.check_files(inputs.files, _accelerator())
    batches = LatentBatches(inputs.train, params)
    batches(0, slice(0, params.training.batch_size))


def sample(root: Path) -> None:
    """The prompts."""
    captions = {split: Shards(root / "captions" / split) for split in SPLITS}
    plan.choose(captions, config.read(SampleParams, "sample"))


def evaluate(root: Path) -> None:
    """The real images that samples are measured with, and a batch of them."""
    captions = {split: Shards(root / "captions" / split) for split in SPLITS}
    sets = {part.name: _Drawn(part) for part in plan.choose(captions, config.read(SampleParams, "sample"))}
    real, params = RealImages(root / "images", SPLITS), config.read(EvaluateParams, "evaluate")
    work = units(subjects_of(sets, real, params), params.num_samples_per_unit)  # pyright: ignore[reportArgumentType]
    subject, rows = list(work.values())[-1]
    images.to_tensor([subject.png(i) for i in rows])


class _Drawn:
    """A set of samples without their images."""

    def __init__(self, part: plan.PromptSet) -> None:
        self.prompts, self.guidance_scale = part.prompts, part.guidance_scale

    def __len__(self) -> int:
        return len(self.prompts)

    def png(self, i: int) -> bytes:
        """No start reads samples."""
        raise AssertionError(i)


STARTS: dict[str, Callable[[Path], None]] = {
    start.__name__: start
    for start in (train_autoencoder, train_clip, train_clip_pretrained, train_unet, sample, evaluate)
}


def _accelerator() -> process.Accelerator:
    return devices.start(config.read(MachineParams, "machine"))


def _scattered(count: int) -> list[int]:
    return np.linspace(0, count - 1, _BATCH_SIZE).astype(int).tolist()


def work(start: str, root: Path) -> None:
    """One start, in this process: print its seconds and the bytes of memory beyond those of the imports."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports is forgotten
    before, begin = _bytes("VmRSS"), time.perf_counter()
    STARTS[start](root)
    seconds, peak = time.perf_counter() - begin, _bytes("VmHWM")
    print(json.dumps([seconds, peak - before, peak]))


def _bytes(name: str) -> int:
    """A size in Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(start: str, root: Path, cache: Path) -> tuple[float, int, int]:
    """Seconds, bytes beyond the imports, and bytes in all, of a start in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.startup", "--work", start, str(root)]
    environment = os.environ | {"LDM_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print a table, then ratios: bytes per sample, and how much longer the largest corpus takes than the smallest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=_COUNTS, help="numbers of samples, ascending")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS), help="which starts")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], Path(options.work[1]))
        return
    found: dict[tuple[str, int], tuple[float, int, int]] = {}
    print(f"{'start':22} {'samples':>10} {'first s':>9} {'next s':>8} {'MB':>7} {'MB in all':>10}")
    for count in options.samples:
        with tempfile.TemporaryDirectory() as folder:
            root, cache = Path(folder) / "corpus", Path(folder) / "cache"
            write_corpus(root, count)
            time.sleep(3)  # files that were just written are not remembered
            for start in options.starts:
                first, again = measure(start, root, cache), measure(start, root, cache)
                found[start, count] = again
                memory = f"{again[1] / 1e6:7.1f} {again[2] / 1e6:10.1f}"
                print(f"{start:22} {count:10,} {first[0]:9.2f} {again[0]:8.2f} {memory}", flush=True)
    least, most = options.samples[0], options.samples[-1]
    for start in options.starts if most > least else []:
        growth = (found[start, most][1] - found[start, least][1]) / (most - least)
        print(f"ratio {start}_bytes_per_sample {growth:.2f}")
        print(f"ratio {start}_seconds_{most}_to_{least} {found[start, most][0] / found[start, least][0]:.2f}")


if __name__ == "__main__":
    main()
