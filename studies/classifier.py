"""Trains a noise-aware classifier of latents for classifier guidance, which the default pipeline does without.

`python -m studies.classifier` reads latents, captions, embeddings and UNet of the default pipeline (the UNet for its
schedule alone), and writes `data/classifier`: weights, passport, and `metrics.json` with the accuracy in each quarter
of the times. Then: ldm generate PROMPT --guidance classifier,directory=data/classifier --guidance-scale 2 --output DIR
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ldm.core import artifact, config, stage
from ldm.core.params import PathsParams
from ldm.denoiser.model import networks
from ldm.denoiser.model.diffusion import Schedule, add_noise
from ldm.denoiser.model.params import DiffusionParams
from ldm.denoiser.training.inputs import Inputs, LatentsAndCaptions, load_inputs
from ldm.sampling.guidance.classifier import KIND, NoisyClassifier
from ldm.sampling.guidance.params import NoisyClassifierParams

OUTPUT = Path("data/classifier")
SEED = 0
NUM_STEPS, BATCH_SIZE = 1500, 256
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
CHANNELS, NORM_GROUPS = (32, 64), 8
NUM_REFERENCES = 512
NUM_CHOICES, NUM_REPEATS = 64, 40
"""Validation captions among which the classifier chooses, and how often it chooses for as many latents."""
QUARTERS = ("0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1")


@dataclass(frozen=True)
class Pairs:
    """Latents of a split, in memory, and the pooled features of one caption of each; equal captions have equal ones."""

    mean: Float[Tensor, "n c h w"]
    noise_std: Float[Tensor, "n c h w"]
    pooled: Float[Tensor, "n f"]

    @classmethod
    def of(cls, split: LatentsAndCaptions, limit: int | None = None) -> "Pairs":
        """The first `limit` samples of a split."""
        samples = np.arange(min(len(split), limit or len(split)))
        shape = (len(samples), *split.latent_shape(samples))
        mean = split.latents(samples, torch.zeros(shape))
        pooled = split.text.condition(split.captions(samples, SEED, np.zeros_like(samples))).pooled
        assert pooled is not None
        return cls(mean, split.latents(samples, torch.ones(shape)) - mean, pooled)

    def noisy(self, rows: Int[Tensor, " b"], t: Float[Tensor, " b"], schedule: Schedule) -> Float[Tensor, "b c h w"]:
        """Latents of these rows at these times, with noise of torch's generator."""
        mean, std = self.mean[rows], self.noise_std[rows]
        return add_noise(schedule, mean + std * torch.randn_like(mean), torch.randn_like(mean), t)


def loss_of(net: NoisyClassifier, pairs: Pairs, rows: Int[Tensor, " b"], schedule: Schedule) -> Float[Tensor, ""]:
    """InfoNCE (van den Oord et al. 2018): the cross entropy of finding the own caption among those of a batch, at times
    that are spread evenly. Its minimum is log p(caption | z_t) - log p(caption), up to a term that depends on z_t
    alone."""
    t = (torch.randperm(len(rows)) + torch.rand(len(rows))) / len(rows)
    logits = net(pairs.noisy(rows, t, schedule), schedule.condition(t), pairs.pooled[rows])
    return functional.cross_entropy(logits, torch.arange(len(rows)))


def train(pairs: Pairs, params: NoisyClassifierParams, schedule: Schedule, num_steps: int) -> NoisyClassifier:
    """The network after `num_steps` of AdamW with a one-cycle rate."""
    torch.manual_seed(SEED)
    net = NoisyClassifier(params)
    net.references.copy_(pairs.pooled[torch.randint(len(pairs.pooled), (params.num_references,))])
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    total = 0.0
    for step in range(1, num_steps + 1):
        loss = loss_of(net, pairs, torch.randint(len(pairs.pooled), (BATCH_SIZE,)), schedule)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"step {step}: loss {total / 100:.4f}", flush=True)
            total = 0.0
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracies(net: NoisyClassifier, pairs: Pairs, schedule: Schedule) -> dict[str, dict[str, float]]:
    """For each quarter of the times: how often a noisy latent's own caption is the likeliest of `NUM_CHOICES`, with the
    standard error, and how often chance finds it. A caption that is there several times is right each time."""
    generator, found = torch.Generator().manual_seed(SEED), {}
    for quarter, name in enumerate(QUARTERS):
        torch.manual_seed(SEED)
        rights, chances = [], []
        for _ in range(NUM_REPEATS):
            rows = torch.randperm(len(pairs.pooled), generator=generator)[:NUM_CHOICES]
            pooled = pairs.pooled[rows]
            t = (quarter + torch.rand(len(rows))) / len(QUARTERS)
            chosen = net(pairs.noisy(rows, t, schedule), schedule.condition(t), pooled).argmax(1)
            same = (pooled[:, None] == pooled[None]).all(2)
            rights.append(same[torch.arange(len(rows)), chosen].float().mean())
            chances.append(same.float().mean())
        share = torch.stack(rights)
        error = float(share.std() / len(share) ** 0.5)
        found[name] = {"accuracy": float(share.mean()), "error": error, "chance": float(torch.stack(chances).mean())}
    return found


def run(
    output: Path,
    paths: PathsParams,
    channels: Sequence[int] = CHANNELS,
    num_steps: int = NUM_STEPS,
    num_references: int = NUM_REFERENCES,
) -> dict[str, Any]:
    """Train, measure and write; returns the metrics. IntegrityError: an input is missing or does not fit."""
    folders = [Path(p) for p in (paths.latents, paths.captions, paths.embeddings, paths.autoencoder, paths.clip)]
    inputs = load_inputs(*folders, takes_pooled=True)
    unet = artifact.read_passport(Path(paths.unet), networks.KIND)
    schedule = Schedule(DiffusionParams.model_validate(unet.config["diffusion"]).schedule)
    params = _params(inputs, channels, num_references)
    net = train(Pairs.of(inputs.train), params, schedule, num_steps)
    metrics = accuracies(net, Pairs.of(inputs.val), schedule)
    settings = {"network": params.model_dump(mode="json"), "schedule": schedule.name}
    with stage.output(output) as folder:
        artifact.write(folder, KIND, settings, net.state_dict(), inputs.sha256, inputs.facts)
        artifact.write_json(folder / "metrics.json", metrics)
    return metrics


def _params(inputs: Inputs, channels: Sequence[int], num_references: int) -> NoisyClassifierParams:
    latent_channels, size, _ = inputs.train.latent_shapes[0]
    return NoisyClassifierParams(
        latent_channels=latent_channels,
        latent_size=size,
        channels=list(channels),
        norm_groups=NORM_GROUPS,
        num_features=inputs.embeddings.null["pooled"].shape[1],
        num_references=num_references,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write `data/classifier`, and print the accuracies."""
    parser = argparse.ArgumentParser(prog="python -m studies.classifier")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help=f"{OUTPUT} by default")
    options = parser.parse_args(arguments)
    metrics = run(options.output, config.read(PathsParams, "paths"))
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
