"""A short training of the default's UNet by the stage's own loop, on synthetic latents and captions: the worker of
other benchmarks.

    python -m benchmarks.training INPUTS RUNS NUM_STEPS NUM_THREADS NUM_IMAGES
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks import steps
from benchmarks.measuring import PARAMS, ROOT
from benchmarks.startup import write_corpus
from ldm import randomness
from ldm.autoencoder.training.params import TrainAutoencoderParams, TrainedAutoencoderParams
from ldm.compute import compilation, devices
from ldm.compute.state import Run
from ldm.core import config
from ldm.core.params import MachineParams
from ldm.denoiser.model.diffusion import DenoisingObjective
from ldm.denoiser.model.networks import build
from ldm.denoiser.training.batches import LatentBatches
from ldm.denoiser.training.inputs import load_inputs
from ldm.denoiser.training.params import TrainUNetParams
from ldm.training.history import PACE
from ldm.training.loop import train

_NUM_ROWS = 4
"""Rows of the curve; the first is a warm-up."""


class Speeds(NamedTuple):
    """Medians over the rows of a curve."""

    samples_per_second: float
    data_wait: float
    """Share of the time in which a process waits for its batch, 0 to 1."""


def write_inputs(folder: Path, num_samples: int) -> None:
    """Latents, captions and embeddings as large as those of the default recipe."""
    section = config.read(TrainAutoencoderParams, "train_autoencoder", PARAMS).source
    assert isinstance(section, TrainedAutoencoderParams)
    shape = steps.default()
    params = shape.params
    latent = params.latent_channels, params.latent_size, params.latent_size
    write_corpus(folder, num_samples, section.network, latent, (shape.num_tokens, params.context_width))


def run(folder: Path, num_steps: int, *, num_processes: int, num_threads: int, num_images: int | None = None) -> Speeds:
    """Train in processes of their own. num_images: in a step of all processes; by default those of the default."""
    num_images = num_images or steps.default().num_images
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # or accelerate complains
    count = ["--multi_gpu", "--num_processes", str(num_processes)]
    launch = ["-m", "accelerate.commands.launch", *count, *plain]
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": places} | ({"ACCELERATE_USE_CPU": "true"} if num_processes > 1 else {})
    with tempfile.TemporaryDirectory() as runs:
        work = ["-m", "benchmarks.training", str(folder), runs, *map(str, (num_steps, num_threads, num_images))]
        command = [sys.executable, *(launch if num_processes > 1 else []), *work]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Speeds(*json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Train, and print the speeds on the first process."""
    folder, runs = map(Path, sys.argv[1:3])
    num_steps, num_threads, num_images = map(int, sys.argv[3:])
    machine = config.read(MachineParams, "machine", PARAMS).model_copy(update={"threads": num_threads, "trackers": []})
    section = config.read(TrainUNetParams, "train_unet", PARAMS)
    no_interruption = {"validate_every_steps": 10**6, "save_every_steps": 10**6, "loss_band": None}
    sizes = {"batch_size": num_images, "num_accumulation_steps": 1}
    changes = {"num_steps": num_steps, "num_warmup_steps": 1, "log_every_steps": max(1, num_steps // _NUM_ROWS)}
    settings = section.training.model_copy(update=no_interruption | sizes | changes)
    params = section.model_copy(update={"training": settings})
    accelerator = devices.start(machine, settings)
    parts = (folder / name for name in ("latents", "captions", "embeddings", "autoencoder", "clip"))
    inputs = load_inputs(*parts, takes_pooled=False)
    batches = LatentBatches(inputs.train, params)
    torch.manual_seed(randomness.key(settings.seed, "weights"))
    unet = build(params.network)
    compilation.prepare(machine, unet)
    objective = DenoisingObjective(unet, params.diffusion)
    trained = Run(runs, "train_unet", {"params": params.model_dump_json()})
    given = (objective, batches, batches.keys, settings, accelerator, trained)
    train(*given, validate=lambda _: {}, name="unet")
    if accelerator.is_main_process:
        with (trained.directory / PACE).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))[1:]
        print(json.dumps([median(float(row[name]) for row in rows) for name in Speeds._fields]))


if __name__ == "__main__":
    main()
